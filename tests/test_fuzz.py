"""The fuzzer: what it calls obscure, and that a few of its cases find nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.fuzz import TWO_LINES, Case, count_ends, judge, make_cases, run_cases
from benchmarks.fuzz_kinds import nest, paths, variations
from d2_contrast.data import read_image


def case(run, *culprits, **options):
    return Case("kind", "name", run, culprits, **options)


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("run", "culprit", "end", "detail"),
    [
        (lambda: "", "x", "accepted", ""),
        (lambda: "3 pixels differ", "x", "obscure", "3 pixels differ"),
        (lambda: read_image("/nowhere/a.png"), "a.png", "named", "/nowhere/a.png: no such image"),
        (lambda: read_image("/nowhere/a.png"), "b.png", "obscure", "names no culprit: /nowhere/a.png"),
        (lambda: read_image(f"/nowhere/{TWO_LINES}.png"), "a", "named", r"/nowhere/a\nb.png: no such image"),
        (lambda: read_image("/nowhere/\n.png"), "a", "obscure", r"not one sentence: /nowhere/\n.png"),
        (lambda: read_image("/nowhere/" + "a" * 800), "a", "obscure", "characters: "),
        (lambda: int("x"), "x", "obscure", "ValueError in test_fuzz.py:"),
    ],
)
def test_judgement(run, culprit, end, detail):
    outcome = judge(case(run, culprit))
    assert outcome.end == end and detail in outcome.detail


def test_crashes_and_hangs_are_seen_and_cases_go_on():
    cases = [
        case(lambda: ""),
        case(crash),
        case(lambda: time.sleep(60)),
        case(lambda: time.sleep(60), may_last=True),
        case(lambda: ""),
    ]
    outcomes = list(run_cases([lambda c=c: c for c in cases], seconds=1.0))
    assert [outcome.end for outcome in outcomes] == ["accepted", "obscure", "obscure", "accepted", "accepted"]
    assert outcomes[1].detail == "crashes (exit code -9)" and outcomes[2].detail.startswith("hangs")
    assert count_ends(outcomes) == [["kind", 5, 3, 0, 2], ["all", 5, 3, 0, 2]]


def test_cases_follow_from_the_seed():
    def make(rng: random.Random, index: int) -> Case:
        return case(lambda: "", str(rng.random()), str(index))

    kinds = {"a": make, "b": make}
    lists = [[c().culprits for c in make_cases(kinds, {"a": 3, "b": 1}, 40, seed)] for seed in (1, 1, 2)]
    assert len(lists[0]) == 40 and lists[0] == lists[1] != lists[2]
    assert [index for _, index in lists[0]] == [*map(str, range(30)), *map(str, range(10))]


def test_mutations():
    assert nest({"A.B": 1, "A.C.D": 2, "E": 3}) == {"A": {"B": 1, "C": {"D": 2}}, "E": 3}
    assert list(paths({"a": [1, {"b": 2}]})) == [("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
    assert {str(v) for v in variations([1, 2])} >= {"[2, 1]", "[1]", "[1, 2, 'x']", "[[1, 2]]", "[1, nan]"}


def test_a_few_cases_find_nothing(tmp_path, pytestconfig):
    report = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.fuzz", "--cases", "100", "--seed", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["obscure"] == [] and found["table"][-1][:2] == ["all", 100]
    assert all(row[2] and row[3] for row in found["table"])  # some of each kind are accepted, some are refused
