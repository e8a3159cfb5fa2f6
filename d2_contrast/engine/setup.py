"""From the command line to a checked config."""

import difflib
import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.registry import Registry

from ..config import default_config, load_config
from ..config_files import find_config, flatten
from ..config_ranges import is_unused
from ..data import check_metadata, check_same_classes, get_ignore_label, register_folders
from ..data.files import limit_pixels
from ..errors import shown
from ..modeling import PIXEL_LOSS_REGISTRY
from .console import start_logging, without_warnings_of
from .parallel import on_main_process
from .run_folder import prepare_folder
from .schedule import check_schedule

# Keys of MODEL.SEM_SEG_HEAD, and of MODEL.AUX_HEAD, that heads of this project do not read.
UNREAD_BY_HEADS = {"ASPPHead": ("CONVS_DIM", "DROPOUT"), "DeepSupervisionHead": ("DROPOUT",)}

logger = logging.getLogger(__name__)


def setup(args: Namespace) -> CfgNode:
    """Read and check the config that ``args`` describes, make sure that its OUTPUT_DIR is free, start logging
    there, and seed random numbers.

    Like Detectron2's ``default_setup``, but it does not write the config: the trainer does, since a resumed run may
    change it.

    Args:
        args: of :func:`d2_contrast.train.parse_arguments`, or of Detectron2's ``default_argument_parser``.

    Raises:
        FolderInUseError: a run is going on in OUTPUT_DIR, or has been there and is neither resumed nor overwritten.
        KeyError, ValueError: the config has an unknown key, or a value that does not fit the datasets.
    """
    if args.config_file:
        args.config_file = find_config(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    for section, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS")):
        section[key] = os.path.expanduser(section[key])  # no shell does it in a config
    wanted = cfg.MODEL.DEVICE
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    check_device(wanted)
    limit_pixels(cfg.INPUT.MAX_PIXELS)
    register_folders(cfg.DATASETS.FOLDERS)
    check_names(cfg)
    check_datasets(cfg, ("TEST",) if args.eval_only else ("TRAIN", "TEST"))
    check_parts(cfg)
    if not args.eval_only:
        check_schedule(cfg)
    cfg.freeze()
    moved = "" if args.eval_only else _prepare_folder(cfg, args)
    _start_logging(cfg, args)
    if moved:
        logger.warning("The run that was in %s is now in %s", cfg.OUTPUT_DIR, moved)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if cfg.get("FLOAT32_PRECISION"):  # a key of newer Detectron2 alone
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    defaults = flatten(default_config())
    unread = unread_keys(cfg)
    changed = [key for key, value in flatten(cfg).items() if value != defaults.get(key)]
    if ineffective := [key for key in changed if is_unused(key) or key in unread]:
        logger.warning("These settings are of no effect in this network: %s", ", ".join(ineffective))
    if cfg.MODEL.DEVICE != wanted:
        logger.warning("MODEL.DEVICE is %r but this machine has no GPU that torch can use: running on cpu", wanted)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Processes that each use all cores slow each other down many times.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    return cfg


def _prepare_folder(cfg: CfgNode, args: Namespace) -> str:
    resume, overwrite = getattr(args, "resume", False), getattr(args, "overwrite", False)
    if resume and overwrite:
        raise ValueError("--resume goes on with the run in OUTPUT_DIR, --overwrite moves it aside: give one of them")
    folder, weights = os.path.realpath(cfg.OUTPUT_DIR), os.path.realpath(cfg.MODEL.WEIGHTS)
    if overwrite and cfg.MODEL.WEIGHTS and os.path.commonpath([folder, weights]) == folder:
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} lies in OUTPUT_DIR {cfg.OUTPUT_DIR}, which --overwrite moves aside: "
            "name another OUTPUT_DIR"
        )
    return on_main_process(partial(prepare_folder, cfg.OUTPUT_DIR, resume=resume, overwrite=overwrite))


def _start_logging(cfg: CfgNode, args: Namespace) -> None:
    if comm.is_main_process():
        try:
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        except OSError as error:
            raise ValueError(f"OUTPUT_DIR {shown(cfg.OUTPUT_DIR)} cannot be made ({error.strerror})") from error
    start_logging(cfg.OUTPUT_DIR)
    logger.debug("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    with without_warnings_of("torch.utils.cpp_extension"):  # it misses CUDA where there is no GPU
        logger.debug("Environment:\n%s", collect_env_info())
    logger.debug("Command line: %s", args)
    logger.debug("Config:\n%s", cfg.dump())


def check_device(name: str) -> None:
    """Check that MODEL.DEVICE can compute, and is not a GPU that this machine lacks beside others.

    Raises:
        ValueError: it cannot, or it is.
    """
    if name == "meta":
        raise ValueError("MODEL.DEVICE is 'meta', which holds no numbers: expected another device, such as 'cpu'")
    index, count = name.partition("cuda:")[2], torch.cuda.device_count()
    if index and 0 < count <= int(index):
        raise ValueError(f"MODEL.DEVICE is {name!r}: expected one of the {count} GPUs that torch finds, from cuda:0 on")


def check_names(cfg: CfgNode) -> None:
    """Check that the parts of the network are registered.

    Raises:
        KeyError: one is not.
    """
    model = cfg.MODEL
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.UPER.BOTTOM_UP", model.UPER.BOTTOM_UP, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
        ("MODEL.AUX_HEAD.NAME", model.AUX_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
        ("MODEL.PIXEL_LOSS.NAME", model.PIXEL_LOSS.NAME, PIXEL_LOSS_REGISTRY),
        ("MODEL.PIXEL_LOSS.AUX_NAME", model.PIXEL_LOSS.AUX_NAME, PIXEL_LOSS_REGISTRY),
    ):
        if name and name not in registry:
            known = ", ".join(sorted(known for known, _ in registry))
            raise KeyError(f"{key}: {name!r} is not registered; those that are: {known}")


def check_parts(cfg: CfgNode) -> None:
    """Check that the parts of the network read what the config wants most: losses, and pretrained weights.

    Raises:
        ValueError: one does not, so that the key would be ignored.
    """
    model = cfg.MODEL
    if _is_detectron2s(META_ARCH_REGISTRY, model.META_ARCHITECTURE):
        wanted = ["MODEL.CONTRAST.ENABLED"] if model.CONTRAST.ENABLED else []
        wanted += ["MODEL.AUX_HEAD.NAME"] if model.AUX_HEAD.NAME else []
        if model.META_ARCHITECTURE != "SemanticSegmentor" or wanted:
            does = f"ignores {' and '.join(wanted)}" if wanted else "is not trained on label maps alone"
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {model.META_ARCHITECTURE!r}, which {does}: expected 'ContrastiveSegmentor'"
            )
    loss, plain = model.PIXEL_LOSS, default_config().MODEL.PIXEL_LOSS
    head = model.SEM_SEG_HEAD.NAME
    if _is_detectron2s(SEM_SEG_HEADS_REGISTRY, head) and (loss.NAME != plain.NAME or list(loss.CLASS_WEIGHTS)):
        key = "NAME" if loss.NAME != plain.NAME else "CLASS_WEIGHTS"
        raise ValueError(
            f"MODEL.PIXEL_LOSS.{key} is {shown(loss[key])}, which the head {head!r} of Detectron2 ignores: expected "
            f"{shown(plain[key])}, or a head of this project, such as 'UPerHead'"
        )
    name = _innermost_backbone(cfg)
    if model.BACKBONE.PRETRAINED and not model.WEIGHTS and _is_detectron2s(BACKBONE_REGISTRY, name):
        raise ValueError(
            f"MODEL.BACKBONE.PRETRAINED is True, which the backbone {name!r} of Detectron2 ignores: name a file of "
            "weights by MODEL.WEIGHTS"
        )


def unread_keys(cfg: CfgNode) -> set[str]:
    """Keys that no part of the network reads, such as one of this project where that part is Detectron2's."""
    head, aux_head = cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.AUX_HEAD.NAME
    keys = set()
    for section, name in (("SEM_SEG_HEAD", head), ("AUX_HEAD", aux_head)):
        if name:
            unread = ("DROPOUT",) if _is_detectron2s(SEM_SEG_HEADS_REGISTRY, name) else UNREAD_BY_HEADS.get(name, ())
            keys |= {f"MODEL.{section}.{key}" for key in unread}
    if _is_detectron2s(BACKBONE_REGISTRY, _innermost_backbone(cfg)):
        keys |= {"MODEL.BACKBONE.NORM"}
    else:
        keys |= {"MODEL.BACKBONE.FREEZE_AT"}
    if _innermost_backbone(cfg) == "ViTPyramid":
        keys |= {"MODEL.TIMM.OUTPUT_STRIDE"}
    # The first prediction of OCRHead is an auxiliary one; Detectron2's heads keep their own loss.
    if head != "OCRHead" and (not aux_head or _is_detectron2s(SEM_SEG_HEADS_REGISTRY, aux_head)):
        keys |= {"MODEL.PIXEL_LOSS.AUX_NAME"}
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        keys |= {"SOLVER.MOMENTUM", "SOLVER.NESTEROV"}
    return keys


def _innermost_backbone(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    return cfg.MODEL.UPER.BOTTOM_UP if name == "UPerFPN" else name


def _is_detectron2s(registry: Registry, name: str) -> bool:
    return registry.get(name).__module__.startswith("detectron2.")


def check_datasets(cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST")) -> None:
    """Check that the datasets exist, that what describes them makes sense, and that the network fits them all.

    Args:
        cfg: the config.
        splits: those that are used; the first must not be empty.

    Raises:
        KeyError: a dataset is not registered.
        ValueError: there is none, the metadata of one is invalid, or one differs from the network in the number of
            classes or in the ignore label, or from another in the names or the order of the classes.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    if not cfg.DATASETS[splits[0]]:
        raise ValueError(f"DATASETS.{splits[0]} is empty: name a dataset, or a config that does by --config-file")
    for split in splits:
        key, names = f"DATASETS.{split}", cfg.DATASETS[split]
        for name in names:
            if name not in DatasetCatalog.list():
                known = [n for n in DatasetCatalog.list() if "stuff_classes" in _metadata(n)]
                similar = ", ".join(difflib.get_close_matches(name, known))
                families = ", ".join(sorted({n.rpartition("_")[0] or n for n in known}))
                raise KeyError(
                    f"{key}: dataset {shown(name)} is not registered; "
                    + (f"similar names: {similar}" if similar else f"those to segment begin with {families}")
                )
            metadata = MetadataCatalog.get(name)
            check_metadata(metadata)
            classes = metadata.stuff_classes
            if len(classes) != head.NUM_CLASSES:
                raise ValueError(
                    f"{key}: dataset {name!r} has {len(classes)} classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                    f"{head.NUM_CLASSES}"
                )
            ignore_label = get_ignore_label(metadata)
            if ignore_label != head.IGNORE_VALUE:
                raise ValueError(
                    f"{key}: dataset {name!r} has the ignore label {ignore_label} but "
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}: set it to {ignore_label}"
                )
    check_same_classes([MetadataCatalog.get(name) for split in splits for name in cfg.DATASETS[split]])


def _metadata(name: str) -> dict:
    return MetadataCatalog.get(name).as_dict()
