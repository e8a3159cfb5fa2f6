"""From the command line to a checked config."""

import logging
import os
from argparse import Namespace

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import load_config
from ..config_files import find_config
from ..data import check_metadata, check_same_classes, get_ignore_label, register_folders

logger = logging.getLogger(__name__)


def setup(args: Namespace) -> CfgNode:
    """Read and check the config that ``args`` describes; start logging; save the config to its OUTPUT_DIR.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        KeyError, ValueError: the config has an unknown key, or a value that does not fit the datasets.
    """
    if args.config_file:
        args.config_file = find_config(args.config_file)  # default_setup opens it, too
    cfg = load_config(args.config_file, args.opts)
    wanted = cfg.MODEL.DEVICE
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    register_folders(cfg.DATASETS.FOLDERS)
    check_datasets(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2_contrast")
    if cfg.MODEL.DEVICE != wanted:
        logger.warning("MODEL.DEVICE is %r but this machine has no GPU that torch can use: running on cpu", wanted)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Processes that each take all cores slow each other down many times over.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    return cfg


def check_datasets(cfg: CfgNode) -> None:
    """Check that the datasets exist, that what describes them makes sense, and that the network fits them all.

    Raises:
        KeyError: a dataset is not registered.
        ValueError: the metadata of a dataset makes no sense, or it differs from the network in the number of classes
            or in the ignore label, or from another dataset in the names or the order of the classes.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    for key, names in (("DATASETS.TRAIN", cfg.DATASETS.TRAIN), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        if isinstance(names, str):
            raise ValueError(f"{key} is the text {names!r}: expected a list, such as \"('{names}',)\"")
        for name in names:
            if name not in DatasetCatalog.list():
                known = ", ".join(n for n in sorted(DatasetCatalog.list()) if "stuff_classes" in _metadata(n))
                raise KeyError(f"{key}: dataset {name!r} is not registered; those with classes to segment: {known}")
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
    check_same_classes([MetadataCatalog.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)])


def _metadata(name: str) -> dict:
    return MetadataCatalog.get(name).as_dict()
