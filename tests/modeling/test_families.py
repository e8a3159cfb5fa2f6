"""The table of families of backbones in docs/models.md, but for its columns of exports, which take minutes."""

from pathlib import Path

import pytest

from benchmarks.backbones import FAMILIES, HEADER, build, describe, trains

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def rows():
    """{family: cells} of the table."""
    lines = PAGE.split(f"| {' | '.join(HEADER)} |\n")[1].split("\n\n")[0].splitlines()[1:]
    return {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def test_all_families_are_in_the_table():
    assert list(rows()) == [family for family, *_ in FAMILIES]


@pytest.mark.parametrize("family, name, bottom_up", FAMILIES, ids=[name for _, name, _ in FAMILIES])
def test_a_family_does_what_the_table_says(family, name, bottom_up):
    _, model = build(name, bottom_up)
    said = rows()[family]
    assert said[:5] == describe(family, name, bottom_up, model)
    assert said[5] == "yes" and trains(model)
