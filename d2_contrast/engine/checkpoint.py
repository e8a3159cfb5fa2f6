"""Saving and loading of checkpoints."""

import logging
import re
from collections.abc import Mapping

import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import ResNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..modeling.weights import DERIVED, MIN_MATCHED, innermost_backbone, load_backbone, summarise_names

# Names under which checkpoints keep their weights.
CONTAINERS = ("model", "state_dict", "model_state")

ZIP = b"PK\x03\x04"
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Where projectors stood before they belonged to the contrastive branch.
OLD_PROJECTORS = re.compile(r"^((?:module\.)*)projectors\.")

logger = logging.getLogger(__name__)


class ContrastCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also takes the weights of backbones as their authors publish them.

    Checkpoints of whole models, ours or Detectron2's, are loaded as Detectron2 does. In any other file it looks for the
    weights of a backbone and loads them by :func:`~d2_contrast.modeling.weights.load_backbone`.

    Attributes:
        missing: names of the model's tensors that the last file did not have.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, allow_pickle: bool = False, **checkpointables):
        """
        Args:
            model: the model to load and save.
            save_dir: folder for its checkpoints.
            allow_pickle: also read files that can run code when they are read. Only for files that you trust.
            checkpointables: see Detectron2's DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.allow_pickle = allow_pickle
        self.missing: list[str] = []
        self._path = ""

    def _load_file(self, filename: str) -> dict:
        checkpoint = self._read_file(filename)
        for weights in (checkpoint["model"], checkpoint.get("average", {})):
            for name in [name for name in weights if OLD_PROJECTORS.match(name)]:
                weights[OLD_PROJECTORS.sub(r"\1contrast.projectors.", name)] = weights.pop(name)
        return checkpoint

    def _read_file(self, filename: str) -> dict:
        self._path = filename
        kind = file_kind(filename)
        if kind == "safetensors":
            return {"model": safetensors.torch.load_file(filename)}
        if kind == "torch":
            return self._find_weights(self._read_torch(filename))
        if not self.allow_pickle:
            raise ValueError(
                f"{filename} is a pickle file (or none of those that are read here: .pth, .safetensors). Pickle files "
                "can run any code when they are read: set MODEL.WEIGHTS_ALLOW_PICKLE True if you trust its source"
            )
        return super()._load_file(filename)

    def _read_torch(self, filename: str) -> object:
        try:
            with open(filename, "rb") as file:  # given a name, torch goes by its ending
                return torch.load(file, map_location="cpu", weights_only=not self.allow_pickle)
        except Exception as error:
            raise ValueError(
                f"{filename} is damaged or holds more than tensors ({error}). If you trust its source, set "
                "MODEL.WEIGHTS_ALLOW_PICKLE True"
            ) from error

    def _find_weights(self, loaded: object) -> dict:
        if isinstance(loaded, Mapping):
            for name in CONTAINERS:
                if isinstance(loaded.get(name), Mapping):
                    return dict(loaded) if name == "model" else {"model": loaded[name]}
            if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
                return {"model": loaded}
        found = list(loaded)[:8] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ValueError(
            f"{self._path} holds no weights: expected tensors by name, or those under one of {CONTAINERS}, "
            f"found {found}"
        )

    def _load_model(self, checkpoint: dict):
        weights = checkpoint["model"]
        backbone, prefix = innermost_backbone(self.model)
        is_whole = any(re.match(r"(module\.)?sem_seg_head\.", name) for name in weights)
        is_caffe2 = checkpoint.get("__author__") == "Caffe2"
        if is_caffe2 and not isinstance(backbone, ResNet):
            raise ValueError(
                f"{self._path} holds weights of Caffe2 (BGR, stride in the 1x1 convolution), which only Detectron2's "
                'own ResNet takes: MODEL.BACKBONE.NAME "build_resnet_backbone"'
            )
        if backbone is None or is_whole or is_caffe2:
            incompatible = super()._load_model(checkpoint)
            self._report(incompatible, prefix)
            return incompatible
        self._convert_ndarray_to_tensor(weights)
        load_backbone(backbone, checkpoint.pop("model"), self._path)
        self.missing = [name for name in self.model.state_dict() if not name.startswith(prefix)]
        return None

    def _report(self, incompatible, prefix: str) -> None:
        self.missing = missing = [name for name in incompatible.missing_keys if not name.endswith(DERIVED)]
        state = self.model.state_dict()
        total = [name for name in state if not name.endswith(DERIVED)]
        summary = (
            f"{self._path}: checkpoint of a whole model; {len(total) - len(missing)} of the model's {len(total)} "
            f"tensors loaded; missing: {summarise_names(missing)}; "
            f"unused: {summarise_names(incompatible.unexpected_keys)}; "
            f"of another shape: {summarise_names(name for name, *_ in incompatible.incorrect_shapes)}"
        )
        lost, own = (sum(state[n].numel() for n in names if n.startswith(prefix)) for names in (missing, total))
        if own - lost < MIN_MATCHED * own:
            raise ValueError(f"These are not the weights of this model's backbone. {summary}")
        logger.info(summary)

    def _log_incompatible_keys(self, incompatible) -> None:
        pass  # the summary said it


def build_checkpointer(
    cfg: CfgNode, model: nn.Module, average: AveragedModel | None, **checkpointables
) -> ContrastCheckpointer:
    """Build what loads MODEL.WEIGHTS, and saves and loads ``model``, its average and more under OUTPUT_DIR."""
    if average is not None:
        checkpointables["average"] = average
    allow_pickle = cfg.MODEL.WEIGHTS_ALLOW_PICKLE
    return ContrastCheckpointer(model, cfg.OUTPUT_DIR, allow_pickle=allow_pickle, **checkpointables)


def file_kind(filename: str) -> str:
    """Recognise a file by its first bytes: "safetensors", "torch" or "other" (a pickle, if anything)."""
    with open(filename, "rb") as file:
        head = file.read(16)
    if head.startswith((ZIP, LEGACY_TORCH)):
        return "torch"
    # Eight bytes with the length of the header, which is JSON.
    return "safetensors" if head[8:9] == b"{" else "other"
