"""Saving and loading of checkpoints."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import ResNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..errors import shown
from ..modeling.weights import DERIVED, MIN_MATCHED, innermost_backbone, is_integer, load_backbone, summarise_names
from ..output import write_whole
from .checkpoint_files import DamagedFileError, check_intact, file_kind, read_torch
from .parallel import on_main_process

# Names under which checkpoints keep their weights.
CONTAINERS = ("model", "state_dict", "model_state")
# Buffers that training changes; others may hold infinities, as masks do.
RUNNING = ("running_mean", "running_var")

TAG = "last_checkpoint"
OWN_NAME = re.compile(r"model_(\d+|final|best)\.pth")

# The backbone of a whole model, with its pyramids.
BACKBONE = re.compile(r"(module\.)*backbone\.")
# Where projectors stood before they belonged to the contrastive branch.
OLD_PROJECTORS = re.compile(r"^((?:module\.)*)projectors\.")

logger = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is infinite or not a number.

    Attributes:
        ranks: of the processes whose batches are to be looked at.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()):
        super().__init__(message)
        self.ranks = ranks


class ContrastCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made for long runs and for the weights of others.

    - Files are written whole or not at all, and only with finite numbers. A file that is damaged is reported as that,
      and the newest one before it is taken.
    - Checkpoints of whole models, ours or Detectron2's, are loaded as Detectron2 does. In any other file, and where the
      backbone of a whole model has other names, as it has with and without a pyramid, it looks for the weights of a
      backbone and loads them by :func:`~d2_contrast.modeling.weights.load_backbone`.

    Attributes:
        config: text of the config, which every checkpoint holds as "config"; "" for none.
        missing: names of the model's tensors that the last file did not have.
        saved_iteration: the iteration after which it last saved, -1 before.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, allow_pickle: bool = False, config: str = "", **checkpointables
    ):
        """
        Args:
            model: the model to load and save.
            save_dir: folder for its checkpoints.
            allow_pickle: also read files that can run code when they are read. Only for files that you trust.
            config: text of the config.
            checkpointables: see Detectron2's DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.allow_pickle = allow_pickle
        self.config = config
        self.missing: list[str] = []
        self.saved_iteration = -1
        self._path = ""

    def save(self, name: str, **extra) -> None:
        """Write ``name``.pth, then note it as the last checkpoint; see DetectionCheckpointer.

        Raises:
            NonFiniteError: a weight, or what the optimizer keeps, is not finite; nothing is written.
            OSError: the file cannot be written; what was there before is untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update((key, part.state_dict()) for key, part in self.checkpointables.items())
        data.update(extra)
        if self.config:
            data["config"] = self.config
        path = os.path.join(self.save_dir, f"{name}.pth")
        if names := self._non_finite(data):
            raise NonFiniteError(
                f"{path} is not written: {len(names)} tensors of this run are not finite ({', '.join(names[:3])}); "
                f"the last good checkpoint is {self.last_checkpoint() or 'none'}"
            )
        logger.debug("Saving checkpoint to %s", path)
        os.makedirs(self.save_dir, exist_ok=True)
        with write_whole(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(f"{name}.pth")
        self.saved_iteration = extra.get("iteration", -1)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with write_whole(os.path.join(self.save_dir, TAG), "w") as file:
            file.write(last_filename_basename)

    def _non_finite(self, data: Mapping) -> list[str]:
        constant = {name for name, _ in self.model.named_buffers() if not name.endswith(RUNNING)}
        return [
            _dotted(path)
            for path, tensor in _tensors(data)
            if tensor.is_floating_point()
            and str(path[-1]).removeprefix("module.") not in constant
            and not str(path[-1]).endswith(DERIVED)
            and not tensor.isfinite().all()
        ]

    def last_checkpoint(self) -> str:
        """Path of the checkpoint that ``last_checkpoint`` names, whether or not it is there; "" for none."""
        try:
            name = Path(self.save_dir, TAG).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""
        return os.path.join(self.save_dir, name) if name else ""

    def load(self, path: str, *args, **kwargs) -> dict:
        """See DetectionCheckpointer.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or does not hold weights of this model.
        """
        self._parsed_url_during_load = None  # Detectron2 leaves it where an earlier file could not be loaded
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(f"{path}: no such file of weights (MODEL.WEIGHTS)")
        return super().load(path, *args, **kwargs)

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint to go on from, "" if there is none.

        It is the one that ``last_checkpoint`` names if that can be read, otherwise, with a warning, the newest that
        can. To be called in all processes.

        Raises:
            DamagedFileError: there are checkpoints but none can be read.
        """
        return on_main_process(self._find_readable)

    def _find_readable(self) -> str:
        tagged = self.last_checkpoint()
        others = sorted(own_checkpoints(self.save_dir), key=_iteration, reverse=True)
        problems = [] if tagged else [f"{os.path.join(self.save_dir, TAG)} is missing or empty"]
        for path in [*filter(None, [tagged]), *(other for other in others if other != tagged)]:
            try:
                check_intact(path)
            except (DamagedFileError, OSError) as error:
                problems.append(str(error))
                continue
            if problems:
                logger.warning(
                    "%s: going on with the newest checkpoint that can be read, %s", "; ".join(problems), path
                )
            return path
        if tagged or others:
            raise DamagedFileError(
                f"None of the checkpoints in {self.save_dir} can be read ({'; '.join(problems)}): start again with "
                "--overwrite, which moves this folder aside, or in another OUTPUT_DIR"
            )
        return ""

    def remove_oldest(self, keep: int) -> None:
        """Remove checkpoints of single iterations, except the last ``keep`` that were written."""
        numbered = [path for path in own_checkpoints(self.save_dir) if re.search(r"\d", os.path.basename(path))]
        for path in sorted(numbered, key=os.path.getmtime, reverse=True)[keep:]:
            try:
                os.remove(path)
            except OSError as error:
                logger.warning("%s: cannot remove this old checkpoint (%s)", path, error.strerror)

    def read(self, path: str) -> dict:
        """Read a checkpoint without loading anything from it; errors as of :func:`.checkpoint_files.read_torch`."""
        return self._load_file(path)

    def restore(self, checkpoint: dict) -> None:
        """Load all parts of a checkpoint that :meth:`read` gave."""
        self._load_model(checkpoint)
        for key, part in self.checkpointables.items():
            if key in checkpoint:
                part.load_state_dict(checkpoint[key])

    def _load_file(self, filename: str) -> dict:
        checkpoint = self._read_file(filename)
        for weights in (checkpoint["model"], checkpoint.get("average", {})):
            for name in [name for name in weights if OLD_PROJECTORS.match(name)]:
                weights[OLD_PROJECTORS.sub(r"\1contrast.projectors.", name)] = weights.pop(name)
        self._check_tensors(checkpoint)
        return checkpoint

    def _check_tensors(self, checkpoint: Mapping) -> None:
        """Raise ValueError unless all tensors of a checkpoint are real numbers, in full, and finite."""
        for path, tensor in _tensors(checkpoint):
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
                kind = "without data" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
                raise ValueError(
                    f"{self._path}: the tensor {_dotted(path)} is {kind}: expected real numbers, and all of them"
                )
        if names := self._non_finite(checkpoint):
            raise ValueError(
                f"{self._path}: {len(names)} of its tensors are not finite ({', '.join(names[:3])}): take an earlier "
                "checkpoint, or other weights"
            )

    def _read_file(self, filename: str) -> dict:
        self._path = filename
        check_intact(filename)
        kind = file_kind(filename)
        if kind == "safetensors":
            try:
                with safetensors.safe_open(filename, "pt") as file:
                    return {**(file.metadata() or {}), "model": {name: file.get_tensor(name) for name in file.keys()}}
            except safetensors.SafetensorError as error:
                raise DamagedFileError(f"{filename} is damaged: it was cut off or altered ({error})") from error
        if kind == "torch":
            return self._find_weights(read_torch(filename, allow_pickle=self.allow_pickle))
        if not self.allow_pickle:
            raise ValueError(
                f"{filename} is a pickle file (or none of those that are read here: .pth, .safetensors). Pickle files "
                "can run any code when they are read: set MODEL.WEIGHTS_ALLOW_PICKLE True if you trust its source"
            )
        return super()._load_file(filename)

    def _find_weights(self, loaded: object) -> dict:
        if isinstance(loaded, Mapping):
            for name in CONTAINERS:
                if isinstance(loaded.get(name), Mapping):
                    self._check_names(loaded[name])
                    return dict(loaded) if name == "model" else {"model": loaded[name]}
            if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
                self._check_names(loaded)
                return {"model": loaded}
        found = list(loaded)[:8] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ValueError(
            f"{self._path} holds no weights: expected tensors by name, or those under one of {CONTAINERS}, "
            f"found {found}"
        )

    def _check_names(self, weights: Mapping) -> None:
        for name, value in weights.items():
            if not isinstance(name, str) or not isinstance(value, (Tensor, np.ndarray)):
                raise ValueError(
                    f"{self._path}: among its weights is {shown(name)} with {type(value).__name__} "
                    f"{'' if isinstance(value, Tensor) else shown(value)}: expected tensors by name"
                )

    def _load_model(self, checkpoint: dict):
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        backbone, prefix = innermost_backbone(self.model)
        is_whole = any(re.match(r"(module\.)?sem_seg_head\.", name) for name in weights)
        is_caffe2 = checkpoint.get("__author__") == "Caffe2"
        if is_caffe2 and not isinstance(backbone, ResNet):
            raise ValueError(
                f"{self._path} holds weights of Caffe2 (BGR, stride in the 1x1 convolution), which only Detectron2's "
                'own ResNet takes: MODEL.BACKBONE.NAME "build_resnet_backbone"'
            )
        if backbone is None or is_whole or is_caffe2:
            own = self.model.state_dict()
            for name in weights.keys() & own.keys():
                if is_integer(weights[name]) and own[name].is_floating_point():
                    raise ValueError(f"{self._path}: {name} holds {weights[name].dtype}: expected floats")
            below = {name: tensor for name, tensor in weights.items() if BACKBONE.match(name)}
            incompatible = super()._load_model(checkpoint)
            if backbone is not None and below:
                incompatible = self._load_below(incompatible, backbone, prefix, below)
            self._report(incompatible, prefix)
            return incompatible
        left = load_backbone(backbone, checkpoint.pop("model"), self._path)
        self.missing = [name for name in self.model.state_dict() if not name.startswith(prefix)]
        self.missing += [prefix + name for name in left]
        return None

    def _load_below(self, incompatible, backbone: nn.Module, prefix: str, weights: Mapping[str, Tensor]):
        """Load the backbone by itself if not all of it, or not it alone, was found by name in a whole model.

        Args:
            incompatible: what Detectron2 found of the whole model.
            backbone: of our model, below its pyramids.
            prefix: of the names of its tensors.
            weights: those of the file's backbone, with its pyramids.

        Returns:
            ``incompatible`` after that.

        Raises:
            ValueError: they are not the weights of this backbone.
        """
        missing = [name for name in incompatible.missing_keys if not name.endswith(DERIVED)]
        misshapen = [name for name, *_ in incompatible.incorrect_shapes]
        if not any(name.startswith(prefix) for name in (*missing, *misshapen, *incompatible.unexpected_keys)):
            return incompatible
        left = load_backbone(backbone, weights, self._path)
        return incompatible._replace(
            missing_keys=[name for name in missing if not name.startswith(prefix)] + [prefix + name for name in left],
            unexpected_keys=[name for name in incompatible.unexpected_keys if not BACKBONE.match(name)],
            incorrect_shapes=[entry for entry in incompatible.incorrect_shapes if not entry[0].startswith(prefix)],
        )

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
    return ContrastCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
        config=cfg.dump(),
        **checkpointables,
    )


def own_checkpoints(folder: str) -> list[str]:
    """Paths of the checkpoints that a run has written to a folder."""
    return [str(path) for path in Path(folder).glob("model_*.pth") if OWN_NAME.fullmatch(path.name)]


def _iteration(path: str) -> int:
    """The iteration that a checkpoint was written after; -1 if it does not say so."""
    if number := re.search(r"\d+", os.path.basename(path)):
        return int(number[0])
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["iteration"])
    except Exception:  # damaged, which is found out and said when its turn comes
        return -1


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _tensors(tree: Mapping, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """The tensors in nested dicts, each with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield (*path, key), value
        elif isinstance(value, Mapping):
            yield from _tensors(value, (*path, key))
