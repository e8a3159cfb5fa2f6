"""Trained networks: finding their weights and config, and loading them for everything but training."""

import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .. import modeling  # noqa: F401  (registers the parts of networks)
from ..config import load_config, parse_config
from ..data import Classes
from ..modeling.meta_arch import TRAINING_ONLY
from .checkpoint import ContrastCheckpointer, build_checkpointer, own_checkpoints
from .checkpoint_files import file_kind
from .stripped import BEST, read_header
from .trainer import CONFIG_FILE, without_download

logger = logging.getLogger(__name__)


def find_weights(folder: str) -> str:
    """Path of the weights that a run has left in a folder, "" if there are none. To be called in all processes.

    It is the last checkpoint, see :meth:`ContrastCheckpointer.get_checkpoint_file`, or else ``model_best.safetensors``.

    Raises:
        DamagedFileError: there are checkpoints but none can be read.
    """
    best = os.path.join(folder, BEST)
    if not own_checkpoints(folder) and os.path.isfile(best):
        return best
    return ContrastCheckpointer(nn.Module(), folder).get_checkpoint_file()


def read_trained(path: str, config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Read the config of a trained network, with MODEL.WEIGHTS naming its weights.

    The config is ``config_file``, or ``config.yaml`` in the folder of the weights, or the one that they hold. It asks
    for no download. MODEL.DEVICE is a GPU if there is one, unless the overrides, or a ``config_file``, say otherwise,
    since that of the training says what its machine had.

    Args:
        path: the folder of a run (OUTPUT_DIR), or a file of weights.
        config_file: a file, or the name of one of this project's configs.
        overrides: keys and values in turn.

    Raises:
        FileNotFoundError: a file or folder is missing, or the folder holds no weights.
        KeyError, ValueError: there is no config, or it does not fit this version; or checkpoints are damaged.
    """
    path = os.path.expanduser(path)
    weights = path
    if os.path.isdir(path):
        weights = find_weights(path)
        if not weights:
            raise FileNotFoundError(
                f"{path} holds no weights: expected model_final.pth, or other weights that train_net.py writes"
            )
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of weights, nor folder of a run")
    beside = os.path.join(os.path.dirname(weights), CONFIG_FILE)
    if config_file or os.path.isfile(beside):
        cfg = load_config(config_file or beside, overrides)
    elif text := _config_inside(weights):
        cfg = parse_config(text, weights, overrides)
    else:
        raise ValueError(
            f"{weights} has no config: expected {beside}, or name the config of this network by config_file "
            "(--config-file)"
        )
    cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.BACKBONE.PRETRAINED = False
    is_chosen = config_file or "MODEL.DEVICE" in overrides[::2]
    if cfg.MODEL.DEVICE == "cpu" and not is_chosen and torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cuda"
    elif cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def load_network(cfg: CfgNode, weights: str, *, whole: bool = False) -> tuple[nn.Module, int | None]:
    """Build the network of a config in evaluation mode, with trained weights.

    With SOLVER.EMA.ENABLED they are the moving average that the file holds.

    Args:
        cfg: the config; nothing is downloaded for it.
        weights: a file of weights of the whole network.
        whole: it must also hold what is for training alone, auxiliary head and projectors.

    Returns:
        The network; the iteration after which the file was written, None if it does not say so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or does not hold the weights of this network.
    """
    model = build_model(without_download(cfg)).eval()
    checkpointer = build_checkpointer(cfg, model, None)
    checkpoint = checkpointer.load(weights, checkpointables=[])
    missing = checkpointer.missing
    if cfg.SOLVER.EMA.ENABLED and "average" in checkpoint:
        average = dict(checkpoint["average"])
        if average.pop("n_averaged") > 0:
            tensors = {name.removeprefix("module."): tensor for name, tensor in average.items()}
            own = model.state_dict()
            missing = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
            model.load_state_dict({name: tensors[name] for name in own if name not in missing}, strict=False)
    elif cfg.SOLVER.EMA.ENABLED and "classes" not in checkpoint:  # those of a stripped file are averaged already
        logger.warning("SOLVER.EMA.ENABLED is set but %s holds no average: its weights themselves are used", weights)
    missing = [name for name in missing if whole or not name.startswith(TRAINING_ONLY)]
    if missing:
        raise ValueError(
            f"{weights} holds no weights for {len(missing)} tensors of this network ({missing[0]}, ...), which would "
            "be random ones: expected a checkpoint of the whole network, and the config that it was trained with"
        )
    iteration = checkpoint.get("iteration")
    return model, None if iteration is None else int(iteration)


def _config_inside(weights: str) -> str:
    """The text of the config in a file of weights, "" for none. A damaged file is reported when it is loaded."""
    try:
        if file_kind(weights) == "safetensors":
            return read_header(weights).get("config", "")
        return torch.load(weights, map_location="cpu", weights_only=True, mmap=True).get("config", "")
    except Exception:  # torch reports damaged and foreign files through many of them
        return ""


def read_classes(cfg: CfgNode) -> Classes:
    """The classes that the file MODEL.WEIGHTS names; those of the config where it names none.

    Raises:
        ValueError: there are not NUM_CLASSES of them.
    """
    weights = cfg.MODEL.WEIGHTS
    is_stripped = os.path.isfile(weights) and file_kind(weights) == "safetensors"
    text = read_header(weights).get("classes") if is_stripped else None
    classes = Classes.of_config(cfg) if text is None else Classes.from_json(text)
    if len(classes) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ValueError(
            f"{weights} names {len(classes)} classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES of its config is "
            f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}"
        )
    return classes
