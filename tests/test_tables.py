import json

import numpy as np

from d2_contrast.tables import markdown_table, number, told_apart, write_json


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_numbers():
    assert [number(x) for x in (0.614, np.nan, -0.001, -1.2)] == ["0.61", "-", "0.00", "-1.20"]
    assert [number(x, sign=True) for x in (0.614, -0.2, np.nan, 0.0)] == ["+0.61", "-0.20", "-", "+0.00"]


def test_a_table_of_markdown():
    lines = markdown_table([["a|b", "1.00"], ["c", "-"]], ["name", "x"]).splitlines()
    cells = [[cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")] for line in lines]
    assert cells[0] == ["name", "x"] and cells[2:] == [["a/b", "1.00"], ["c", "-"]]
    assert cells[1][0].startswith(":-") and cells[1][1].endswith("-:")


def test_short_texts_are_told_apart():
    long = ["/data/" + "x" * 80 + name for name in ("/a.pth", "/b.pth", "y/b.pth")]
    middle = ["a" * 40 + letter + "c" * 40 for letter in "xyz"]
    shown = told_apart([*long, *middle, "short", "short"])
    assert list(shown) == [*long, *middle, "short"] and len(set(shown.values())) == len(shown)
    assert [len(shown[text]) for text in long] == [60] * 3 and shown["short"] == "short"
    assert [shown[text] for text in middle] == middle


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.5, float("nan")], "b": {"c": float("inf")}, "d": (1, "x", None)})
    data = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert data == {"a": [1.5, None], "b": {"c": None}, "d": [1, "x", None]}
