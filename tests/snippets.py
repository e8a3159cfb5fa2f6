"""The examples of a page of the documentation."""

import re
from pathlib import Path


def code_blocks(page: Path) -> dict[str, dict[str, str]]:
    """{heading: {language: code}} of a Markdown page, with the first block of each language below a heading."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```|^#+ (.*?)$", page.read_text(), re.MULTILINE | re.DOTALL):
        language, code, title = match.groups()
        if title is not None:
            heading = title
        else:
            found.setdefault(heading, {}).setdefault(language, code)
    return found
