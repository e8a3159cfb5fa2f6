"""What the documentation tells users to import is there."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def imports(text: str) -> list[str]:
    """Statements of the Python snippets that import from this package."""
    found = []
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        nodes = ast.walk(ast.parse(snippet))
        found += [ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    return [statement for statement in found if statement.split()[1].split(".")[0] == "d2_contrast"]


def dotted_names(text: str) -> list[str]:
    """Names below this package, such as d2_contrast.evaluation.build_evaluator."""
    return re.findall(r"\bd2_contrast(?:\.[A-Za-z_]\w*)+", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_imports_of_a_page(page):
    text = page.read_text()
    for statement in imports(text):
        exec(statement, {})
    for name in dotted_names(text):
        pkgutil.resolve_name(name)


def test_something_is_found():
    texts = [page.read_text() for page in PAGES]
    assert sum(len(imports(text)) for text in texts) >= 6
    assert sum(len(dotted_names(text)) for text in texts) >= 8


def test_a_name_that_is_missing_is_noticed():
    (statement,) = imports("```python\nfrom d2_contrast.engine import Nothing\n```")
    with pytest.raises(ImportError):
        exec(statement, {})
    (name,) = dotted_names("see `d2_contrast.engine.nothing`")
    with pytest.raises(AttributeError):
        pkgutil.resolve_name(name)
