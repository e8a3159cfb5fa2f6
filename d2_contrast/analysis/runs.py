"""Runs that train_net.py has left in folders."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..data import SemSegMapper, load_dicts, register_folders
from ..data.files import limit_pixels
from ..engine.trained import load_network, read_trained
from ..engine.trainer import CONFIG_FILE


@dataclass(frozen=True)
class TrainedRun:
    """A run with its network.

    Attributes:
        name: as given, or the name of its folder, with parent folders where these are needed to tell runs apart.
        folder: what train_net.py had as OUTPUT_DIR.
        cfg: its config, with the overrides.
        weights: the checkpoint that was loaded.
        model: its ContrastiveSegmentor in evaluation mode.
        overrides: keys and values in turn that its config was given when it was loaded.
    """

    name: str
    folder: Path
    cfg: CfgNode
    weights: Path
    model: nn.Module
    overrides: Sequence[str] = ()

    def cfg_for(self, dataset: str) -> CfgNode:
        """The config of the run, with this dataset to test on."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (dataset,)
        return cfg

    def mapper_for(self, dataset: str) -> SemSegMapper:
        """What makes the network's inputs from images of a dataset."""
        return SemSegMapper(self.cfg_for(dataset), is_train=False)


def load_runs(
    folders: Sequence[str], names: Sequence[str] | None = None, overrides: Sequence[str] = ()
) -> list[TrainedRun]:
    """Load runs from their folders, the last checkpoint of each, and register the datasets that their configs describe.

    With SOLVER.EMA.ENABLED a network gets the moving average of its weights, as in evaluation.

    Args:
        folders: each what train_net.py had as OUTPUT_DIR.
        names: what to call the runs; None for the names of their folders.
        overrides: keys and values in turn, over the config of each.

    Raises:
        FileNotFoundError: a folder holds no run, or no checkpoint.
        KeyError, ValueError: a config or checkpoint does not fit this version, two runs describe one dataset in
            different ways, or a folder or a name is given twice.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    of_folders = _names(paths)
    if names is not None and (len(names) != len(paths) or len(set(names)) != len(names)):
        raise ValueError(f"names of {len(paths)} runs are {', '.join(names)}: expected one for each, all different")
    return [_load(path, name, overrides) for path, name in zip(paths, of_folders if names is None else names)]


def common_dataset(runs: Sequence[TrainedRun], name: str | None = None) -> tuple[str, list[dict]]:
    """A dataset on which runs can be set side by side, and its labelled images.

    Args:
        runs: at least one.
        name: a registered dataset; None for the first of DATASETS.TEST, which must be the same for all.

    Raises:
        ValueError: there is no such dataset, it has no labelled images, or networks see its images in different sizes.
        OSError: its files are missing.
    """
    first = runs[0]
    if name is None:
        for run in runs:
            if run.cfg.DATASETS.TEST[:1] != first.cfg.DATASETS.TEST[:1]:
                raise ValueError(
                    f"{first.name} was tested on {_first_test(first)} and {run.name} on {_first_test(run)}: name the "
                    "dataset to measure both on with --dataset"
                )
        if not first.cfg.DATASETS.TEST:
            raise ValueError(f"{first.name} has no dataset in DATASETS.TEST: name one with --dataset")
        name = first.cfg.DATASETS.TEST[0]
    for run in runs:
        if _test_size(run.cfg) != _test_size(first.cfg):
            raise ValueError(
                f"{first.name} and {run.name} see images in different sizes: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are "
                f"{_test_size(first.cfg)} and {_test_size(run.cfg)}; choose one for all, such as --opts "
                f"INPUT.MIN_SIZE_TEST {first.cfg.INPUT.MIN_SIZE_TEST} INPUT.MAX_SIZE_TEST "
                f"{first.cfg.INPUT.MAX_SIZE_TEST}"
            )
    if name not in DatasetCatalog:
        similar = difflib.get_close_matches(name, DatasetCatalog.list())
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ValueError(f"dataset {name!r} is not registered{hint}")
    labelled = [x for x in load_dicts(name) if "sem_seg_file_name" in x]
    if not labelled or not MetadataCatalog.get(name).get("stuff_classes"):
        raise ValueError(f"dataset {name!r} has no images with labels of classes to segment: choose one that has")
    return name, labelled


def _load(folder: Path, name: str, overrides: Sequence[str]) -> TrainedRun:
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no config.yaml: expected a folder that train_net.py had as OUTPUT_DIR")
    cfg = read_trained(str(folder), overrides=overrides)
    limit_pixels(cfg.INPUT.MAX_PIXELS)
    weights = Path(cfg.MODEL.WEIGHTS)
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.WEIGHTS = ""
    cfg.freeze()
    try:
        register_folders(cfg.DATASETS.FOLDERS)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error
    model, _ = load_network(cfg, str(weights), whole=True)
    return TrainedRun(name, folder, cfg, weights, model, overrides)


def _names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, just long enough to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for i, path in enumerate(paths):
        if parts[i] in parts[:i]:
            raise ValueError(f"{path} is named twice: expected folders of different runs")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _first_test(run: TrainedRun) -> str:
    return run.cfg.DATASETS.TEST[0] if run.cfg.DATASETS.TEST else "none"


def _test_size(cfg: CfgNode) -> tuple[int, ...]:
    """Shorter side and bound on the longer one, pixels; (0,) for the size on disk."""
    return (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) if cfg.INPUT.MIN_SIZE_TEST else (0,)
