"""Training and evaluation: setup, launching, the trainer and what it is made of."""

from .launch import launch
from .optimizer import build_optimizer
from .run import evaluate, train
from .setup import parse_arguments, setup
from .train_step import TrainStep
from .trainer import Trainer

__all__ = ["TrainStep", "Trainer", "parse_arguments", "build_optimizer", "evaluate", "launch", "setup", "train"]
