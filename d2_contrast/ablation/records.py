"""Files of a run: its folder while it trains, and one small JSON file once it is finished."""

import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..tables import told_apart, write_json
from ..visualize.curves import read_metrics
from .progress import counted
from .spec import AblationError, Run, Spec

ATTEMPT_FILE = "attempt.json"

# What a record has, of what is read again.
RECORD_KEYS = {
    "spec": str,
    "row": str,
    "seed": int,
    "hash": str,
    "settings": dict,
    "results": dict,
    "seconds_per_iteration": float | int | None,
    "peak_memory_mb": dict,
}

# {(name of the row, seed): record}
Records = dict[tuple[str, int], dict]

# Settings of a record that are not those of the spec: key, value of the record, value of the spec. They are whole: runs
# belong together only where nothing of them differs.
Changes = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Store:
    """Where runs are. They are found by the end of their name, seed and hash: a renamed row keeps its runs.

    Attributes:
        output: folder with a folder for each run.
        results: folder with a JSON file for each finished run, named like its folder.
    """

    output: Path
    results: Path

    def folder(self, run: Run) -> Path:
        return next(self.output.glob(f"*{run.identity}"), self.output / run.name)

    def record(self, spec_name: str, run: Run) -> dict | None:
        """The record of a finished run, written now if its folder has all results but no record; None otherwise."""
        for path in self.results.glob(f"*{run.identity}.json"):
            return read_record(path)
        folder = self.folder(run)
        results = final_results(folder, run)
        if results is None:
            return None
        record = describe(folder, spec_name, run, results)
        write_json(self.results / f"{run.name}.json", record)
        return record

    def collect(self, spec: Spec) -> tuple[Records, list[str]]:
        """Records of all finished runs of a spec, and remarks on those that have other settings than it says now.

        The latter are left out: runs of different settings are never mixed. There is one exception. If no run has the
        spec's own settings and all deviate from them in the same way, they are taken. So a table can be made from
        files alone, although weights had another path or a config has changed since.
        """
        records = {(run.row.name, run.seed): record for run in spec.runs if (record := self.record(spec.name, run))}
        deviating: dict[Changes, list[dict]] = {}
        for path in sorted(self.results.glob("*.json")):
            record = read_record(path)
            rows = {row.name: row for row in spec.rows if record["seed"] in row.seeds}
            if same := [name for name, row in rows.items() if row.hash == record["hash"]]:
                for name in same:
                    records.setdefault((name, record["seed"]), record)
            elif record["spec"] == spec.name and record["row"] in rows:
                changes = _changes(record["settings"], rows[record["row"]].settings)
                deviating.setdefault(changes, []).append(record)
        texts = _describe(deviating)
        if not records and len(deviating) == 1:
            (found,) = deviating.values()
            return {(record["row"], record["seed"]): record for record in found}, [f"All runs are with {texts[0]}."]
        remarks = [f"Left out: {counted(len(x), 'run')} with {text}." for x, text in zip(deviating.values(), texts)]
        return records, remarks


def _changes(then: Mapping[str, object], now: Mapping[str, object]) -> Changes:
    default = "its default"
    return tuple(
        (key, str(then.get(key, default)), str(now.get(key, default)))
        for key in sorted(then.keys() | now.keys())
        if then.get(key, default) != now.get(key, default)
    )


def _describe(deviations: Iterable[Changes]) -> list[str]:
    """Each in words, with different words for different values."""
    shown = told_apart(value for changes in deviations for _, *values in changes for value in values)
    return [", ".join(f"{key} {shown[then]} (the spec: {shown[now]})" for key, then, now in x) for x in deviations]


def final_results(folder: Path, run: Run) -> dict[str, dict[str, float | None]] | None:
    """Results of the evaluation after the last iteration, {dataset: {metric: percent}}; None if there are none yet.

    They are read from metrics.json: only there do they differ from earlier and later evaluations. One line has the
    results of all datasets, so those of one say that all are there. A dataset without labels has none and is left out.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    last = {
        name: None if math.isnan(values[-1]) else round(values[-1].item(), 4)
        for name, (iterations, values) in read_metrics(str(path)).items()
        if iterations[-1] >= run.row.iterations
    }
    results = {}
    for dataset in run.row.datasets:
        # As Detectron2 names them.
        prefix = f"{dataset}/sem_seg/" if len(run.row.datasets) > 1 else "sem_seg/"
        found = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
        if found:
            results[dataset] = found
    return results or None


def describe(folder: Path, spec_name: str, run: Run, results: Mapping[str, Mapping[str, float | None]]) -> dict:
    """The record of a finished run, small enough to be committed."""
    attempt = read_attempt(folder)
    log = (folder / "log.txt").read_text(errors="replace") if (folder / "log.txt").is_file() else ""
    seconds = read_metrics(str(folder / "metrics.json")).get("time")
    row = run.row
    return {
        "spec": spec_name,
        "row": row.name,
        "seed": run.seed,
        "hash": row.hash,
        "config": os.path.relpath(row.config) if row.config.is_relative_to(Path.cwd()) else str(row.config),
        "overrides": dict(row.overrides),
        "settings": dict(row.settings),
        "iterations": row.iterations,
        "results": results,
        # Detectron2 logs medians over 20 iterations; this is the median of these.
        "seconds_per_iteration": None if seconds is None else round(statistics.median(seconds[1].tolist()), 5),
        "peak_memory_mb": {"process": attempt.get("peak_memory_mb"), "gpu": _peak_gpu_memory_mb(log)},
        "attempts": attempt.get("number", 1),
        "machine": {**attempt.get("machine", {}), "gpu": _gpu(log)},
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def read_record(path: Path) -> dict:
    """Read a record.

    Raises:
        AblationError: the file holds no record.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        numbers = [record["peak_memory_mb"][key] for key in ("process", "gpu")]
        numbers += [score for scores in record["results"].values() for score in scores.values()]
        if (
            all(isinstance(record[key], kind) for key, kind in RECORD_KEYS.items())
            and all(isinstance(number, float | int | None) for number in numbers)
            and isinstance(record.get("machine", {}), dict)
        ):
            return record
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise AblationError(f"{path}: this is no result of a run: mend the file, or move it out of this folder")


def read_attempt(folder: Path) -> dict:
    """The last attempt at a run: machine, number, process, exit code; {} if there was none."""
    try:
        return json.loads((folder / ATTEMPT_FILE).read_text())
    except FileNotFoundError:
        return {}


def _peak_gpu_memory_mb(log: str) -> float | None:
    """Peak memory of torch's allocator on the first GPU, from Detectron2's log in MiB; None without a GPU."""
    peaks = [int(x) for x in re.findall(r"max_mem: (\d+)M", log)]
    return round(max(peaks) * 2**20 / 1e6, 1) if peaks else None


def _gpu(log: str) -> str | None:
    """Name of the GPU, from the description of the environment with which Detectron2's log begins."""
    found = re.search(r"^GPU \d[\d,]*\s+(.+?)( \(arch=.*)?$", log, re.MULTILINE)
    return found.group(1) if found else None
