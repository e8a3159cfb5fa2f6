"""What an ablation runs: a yaml file with rows, seeds and a baseline, checked before anything starts.

The file is described in docs/ablations.md.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import default_config, load_config
from ..config_files import find_config, flatten, load_yaml
from ..config_ranges import RANGES
from ..data import register_folders
from ..engine.setup import check_datasets
from ..errors import message_of
from ..evaluation import summarize_confusion

SPEC_KEYS = ("seeds", "baseline", "metrics", "output", "overrides", "axes", "rows")
ROW_KEYS = ("name", "config", "seeds", "overrides", "axes", "baseline")
# Keys that change where files go, what is logged or how fast a run is, but not its result.
WITHOUT_INFLUENCE = (
    "OUTPUT_DIR",
    "SEED",  # part of a run's name by itself
    "VERSION",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "INPUT.MAX_PIXELS",
    "MODEL.CONTRAST.BALANCE.LOG_PERIOD",
    "MODEL.CONTRAST.LOG_PERIOD",
    "MODEL.DEVICE",
    "MODEL.SWIN.CHECKPOINTING",
    "MODEL.WEIGHTS_ALLOW_PICKLE",
    "PROCESS_GROUP_TIMEOUT",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.MAX_TO_KEEP",
    "TEST.BEST_METRIC",
    "TEST.EVAL_PERIOD",
    "TEST.MAX_DEVICE_GIB",
    "VISUALIZE.NUM_IMAGES",
    "VISUALIZE.TSNE_POINTS",
    "WANDB.NAME",
    "WANDB.PROJECT",
)


class AblationError(ValueError):
    """A spec, a config or a record is wrong; the message says where, and what was expected."""


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the table.

    Attributes:
        name: of the row, as in the spec, with the values of its axes.
        baseline: name of the row that it is compared with, or None.
        config: the config file.
        seeds: of its runs.
        overrides: values by dotted key, those for all rows included.
        settings: values by dotted key that determine the result, see ``settings_of``.
        iterations: length of a run.
        datasets: names of the datasets on which its runs are tested.
    """

    name: str
    baseline: str | None
    config: Path
    seeds: tuple[int, ...]
    overrides: Mapping[str, object]
    settings: Mapping[str, object]
    iterations: int
    datasets: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """Eight letters that differ where settings differ."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def options(self) -> list[str]:
        """Its overrides as keys and values of a command line."""
        return as_options(self.overrides)


@dataclass(frozen=True)
class Run:
    """A row with a seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder: readable, and different for different settings."""
        return re.sub(r"[^\w.+-]+", "-", self.row.name).strip("-.")[:60] + self.identity

    @property
    def identity(self) -> str:
        """The part of the name that tells runs apart: equal settings and seeds make equal runs."""
        return f"_seed{self.seed}_{self.row.hash}"


@dataclass(frozen=True)
class Spec:
    """An ablation; ``metrics`` None stands for mIoU and the groups of classes of a dataset."""

    name: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...] | None
    output: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all rows, each once, in the order of the file."""
        return tuple(dict.fromkeys(seed for row in self.rows for seed in row.seeds))

    @property
    def runs(self) -> list[Run]:
        """The runs of all rows, seed by seed, so that rows can be compared early."""
        return [Run(row, seed) for seed in self.seeds for row in self.rows if seed in row.seeds]

    @property
    def distinct_runs(self) -> list[Run]:
        """The same, but each once: rows of equal settings share their runs."""
        first: dict[str, Run] = {}
        for run in self.runs:
            first.setdefault(run.identity, run)
        return list(first.values())


def read_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec, load the config of every row and check all of it.

    Args:
        path: the yaml file.
        overrides: keys and values in turn, for all rows, over everything in the file.

    Raises:
        AblationError: the file, or one of its configs, is wrong.
    """
    path = Path(path)
    content = _read_yaml(path)
    _check_keys(content, SPEC_KEYS, ("seeds", "rows"), str(path))
    seeds = _seeds(content["seeds"], str(path))
    metrics = content.get("metrics")
    if metrics is not None and (not isinstance(metrics, list) or not metrics):
        raise AblationError(f"{path}: metrics is {metrics!r}: expected a list, such as [mIoU, mIoU-rare, IoU-Car]")
    output = _output(content.get("output"), path)
    rows = content["rows"]
    if not isinstance(rows, list) or not rows:
        raise AblationError(f"{path}: rows is {rows!r}: expected a list of rows, each with a name and a config")

    common = _overrides(content, str(path))
    last = _command_line(overrides)
    shared = _axes(content, str(path))
    built: list[Row] = []
    for number, entry in enumerate(rows, 1):
        where = (
            f"{path}: row {entry['name']!r}" if isinstance(entry, dict) and "name" in entry else f"{path}: row {number}"
        )
        _check_keys(entry, ROW_KEYS, ("name", "config"), where)
        baseline = entry.get("baseline", content.get("baseline"))
        own_seeds = _seeds(entry["seeds"], where) if "seeds" in entry else seeds
        own = {**common, **_overrides(entry, where)}
        for values in itertools.product(*_axes(entry, where)):
            for shared_values in itertools.product(*shared):
                chosen: dict[str, object] = {}
                for _, changed in (*values, *shared_values):
                    _add(chosen, changed, f"{where}: axes")
                at = [label for label, _ in shared_values]
                name = ", ".join([str(entry["name"]), *(label for label, _ in values), *at])
                compared = None if baseline is None else ", ".join([str(baseline), *at])
                built.append(
                    _row(
                        name,
                        None if compared == name else compared,
                        str(entry["config"]),
                        path.parent,
                        own_seeds,
                        {**own, **chosen, **last},
                        f"{path}: row {name!r}",
                    )
                )

    names = [row.name for row in built]
    for row in built:
        if names.count(row.name) > 1:
            raise AblationError(
                f"{path}: there are {names.count(row.name)} rows with the name {row.name!r}: expected one"
            )
        if row.baseline is not None and row.baseline not in names:
            raise AblationError(
                f"{path}: the baseline {row.baseline!r} of row {row.name!r} is no row: expected one of {names}"
            )
    metrics = None if metrics is None else tuple(map(str, metrics))
    _check_metrics(metrics or (), sorted({d for row in built for d in row.datasets}), str(path))
    return Spec(path.stem, tuple(built), metrics, output)


def check_labels(spec: Spec) -> None:
    """Check that each row is tested on a dataset with labels, as far as their metadata say it. No file is read.

    Raises:
        AblationError: a row is not, so that its runs would have no results.
    """
    for row in spec.rows:
        if not any(MetadataCatalog.get(dataset).get("has_labels", True) for dataset in row.datasets):
            raise AblationError(
                f"row {row.name!r} is tested on {', '.join(row.datasets)} alone, without labels: there would be "
                "nothing to report, name a dataset with labels in DATASETS.TEST"
            )


def settings_of(cfg: CfgNode) -> dict[str, object]:
    """The values of a config that differ from the defaults, by dotted key, without the keys ``WITHOUT_INFLUENCE``.

    A key that a later version adds therefore changes nothing as long as it has its default.
    """
    values, default = (
        json.loads(json.dumps(flatten(c), default=str))  # tuples become lists
        for c in (cfg, default_config())
    )
    return {
        key: value
        for key, value in sorted(values.items())
        if key not in WITHOUT_INFLUENCE and not (key in default and default[key] == value)
    }


def as_options(overrides: Mapping[str, object]) -> list[str]:
    """Overrides as keys and values in turn, as on the command line of train_net.py."""
    # Text stays as it is, so that "1e-3", which is text in yaml, becomes a number as in any other config.
    return [x for key, value in overrides.items() for x in (key, value if isinstance(value, str) else repr(value))]


def _read_yaml(path: Path) -> dict:
    try:
        content = load_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise AblationError(f"{path}: cannot read this spec ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise AblationError(f"{path}: this is no yaml file: {_one_line(error)}") from error
    return content


def _one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(message_of(error).split())


def _check_keys(entry: object, known: Sequence[str], required: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise AblationError(f"{where}: expected the keys {', '.join(required)}, found {entry!r}")
    for key in entry:
        if key not in known:
            similar = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"expected some of {', '.join(known)}"
            raise AblationError(f"{where}: unknown key {key!r}: {hint}")
    for key in required:
        if entry.get(key) is None:
            raise AblationError(f"{where}: the key {key} is missing")


def _seeds(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(s) is int and s >= 0 for s in value):
        raise AblationError(f"{where}: seeds is {value!r}: expected a list of numbers from 0 on, such as [1, 2, 3, 4]")
    if wrong := [seed for seed in value if seed not in RANGES["SEED"]]:
        raise AblationError(f"{where}: seeds has {wrong[0]}: expected {RANGES['SEED'].many}")
    if len(set(value)) < len(value):
        raise AblationError(f"{where}: seeds is {value}: expected each once")
    return tuple(value)


def _output(value: object, path: Path) -> Path:
    """The folder of the runs, that of the spec's name where the file names none."""
    if value is None:
        return Path("output/ablations", path.stem)
    if not isinstance(value, str) or not value.strip():
        raise AblationError(f"{path}: output is {value!r}: expected the name of a folder, or leave the key out")
    return Path(os.path.expanduser(value))


def _overrides(entry: Mapping, where: str) -> dict[str, object]:
    return _flatten_overrides(entry.get("overrides") or {}, f"{where}: overrides")


def _flatten_overrides(values: object, where: str) -> dict[str, object]:
    """Overrides by dotted key, from those and from nested ones as in a config."""
    if not isinstance(values, dict):
        raise AblationError(f"{where}: expected keys with values, such as SOLVER.MAX_ITER: 4800, found {values!r}")
    flat: dict[str, object] = {}
    for key, value in values.items():
        nested = _flatten_overrides(value, where) if isinstance(value, dict) else {"": value}
        _add(flat, {f"{key}.{rest}".rstrip("."): x for rest, x in nested.items()}, where)
    for key in flat:
        if key in ("SEED", "OUTPUT_DIR"):
            raise AblationError(
                f"{where}: {key} is set for each run: use {'seeds' if key == 'SEED' else 'output'} instead"
            )
    return flat


def _add(values: dict[str, object], more: Mapping[str, object], where: str) -> None:
    """Add more values by dotted key, of which none may be there already."""
    for key in more:
        if key in values:
            raise AblationError(f"{where}: {key} is set twice: expected it once")
    values.update(more)


def _command_line(overrides: Sequence[str]) -> dict[str, object]:
    if len(overrides) % 2:
        raise AblationError(f"the overrides {' '.join(overrides)!r} are no pairs of KEY and VALUE")
    return _flatten_overrides(dict(zip(overrides[::2], overrides[1::2], strict=True)), "command line")


Choice = tuple[str, dict[str, object]]  # how a value of an axis is called, and the overrides that it stands for


def _axes(entry: Mapping, where: str) -> list[list[Choice]]:
    axes = entry.get("axes") or {}
    if not isinstance(axes, dict):
        raise AblationError(f"{where}: axes is {axes!r}: expected names with values")
    result: list[list[Choice]] = []
    for axis, values in axes.items():
        if isinstance(values, list) and values:
            short = str(axis).rpartition(".")[2]
            result.append([(f"{short} {v}", _flatten_overrides({str(axis): v}, f"{where}: axes")) for v in values])
        elif isinstance(values, dict) and values:
            at = f"{where}: axis {axis!r}"
            result.append([(f"{axis} {v}", _flatten_overrides(keys, f"{at}, {v!r}")) for v, keys in values.items()])
        else:
            raise AblationError(
                f"{where}: axis {axis!r} is {values!r}: expected a list of values of that key, or for each label some "
                "overrides"
            )
    return result


def _row(
    name: str,
    baseline: str | None,
    config: str,
    folder: Path,
    seeds: tuple[int, ...],
    overrides: dict,
    where: str,
) -> Row:
    try:
        file = Path(find_config(config, str(folder))).resolve()
        cfg = load_config(str(file), as_options(overrides))
        register_folders(cfg.DATASETS.FOLDERS)
        check_datasets(cfg)
    except (KeyError, ValueError, OSError) as error:
        raise AblationError(f"{where}: {_one_line(error).removeprefix('command line: ')}") from error
    if not cfg.DATASETS.TEST:
        raise AblationError(f"{where}: DATASETS.TEST is empty: there would be nothing to report")
    return Row(name, baseline, file, seeds, overrides, settings_of(cfg), cfg.SOLVER.MAX_ITER, tuple(cfg.DATASETS.TEST))


def _check_metrics(metrics: Iterable[str], datasets: Sequence[str], where: str) -> None:
    known: set[str] = set()
    for dataset in datasets:
        metadata = MetadataCatalog.get(dataset)
        if metadata.get("evaluator_type") != "sem_seg":
            return  # it has metrics of its own
        names = metadata.stuff_classes
        known |= summarize_confusion(np.zeros((len(names),) * 2), names, metadata.get("class_groups")).keys()
    for metric in metrics:
        if metric not in known:
            similar = ", ".join(difflib.get_close_matches(metric, known, cutoff=0.7)) or ", ".join(
                sorted(name for name in known if "-" not in name or name.startswith("mIoU"))
            )
            raise AblationError(f"{where}: no dataset has the metric {metric!r}: expected, for example, {similar}")
