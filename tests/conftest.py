import logging
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

# Before torch is imported, here and in processes that tests start: tensors are small, and threads that wait for each
# other on a busy machine can take longer than all the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def seed_draws():
    """What a test draws without a seed of its own is the same in each run: what fails once fails again."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def drop_closed_logs():
    """Runs of earlier tests log to streams that ended with these tests, and to the terminal."""
    console = getattr(sys.modules.get("d2_contrast.engine.console"), "CONSOLE", None)
    for name in ("fvcore", "detectron2", "d2_contrast", "py.warnings"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if handler is console or getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def trained_twins(tmp_path_factory):
    """Folders of two runs, without and with the losses; to be left as they are."""
    from tiny_runs import train_twins

    return train_twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture
def twins(trained_twins, tmp_path):
    """Copies of them that a test can change."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in trained_twins]


@pytest.fixture
def forget_datasets():
    """Datasets that a test registers are forgotten after it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2_contrast.data.datasets import folders

    known = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        folders._registered.pop(name, None)
