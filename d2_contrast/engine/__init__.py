"""Training and evaluation: setup, launching, the trainer and what it is made of."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)
from ..train import parse_arguments
from .checkpoint import ContrastCheckpointer
from .launch import launch
from .optimizer import build_optimizer
from .run import evaluate, train
from .setup import setup
from .train_step import TrainStep
from .trainer import Trainer

__all__ = [
    "ContrastCheckpointer",
    "TrainStep",
    "Trainer",
    "build_optimizer",
    "evaluate",
    "launch",
    "parse_arguments",
    "setup",
    "train",
]
