"""The reference of config keys, from the comments in d2_contrast/config.py."""

import ast
import inspect
import re
from pathlib import Path

from d2_contrast import config

HEADER = """# Config keys

The keys that this project adds to [Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html), with
their defaults. Generated from `d2_contrast/config.py`.
"""


def write_reference(path: Path) -> None:
    """Write a page with every key of this project: default, meaning and unit."""
    text = HEADER
    defaults = config.default_config()
    for section, key, comment in read_keys(inspect.getsource(config)):
        value = defaults
        for name in key.split("."):
            value = value[name]
        if section:
            text += f"\n## {section}\n"
        text += f"\n**`{key}`**: `{value!r}`\n{f': {comment}' if comment else ''}\n"
    path.write_text(text)


def read_keys(source: str) -> list[tuple[str, str, str]]:
    """The keys that the functions ``_add_*`` of a module assign, in order.

    Returns:
        (section, key, comment above it). Only the first key of a function has a section, its name.
    """
    lines = source.splitlines()
    keys = []
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or not function.name.startswith("_add_"):
            continue
        section = function.name.removeprefix("_add_").capitalize()
        for statement in function.body:
            line = lines[statement.lineno - 1]
            match = re.match(r"\s*cfg\.([\w.]+) = (?!CN\(\))", line)
            if match:
                keys.append((section, match[1], comment_above(lines, statement.lineno - 1)))
                section = ""
    return keys


def comment_above(lines: list[str], index: int) -> str:
    """The comment that ends in the line before one."""
    start = index
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return " ".join(line.strip(" #") for line in lines[start:index])
