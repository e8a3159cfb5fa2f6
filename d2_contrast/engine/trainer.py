"""The trainer: Detectron2's, with this project's data, optimizer, schedule, step and evaluation."""

import weakref
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from ..data import build_test_loader, build_train_loader
from ..evaluation import build_evaluator, build_inference_model
from .averaging import UpdateAverage, averaged_weights, build_average
from .checkpoint import build_checkpointer
from .data_parallel import share_among_processes
from .optimizer import build_optimizer
from .train_step import TrainStep


class Trainer(DefaultTrainer):
    """Train and evaluate a segmentor as a config says; see DefaultTrainer for its methods and hooks.

    Attributes:
        network: the segmentor, not wrapped for several processes.
        average: the moving average of its weights, or None.
        last_results: results of the last evaluation, on the main process; {} before it and elsewhere.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer's own: it wraps models for several GPUs only, and its step has no accumulation.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = share_among_processes(cfg, model)
        self._trainer = TrainStep(
            model,
            data_loader,
            optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # Unwrapped, so that the average and its checkpoint have the names of a single process.
        self.network = getattr(model, "module", model)
        self.average = build_average(cfg, self.network)
        self.checkpointer = build_checkpointer(cfg, model, self.average, trainer=weakref.proxy(self))
        self.last_results: dict = {}
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """See DefaultTrainer. A poly schedule ends at MAX_ITER, even if the run to resume had another."""
        super().resume_or_load(resume)
        if hasattr(self.scheduler, "max_iters"):
            self.scheduler.max_iters = self.max_iter

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; the average is updated before any of them can save or evaluate it."""
        hooks = [
            EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate) if isinstance(hook, EvalHook) else hook
            for hook in super().build_hooks()
        ]
        if self.average is not None:
            hooks.insert(0, UpdateAverage(self.average, self.network))
        return hooks

    def _evaluate(self) -> dict:
        with averaged_weights(self.network, self.average):
            self.last_results = self.test(self.cfg, self.model) or {}
        return self.last_results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None) -> dict:
        """Evaluate on DATASETS.TEST, by sliding windows and several views of an image where TEST asks for them."""
        return super().test(cfg, build_inference_model(cfg, model), evaluators)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)
