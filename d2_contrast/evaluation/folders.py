"""Folders for the results of evaluations: no evaluation overwrites another."""

import hashlib
import json
import os
import re
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..output import numbered
from ..tables import write_json
from .confusion_evaluator import CONFUSION_FILE, RESULTS_FILE

RECORD = "evaluation.json"

# Settings that do not change results: where weights come from, and what only training reads.
NO_INFLUENCE = ("WEIGHTS", "WEIGHTS_ALLOW_PICKLE", "DEVICE", "CONTRAST", "AUX_HEAD", "PIXEL_LOSS")


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Folder for the results on a dataset, ``OUTPUT_DIR/inference/<dataset>``.

    Sliding windows, several scales and mirror images, where ``cfg.TEST`` asks for them, are part of its name.
    """
    parts = [re.sub(r"[^\w.+-]|^\.+", "_", dataset_name)]
    window, aug = cfg.TEST.SLIDING_WINDOW, cfg.TEST.AUG
    if window.ENABLED:
        parts += ["window" + "x".join(map(str, window.SIZE)), "stride" + "x".join(map(str, window.STRIDE))]
    if aug.ENABLED:
        parts += ["scales" + "-".join(map(str, aug.SCALES)), *(["flip"] if aug.FLIP else [])]
    return os.path.join(cfg.OUTPUT_DIR, "inference", "_".join(parts))


def claim_evaluation_folder(cfg: CfgNode, dataset_name: str, *, weights: str = "", iteration: int | None = None) -> str:
    """The folder of :func:`evaluation_folder`, or one beside it if that holds another evaluation; noted in it.

    What is compared is kept in ``evaluation.json``: dataset, weights, iteration, and a hash of the settings that
    influence results. To be called in the main process.

    Args:
        weights: file of the weights that are evaluated; "" for those of the run in training, which replaces its own
            earlier evaluations.
        iteration: after which they were written, if known.
    """
    record = {
        "dataset": dataset_name,
        "by": "evaluation" if weights else "training",
        "run": os.path.realpath(os.path.dirname(weights) if weights else cfg.OUTPUT_DIR),
        "weights": os.path.basename(weights),
        "iteration": iteration,
        "settings": hash_settings(cfg),
    }
    folder = _first_for(cfg, record)
    found = _read(folder)
    if found.get("by") != "training" or not weights:
        if found != record:  # results stay as long as they are those of the record
            for name in (RESULTS_FILE, CONFUSION_FILE):
                Path(folder, name).unlink(missing_ok=True)
        write_json(os.path.join(folder, RECORD), record)
    return folder


def find_evaluation_folder(cfg: CfgNode, dataset_name: str, before: int) -> str | None:
    """The folder of a run's own last evaluation in training on a dataset, None if there is none.

    Args:
        before: iteration that the run goes on with. An evaluation after it or a later one, which the run will do again,
            does not count.
    """
    folder = _first_for(cfg, {"dataset": dataset_name, "by": "training"})
    iteration = _read(folder).get("iteration")
    return folder if isinstance(iteration, int) and iteration < before else None


def hash_settings(cfg: CfgNode) -> str:
    """A short text that tells settings apart with which the same weights may get other results on a dataset."""
    settings = yaml.safe_load(cfg.dump())
    model = {key: value for key, value in settings["MODEL"].items() if key not in NO_INFLUENCE}
    model["BACKBONE"].pop("PRETRAINED")
    test = [settings["TEST"].get(key) for key in ("SLIDING_WINDOW", "AUG", "AMP")]
    sizes = [settings["INPUT"][key] for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")]
    solver = settings["SOLVER"]
    others = [solver["EMA"]["ENABLED"], solver["AMP"]["DTYPE"], settings["DATASETS"]["FOLDERS"]]
    return hashlib.sha256(json.dumps([model, test, sizes, others], sort_keys=True).encode()).hexdigest()[:16]


def _first_for(cfg: CfgNode, record: dict) -> str:
    """The first folder of a dataset that is free, or holds the evaluation of a record."""
    folders = numbered(evaluation_folder(cfg, record["dataset"]))
    return next(f for f in folders if not os.path.isdir(f) or not os.listdir(f) or _is_same(_read(f), record))


def _is_same(found: dict, record: dict) -> bool:
    if found.get("dataset", record["dataset"]) != record["dataset"]:  # two names may give one folder
        return False
    if record["by"] == "training":
        return found.get("by", "training") == "training"
    key = "weights" if record["iteration"] is None else "iteration"
    return all(found.get(name) == record[name] for name in ("run", "settings", key))


def _read(folder: str) -> dict:
    try:
        with open(os.path.join(folder, RECORD)) as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return {}
