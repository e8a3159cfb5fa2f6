"""What holds of the pages as a whole: links lead somewhere, versions agree."""

import re
from pathlib import Path

import pytest
import yaml

import d2_contrast
from d2_contrast import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What follows # in links to the headings of a page, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The targets of a page's links that lead to files of this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("`code`", page.read_text()))
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_found():
    assert len(PAGES) >= 10 and sum(len(links(page)) for page in PAGES) >= 25


def test_verbs_exist():
    found = {verb for page in PAGES for verb in re.findall(r"d2-contrast ([a-z]+)", page.read_text())}
    assert found <= cli.VERBS.keys() and {"init", "check", "train", "ablate"} <= found


def test_versions_agree():
    version = d2_contrast.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version} - 2" in (ROOT / "CHANGELOG.md").read_text()
