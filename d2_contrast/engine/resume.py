"""Resuming a run: whether a checkpoint fits the config, and what happens to settings that differ."""

from collections.abc import Mapping

import yaml
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..config_files import flatten
from ..config_ranges import ITERATIONS, Number
from ..errors import shown
from ..modeling.weights import DERIVED
from .train_step import TrainStep

# What a run starts from: it has no effect on a resumed run.
KEPT = ("MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAINED", "MODEL.SWIN.PRETRAINED_NAME")
# The hyperparameter by which the optimizer of a checkpoint is known.
TELLTALES = {"momentum": "SGD", "betas": "AdamW"}
# What each of them keeps of a parameter.
KEEPS = {"SGD": ("momentum_buffer",), "AdamW": ("step", "exp_avg", "exp_avg_sq")}
ABSENT = "(no such key)"
# Where these parts of Trainer.data_state differ, a run goes on otherwise than it would have uninterrupted.
EXACT_IF_SAME = {
    "seed": "SEED {1}, {0} before: images come in another order and are augmented otherwise",
    "samples": "{1} training images, {0} before: they come in another order",
    "step": "{1} images in a step, {0} before: steps hold other images, from the same place in the data on",
    "batch": "{1} images in a batch, {0} before: batch statistics and anchors are those of other batches",
    "processes": "{1} processes, {0} before: batches hold the same images, but each process has other ones of them, so "
    "that batch statistics and random numbers (anchors, dropout) are others",
}

COUNT = Number(whole=True, least=0)

Changes = dict[str, tuple[object, object]]


def config_changes(before: str, cfg: CfgNode) -> Changes:
    """The settings in which two configs differ.

    Args:
        before: text of the earlier config; text that holds none gives no differences.
        cfg: the one now.

    Returns:
        {full key: (value before, value now)}.
    """
    try:
        old = yaml.safe_load(before) if isinstance(before, str) else None
    except yaml.YAMLError:
        old = None
    if not isinstance(old, dict):
        return {}
    old, new = flatten(old), flatten(yaml.safe_load(cfg.dump()))
    keys = sorted(old.keys() | new.keys())
    pairs = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def keep_origin(cfg: CfgNode, changes: Changes) -> CfgNode:
    """The config, with the earlier run's values of the settings that a resumed run does not change."""
    kept = {key: before for key, (before, _) in changes.items() if key in KEPT and before != ABSENT}
    if not kept:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([part for pair in kept.items() for part in pair])
    cfg.freeze()
    return cfg


def describe_changes(changes: Changes, iteration: int) -> list[str]:
    """One line for each setting that differs, with what happens to it in a run resumed at ``iteration``."""
    return [
        f"{key}: {before} before, {now} now: "
        + ("kept as before, the run began from it" if key in KEPT else f"honoured from iteration {iteration} on")
        for key, (before, now) in changes.items()
    ]


def describe_inexact(before: Mapping | None, now: Mapping, cfg: CfgNode) -> list[str]:
    """Reasons in data and processes why a resumed run differs from an uninterrupted one.

    Args:
        before, now: what :meth:`~.trainer.Trainer.data_state` gives, of the checkpoint (None: it holds none) and here.
        cfg: the config of now.

    Returns:
        A clause for each reason.
    """
    told = []
    if now["samples"] is None:
        told.append("the data loader is not one of this project: it starts anew")
    elif before is None:
        told.append("the checkpoint is of an older version: images come in another order")
    else:
        told += [
            sentence.format(before[key], now[key]) for key, sentence in EXACT_IF_SAME.items() if before[key] != now[key]
        ]
        if cfg.MODEL.DEVICE == "cpu" and before["threads"] != now["threads"]:
            told.append(f"{now['threads']} threads of the CPU, {before['threads']} before: sums are rounded otherwise")
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        told.append(
            "DATALOADER.ASPECT_RATIO_GROUPING forms batches anew: images that it had held back are left out, others "
            "come twice"
        )
    if cfg.TEST.PRECISE_BN.ENABLED:
        told.append("TEST.PRECISE_BN takes its images from the start again")
    return told


def check_resumable(
    checkpoint: Mapping, path: str, network: nn.Module, step: TrainStep, average: AveragedModel | None, changes: Changes
) -> None:
    """Compare all that a checkpoint holds with what the config has built, before anything of it is loaded.

    Args:
        checkpoint: its content.
        path: its file, for messages.
        network: the network, not wrapped for several processes.
        step: holds the optimizer and the scaler of losses.
        average: the moving average of the weights, or None; nothing is compared then.
        changes: settings that differ from those of the checkpoint's run, for messages.

    Raises:
        ValueError: they do not fit; the message names a tensor or setting and both values.
    """
    try:
        difference = _difference(checkpoint, network, step, average)
    except Exception as error:  # what is in the place of a dict or a list fails in many ways
        difference = f"it is not laid out as a checkpoint of this project is ({type(error).__name__}: {error})"
    if difference:
        keys = [f"{k} {a} there, {b} here" for k, (a, b) in changes.items() if k.startswith(("MODEL.", "SOLVER.OPT"))]
        raise ValueError(
            f"{path} cannot be resumed with this config: {difference}"
            + (f" ({'; '.join(keys[:4])}{'; ...' if len(keys) > 4 else ''})" if keys else "")
            + f". Go on with the config of that run, or start a new run from its weights: MODEL.WEIGHTS {path} and "
            "another OUTPUT_DIR"
        )


def _difference(checkpoint: Mapping, network: nn.Module, step: TrainStep, average: AveragedModel | None) -> str:
    try:
        trained = checkpoint["trainer"]["_trainer"]
        theirs, iteration = trained["optimizer"], checkpoint["trainer"]["iteration"]
    except (KeyError, TypeError):
        return "it holds weights alone, no optimizer or iteration"
    if iteration not in ITERATIONS:
        return f"its iteration is {shown(iteration)}"
    if fault := _find_fault(checkpoint["trainer"]):
        return fault
    parts = [_compare("the network", _shapes(checkpoint["model"]), _shapes(network.state_dict()))]
    if average is not None and "average" in checkpoint:
        parts.append(_compare("the moving average", _shapes(checkpoint["average"]), _shapes(average.state_dict())))
    parts.append(_compare_optimizers(theirs, trained.get("parameters"), step))
    return next(filter(None, parts), "")


def _find_fault(trainer: Mapping) -> str:
    """What is no number where it should be one, of the place in the data and of what is carried on; "" for none."""
    data = trainer.get("data")
    for key in ("position", "threads", *EXACT_IF_SAME) if data is not None else ():
        if not (data[key] in COUNT or key == "samples" and data[key] is None):
            return f"{key} of its place in the data is {shown(data[key])}"
    pairs = [("skipped steps", trainer["_trainer"].get("skipped", (0, 0)))]
    for name, kept in trainer.get("recent", {}).items():
        pairs += [(f"recent values of {name}", pair) for pair in kept["values"]]
    for name, pair in pairs:
        if len(pair) != 2 or not all(isinstance(number, (int, float)) for number in pair):
            return f"its {name} are {shown(pair)}: expected two numbers"
    return ""


def _compare_optimizers(theirs: Mapping, their_names: list[list[str]] | None, step: TrainStep) -> str:
    own = step.optimizer.state_dict()
    kinds = [
        next((kind for key, kind in TELLTALES.items() if any(key in group for group in state["param_groups"])), "?")
        for state in (theirs, own)
    ]
    if kinds[0] != kinds[1]:
        return f"SOLVER.OPTIMIZER is {kinds[0]} there, {kinds[1]} here"
    our_names = step.parameter_names()
    if their_names is None:  # older checkpoints have no names: parameters are known by their place
        sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (theirs, own)]
        if sizes[0] != sizes[1]:
            return f"the optimizer has groups of {sizes[0]} parameters there, {sizes[1]} here"
        their_names = our_names
    shapes = {name: tuple(p.shape) for name, p in step.named_parameters()}
    names = [name for group in their_names for name in group]
    if difference := _compare("the optimizer", dict.fromkeys(names, ()), dict.fromkeys(shapes, ())):
        return difference
    if not {*theirs["state"]} <= {*range(len(names))}:
        return f"the optimizer keeps something of {shown([*theirs['state']])} there, it has {len(names)} parameters"
    for index, state in theirs["state"].items():
        for key in KEEPS.get(kinds[0], ()):
            value = state.get(key)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                if key != "momentum_buffer" or value is not None:  # which is None without momentum
                    return f"{key} of {names[index]} in the optimizer there is {shown(value)}"
        for key, value in _shapes(state).items():
            if value and value != shapes[names[index]]:
                return (
                    f"{key} of {names[index]} has the shape {value} in the optimizer there, {shapes[names[index]]} here"
                )
    return ""


def _compare(where: str, theirs: Mapping[str, tuple], ours: Mapping[str, tuple]) -> str:
    """The first difference in names or shapes, "" for none."""
    differing = [name for name in [*ours, *(n for n in theirs if n not in ours)] if theirs.get(name) != ours.get(name)]
    if not differing:
        return ""
    name = differing[0]
    more = f" (and {len(differing) - 1} more tensors differ)" if len(differing) > 1 else ""
    if name not in theirs:
        return f"{name} of {where} here is missing there{more}"
    if name not in ours:
        return f"{name} of {where} there is missing here{more}"
    return f"{name} of {where} has the shape {theirs[name]} there, {ours[name]} here{more}"


def _shapes(state: Mapping) -> dict[str, tuple]:
    return {
        name: tuple(value.shape)
        for name, value in state.items()
        if hasattr(value, "shape") and not str(name).endswith(DERIVED)
    }
