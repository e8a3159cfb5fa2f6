"""Training and evaluation: setup, launching, the trainer and what it is made of."""

from .launch import launch
from .optimizer import build_optimizer
from .run import evaluate, train
from .setup import argument_parser, setup
from .train_step import TrainStep
from .trainer import Trainer

__all__ = ["TrainStep", "Trainer", "argument_parser", "build_optimizer", "evaluate", "launch", "setup", "train"]
