"""Feeds broken input to this project, and counts how each case ends.

python -m benchmarks.fuzz
python -m benchmarks.fuzz --cases 500 --seed 7 --kinds config checkpoint --json fuzz.json

A case ends well if the input is accepted and means what it should, or if it is refused in one sentence that names the
file, the key or the entry. Everything else is obscure: an error from the depths, a crash, a hang, and silent nonsense
such as a label map that is read with other classes, or a loss that is not a number. What the cases are:
:mod:`benchmarks.fuzz_kinds`.

Cases run in a process of their own, which is replaced when it crashes or hangs.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.common import machine, markdown
from d2_contrast.errors import explain

SECONDS = 20.0  # that a case may take
BATCH = 40  # cases of one process
MEMORY = 6 << 30  # bytes that such a process may take on top of what it starts with
LONGEST_SENTENCE = 700  # characters
TWO_LINES = "a\nb"  # the one text of the cases that holds a line break: a sentence that quotes it is still one sentence
ENDS = ("accepted", "named", "obscure")


@dataclass(frozen=True)
class Case:
    """A broken input.

    Attributes:
        kind: the name of its kind.
        name: what is broken, and how.
        run: takes the input; returns "" if all went well, otherwise what is silently wrong.
        culprits: an error has to name one of them.
        may_last: it may be a long run: if it still goes on after SECONDS, it is accepted.
    """

    kind: str
    name: str
    run: Callable[[], str]
    culprits: tuple[str, ...]
    may_last: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a case ended: one of ENDS, with the sentence of the error or what is wrong."""

    kind: str
    name: str
    end: str
    detail: str


def judge(case: Case) -> Outcome:
    """Run a case in this process."""
    try:
        wrong = case.run()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            where = _innermost(error)
            return Outcome(case.kind, case.name, "obscure", f"{type(error).__name__} in {where}: {error}"[:400])
        complaint = _complaint(sentence, case.culprits)
        return Outcome(case.kind, case.name, "obscure" if complaint else "named", complaint + sentence)
    return Outcome(case.kind, case.name, "obscure" if wrong else "accepted", wrong)


def _complaint(sentence: str, culprits: Sequence[str]) -> str:
    """What is wrong with the sentence of an error, "" if nothing is."""
    own_words = sentence.replace(repr(TWO_LINES)[1:-1], "")  # breaks are shown as escape sequences
    if r"\n" in own_words or "Traceback" in own_words:
        return "not one sentence: "
    if len(sentence) > LONGEST_SENTENCE:
        return f"{len(sentence)} characters: "
    return "" if any(culprit in sentence for culprit in culprits) else "names no culprit: "


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"


def run_cases(cases: Sequence[Callable[[], Case]], seconds: float = SECONDS) -> Iterator[Outcome]:
    """Make and run cases in processes that are forked from this one."""
    context = multiprocessing.get_context("fork")
    done = 0
    while done < len(cases):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(cases[done : done + BATCH], theirs))
        process.start()
        theirs.close()
        end = min(done + BATCH, len(cases))
        try:
            while done < end:
                outcome = _receive(ours, seconds)
                done += 1
                if isinstance(outcome, Outcome):
                    yield outcome
                    continue
                case = cases[done - 1]()
                if outcome == "hangs" and case.may_last:
                    yield Outcome(case.kind, case.name, "accepted", f"still running after {seconds:g} s")
                else:
                    process.join(0 if outcome == "hangs" else None)
                    yield Outcome(case.kind, case.name, "obscure", f"{outcome} (exit code {process.exitcode})")
                break
        finally:
            process.kill()
            process.join()


def _receive(connection: Connection, seconds: float) -> Outcome | str:
    """The next outcome, or what became of its process."""
    try:
        return connection.recv() if connection.poll(seconds) else "hangs"
    except EOFError:
        return "crashes"


def _work(cases: Sequence[Callable[[], Case]], connection: Connection) -> None:
    with open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in cases:
        connection.send(judge(case()))


def make_cases(
    kinds: dict[str, Callable[[random.Random, int], Case]], shares: dict[str, int], count: int, seed: int
) -> list[Callable[[], Case]]:
    """What makes ``count`` cases, shared out among kinds; the same for the same seed."""
    total = sum(shares[kind] for kind in kinds)
    return [
        partial(_make, make, f"{seed} {kind} {i}", i)
        for kind, make in kinds.items()
        for i in range(max(1, count * shares[kind] // total))
    ]


def _make(make: Callable[[random.Random, int], Case], seed: str, index: int) -> Case:
    return make(random.Random(seed), index)


def count_ends(outcomes: Sequence[Outcome]) -> list[list]:
    """Rows of a table: kind, cases, and how many ended in which way."""
    rows = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        ends = Counter(outcome.end for outcome in outcomes if outcome.kind == kind)
        rows.append([kind, sum(ends.values()), *(ends[end] for end in ENDS)])
    return [*rows, ["all", *(sum(row[i] for row in rows) for i in range(1, 2 + len(ENDS)))]]


def parse_arguments() -> argparse.Namespace:
    from benchmarks.fuzz_kinds import SHARES

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES), metavar="KIND", help=str([*SHARES]))
    parser.add_argument("--json", type=Path, help="file for the table and all obscure cases")
    return parser.parse_args()


def main() -> None:
    from benchmarks.fuzz_kinds import SHARES, make_kinds

    args = parse_arguments()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "two", "below")  # some values lead to folders above, which may be large elsewhere
        folder.mkdir(parents=True)
        kinds = make_kinds(folder, args.kinds, args.seed)
        outcomes: list[Outcome] = []
        with suppress(KeyboardInterrupt):  # which ends with the table of the cases so far
            for outcome in run_cases(make_cases(kinds, SHARES, args.cases, args.seed)):
                outcomes.append(outcome)
                if outcome.end == "obscure":
                    print(f"{outcome.kind}: {outcome.name}\n  {outcome.detail}", file=sys.stderr, flush=True)
    rows = count_ends(outcomes)
    print(machine())
    print(markdown(["kind", "cases", *ENDS], rows))
    print(f"{time.monotonic() - start:.0f} s")
    obscure = [outcome for outcome in outcomes if outcome.end == "obscure"]
    if args.json:
        report = {"cases": args.cases, "seed": args.seed, "machine": machine(), "table": rows}
        args.json.write_text(json.dumps(report | {"obscure": [asdict(outcome) for outcome in obscure]}, indent=1))
    raise SystemExit(1 if obscure else 0)


if __name__ == "__main__":
    main()
