"""The trainer: Detectron2's, with this project's data, optimizer, schedule, step and evaluation."""

import logging
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, LRScheduler, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, TensorboardXWriter
from torch import nn

from ..arrivals import arrive
from ..config_ranges import check_config, ungrouped_channels
from ..data import build_test_loader, build_train_loader, find_stream
from ..errors import explain
from ..evaluation import build_evaluator, build_inference_model, claim_evaluation_folder, find_evaluation_folder
from ..modeling import ContrastiveSegmentor
from ..modeling.compilation import compile_network
from ..output import write_text
from .averaging import UpdateAverage, averaged_weights, build_average
from .checkpoint import ContrastCheckpointer, NonFiniteError, build_checkpointer
from .console import FirstIteration, ProgressWriter
from .data_parallel import scale_to_processes, share_among_processes, share_buffers, split_batches
from .metrics_writer import LateWriter, MetricsWriter, put_back, read_lines, recent_values
from .optimizer import build_optimizer
from .parallel import on_main_process
from .pictures import PictureHook
from .resume import check_resumable, config_changes, describe_changes, describe_inexact, keep_origin
from .run_folder import METRICS, check_nothing_lost
from .step_dump import dump_path, save_step
from .stop import StopEvaluation, StoppableEvaluator, Stopped, StopRequests
from .stripped import BestWeights
from .train_step import NonFinitePolicy, TrainStep
from .wandb_writer import WandbWriter, start_record

CONFIG_FILE = "config.yaml"

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Train and evaluate a segmentor as a config says; see DefaultTrainer for its methods and hooks.

    Attributes:
        network: the segmentor, not wrapped for several processes.
        average: the moving average of its weights, or None.
        last_results: results of the last evaluation, on the main process; {} before it and elsewhere.
        evaluation_folders: where the last evaluation was written, by dataset, also one before the run was resumed; {}
            before.
        seed: what the order of the data, its augmentation, and the random numbers of the steps follow from.
    """

    def __init__(self, cfg: CfgNode, download: bool = True):
        """
        Args:
            cfg: a config of :func:`~.setup.setup`.
            download: let the backbone download what MODEL.BACKBONE.PRETRAINED asks for; a run that goes on needs none.
        """
        # Not DefaultTrainer's own: it wraps models for several GPUs only, and its step has no accumulation.
        TrainerBase.__init__(self)
        cfg = split_batches(scale_to_processes(cfg, comm.get_world_size()), comm.get_world_size())
        check_config(cfg)
        model = self.build_model(cfg if download else without_download(cfg))
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.stream = find_stream(data_loader)
        if self.stream is not None:
            self.seed = self.stream.seed
        else:
            self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        arrive()
        model = share_among_processes(cfg, model)
        self._trainer = TrainStep(
            model,
            data_loader,
            optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            non_finite=NonFinitePolicy(cfg.SOLVER.NON_FINITE, cfg.SOLVER.NON_FINITE_MAX_IN_ROW),
            random_key=(self.seed, comm.get_rank()),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # Unwrapped, so that the average and its checkpoint have the names of a single process.
        self.network = getattr(model, "module", model)
        self.average = build_average(cfg, self.network)
        self.checkpointer = build_checkpointer(cfg, model, self.average, trainer=weakref.proxy(self))
        self.last_results: dict = {}
        self.evaluation_folders: dict[str, str] = {}
        self.stop = StopRequests()
        self._best: BestWeights | None = None
        self._config_comments: list[str] = []
        self._recent: dict = {}
        self._start_position = 0
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in OUTPUT_DIR if ``resume`` is set and there is one, else load MODEL.WEIGHTS.

        Weights, average, scaler, what the optimizer keeps, the iteration and the place in the data come from the
        checkpoint; learning rates and all other settings from the config. Settings that differ from those of the
        checkpoint's run are logged, and what else keeps this run from going on exactly as it would have uninterrupted.

        Raises:
            FolderInUseError: OUTPUT_DIR has results of a run whose checkpoints are gone.
            ValueError: the checkpoint does not fit this config; nothing of it is loaded.
        """
        path = self.checkpointer.get_checkpoint_file() if resume else ""
        if not path:
            if resume:
                check_nothing_lost(self.cfg.OUTPUT_DIR, self.cfg.SOLVER.CHECKPOINT_PERIOD)
                logger.warning("There is no checkpoint in %s to go on from: starting anew", self.cfg.OUTPUT_DIR)
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            return
        checkpoint = self.checkpointer.read(path)
        earlier = _read_text(os.path.join(self.cfg.OUTPUT_DIR, CONFIG_FILE))
        changes = config_changes(checkpoint.get("config", earlier), self.cfg)
        check_resumable(checkpoint, path, self.network, self._trainer, self.average, changes)
        try:
            self.checkpointer.restore(checkpoint)
        except Exception as error:
            raise ValueError(
                f"{path} cannot be resumed: its parts are not laid out as those of a checkpoint of this project are "
                f"({type(error).__name__}: {error})"
            ) from error
        self.start_iter = self.iter + 1
        logger.info("Going on from %s at iteration %d of %d", path, self.start_iter, self.max_iter)
        if self.start_iter >= self.max_iter:
            logger.warning("Nothing is left to train: SOLVER.MAX_ITER is %d", self.max_iter)
        else:
            self._go_on_in_data(checkpoint["trainer"].get("data"))
        self.evaluation_folders = on_main_process(self._earlier_evaluations)

        self.cfg = keep_origin(self.cfg, changes)
        self.checkpointer.config = self.cfg.dump()
        self._config_comments = [line for line in earlier.splitlines() if line.startswith("#")]
        if changes:
            lines = describe_changes(changes, self.start_iter)
            logger.warning("Settings that differ from those that %s was written with:\n  %s", path, "\n  ".join(lines))
            self._config_comments += [f"# Resumed at iteration {self.start_iter} with other settings:"]
            self._config_comments += [f"#   {line}" for line in lines]

    def describe(self) -> str:
        """A line on what is trained on what."""
        cfg, model = self.cfg, self.cfg.MODEL
        backbone = model.BACKBONE.NAME
        backbone += f" over {model.UPER.BOTTOM_UP}" if backbone == "UPerFPN" else ""
        if backbone.endswith(("TimmBackbone", "HRNet", "ViTPyramid")):
            backbone += f" {model.TIMM.NAME}"
        elif backbone.endswith("SMPBackbone"):
            backbone += f" {model.SMP.NAME}"
        parameters = sum(p.numel() for p in self.network.parameters()) / 1e6
        losses = f"contrastive losses on {', '.join(model.CONTRAST.IN_FEATURES)}" if model.CONTRAST.ENABLED else ""
        images = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS
        return (
            f"Training {model.SEM_SEG_HEAD.NAME} on {backbone} ({parameters:.1f} M parameters){losses and ' with '}"
            f"{losses} on {', '.join(cfg.DATASETS.TRAIN)}: iterations {self.start_iter + 1:,} to {self.max_iter:,} of "
            f"{images} images on {comm.get_world_size()} x {model.DEVICE}"
        )

    def save_config(self) -> None:
        """Write the config to OUTPUT_DIR, with comments on what changed when the run was resumed."""
        save_config(self.cfg, self.cfg.OUTPUT_DIR, self._config_comments)

    def data_state(self) -> dict:
        """Where the run is in its data after ``iter``, and what its course depends on besides the config."""
        batch = self.cfg.SOLVER.IMS_PER_BATCH
        step = batch * self.cfg.SOLVER.ACCUMULATION_STEPS
        return {
            "seed": self.seed,
            "position": self._start_position + (self.iter + 1 - self.start_iter) * step,  # images of all processes
            "samples": None if self.stream is None else len(self.stream.samples),
            "batch": batch,
            "step": step,
            "processes": comm.get_world_size(),
            "threads": torch.get_num_threads(),
        }

    def _earlier_evaluations(self) -> dict[str, str]:
        """The folders of the last evaluation that the run has before it goes on, by dataset."""
        found = {name: find_evaluation_folder(self.cfg, name, self.start_iter) for name in self.cfg.DATASETS.TEST}
        return {name: folder for name, folder in found.items() if folder is not None}

    def _go_on_in_data(self, before: dict | None) -> None:
        """Set the place in the data by what :meth:`data_state` gave when the checkpoint was written."""
        if before is not None and self.cfg.SEED < 0:
            self.seed = before["seed"]
        now = self.data_state()
        self._start_position = self.start_iter * now["step"] if before is None else before["position"]
        if self.stream is not None:
            self.stream.seed, self.stream.start = self.seed, self._start_position
        self._trainer.random_key = (self.seed, comm.get_rank())
        logger.info("Going on in the data after %d images", self._start_position)
        if reasons := describe_inexact(before, now, self.cfg):
            logger.warning("Not exactly as without the interruption:\n  %s", "\n  ".join(reasons))

    def state_dict(self) -> dict:
        """Iteration, place in the data, state of the step, and the values that the next lines of the log need."""
        state = {**super().state_dict(), "data": self.data_state()}
        return {**state, "recent": recent_values(self.storage, self.iter)} if hasattr(self, "storage") else state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the iteration and the state of the step; learning rates follow from the iteration and the config."""
        self._recent = state_dict.get("recent", {})
        hooks = {name: state for name, state in state_dict.get("hooks", {}).items() if name != LRScheduler.__name__}
        super().load_state_dict({**state_dict, "hooks": hooks})
        # Detectron2's schedules are functions of the iteration. They end at MAX_ITER, which the run may have passed.
        self.scheduler.load_state_dict({"last_epoch": min(self.iter + 1, self.max_iter)})
        rates = self.scheduler.get_lr()
        self.scheduler.load_state_dict({"_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def train(self) -> dict:
        """Train and evaluate; see DefaultTrainer.

        The run saves a checkpoint before it ends early, after a signal (SIGTERM, Ctrl-C) or an exception.

        Returns:
            ``last_results``.

        Raises:
            Stopped: a signal ended the run.
        """
        with EventStorage(self.start_iter) as self.storage, self.stop:
            self.iter = self.start_iter
            try:
                self.before_train()
                self._catch_up()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.stop.check()
                self.iter = self._done + 1
                self.after_train()
            except BaseException as error:
                self._end_early(error)
                raise
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self.last_results)
        return self.last_results

    @property
    def _done(self) -> int:
        """The last complete iteration, as checkpoints count. The schedule knows it, but ends at MAX_ITER."""
        return max(self.scheduler.last_epoch, self.start_iter) - 1

    def _catch_up(self) -> None:
        """Do what follows a checkpoint in the same iteration, if the run was killed in between."""
        if not self.start_iter:
            return
        done = self.start_iter - 1
        put_back(self.storage, self._recent)
        self.iter = self.storage.iter = done
        owes_evaluation = on_main_process(self._lacks_evaluation, done)
        for hook in self._hooks:
            if isinstance(hook, PeriodicWriter) or (isinstance(hook, EvalHook) and owes_evaluation):
                hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def _lacks_evaluation(self, iteration: int) -> bool:
        """Whether the log has no results of an evaluation after an iteration."""
        path = os.path.join(self.cfg.OUTPUT_DIR, METRICS)
        records = read_lines(path) if os.path.isfile(path) else []
        names = [name for record in records if record["iteration"] == iteration for name in record]
        names += [name for name, kept in self._recent.items() if kept["values"][-1][1] == iteration]
        return not any("sem_seg/" in name for name in names)

    def run_step(self) -> None:
        """See DefaultTrainer. Where numbers that are not finite stop the run, the step is written to OUTPUT_DIR.

        Raises:
            NonFiniteError: see TrainStep; the message also names the last checkpoint and what was written.
        """
        try:
            super().run_step()
        except NonFiniteError as error:
            rank = comm.get_rank()
            if rank in error.ranks:
                try:
                    save_step(dump_path(self.cfg.OUTPUT_DIR, self.iter, rank), self.cfg, self._trainer, str(error))
                except OSError as failure:
                    logger.warning("The step is not written: %s", failure)
            raise NonFiniteError(
                f"{error}. The last good checkpoint is {self.checkpointer.last_checkpoint() or 'none'}. To run this "
                f"step again: d2-contrast replay {dump_path(self.cfg.OUTPUT_DIR, self.iter, error.ranks[0])}"
            ) from error
        if isinstance(self.network, ContrastiveSegmentor):
            self.network.log_gradients()

    def _end_early(self, error: BaseException) -> None:
        self.stop.answer()
        if not isinstance(error, Stopped):
            sentence = explain(error)
            logger.error("%s", sentence or "Exception in training", exc_info=None if sentence else error)
        if comm.is_main_process():
            logger.warning("This run ends early. %s", self._rescue(error))
            for hook in self._hooks:
                if isinstance(hook, PeriodicWriter):
                    with suppress(Exception):  # the fault itself has been reported
                        hook.after_train()
        if isinstance(error, Stopped):
            arrive()
            comm.synchronize()  # a process that ends before the checkpoint is written may have the others killed
        elif self.stop.received:  # workers of the data loader have got the signal, too, or another process of the job
            raise Stopped(128 + self.stop.received) from error

    def _rescue(self, error: BaseException) -> str:
        """Save the completed iterations if possible, and say what the run can be resumed from."""
        done = self._done
        last = f"the last checkpoint is {self.checkpointer.last_checkpoint() or 'none'}"
        if isinstance(error, NonFiniteError):
            return f"Nothing is saved, since not all numbers are finite; {last}"
        if self._trainer.is_updating:
            return f"Nothing is saved, since weights are updated in part; {last}"
        if done < self.start_iter or done == self.checkpointer.saved_iteration:
            return f"Nothing was trained since; {last}"
        self.iter = done
        try:
            self.checkpointer.save(f"model_{done:07d}", iteration=done)
        except Exception as failure:
            return f"Nothing is saved ({failure}); {last}"
        if self.cfg.SOLVER.MAX_TO_KEEP:
            self.checkpointer.remove_oldest(self.cfg.SOLVER.MAX_TO_KEEP)
        return f"{self.checkpointer.last_checkpoint()} is saved: go on with --resume"

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; the average is updated before any of them can save or evaluate it."""
        hooks = [self._our_hook(hook) for hook in super().build_hooks()]
        if self.cfg.VIS_PERIOD > 0:
            # After the evaluation, whose confusion matrix it draws, and before the writers.
            after = max(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
            hooks.insert(after + 1, PictureHook(self.cfg))
        if self.average is not None:
            hooks.insert(0, UpdateAverage(self.average, self.network))
        return [FirstIteration(), *hooks] if comm.is_main_process() else hooks

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers, with others for metrics.json and for the terminal."""
        folder, trainer = self.cfg.OUTPUT_DIR, weakref.proxy(self)
        os.makedirs(folder, exist_ok=True)
        writers = [
            # Into log.txt. Beyond its last iteration it would tell a negative time that is left.
            LateWriter(lambda: CommonMetricPrinter(max(trainer.max_iter, trainer.start_iter))),
            ProgressWriter(self.max_iter),
            LateWriter(lambda: MetricsWriter(os.path.join(folder, METRICS), start_iter=trainer.start_iter)),
            LateWriter(lambda: TensorboardXWriter(folder, purge_step=trainer.start_iter)),
        ]
        if self.cfg.WANDB.PROJECT:
            record = start_record(self.cfg)
            writers.append(LateWriter(lambda: WandbWriter(record, start_iter=trainer.start_iter)))
        return writers

    def _our_hook(self, hook: HookBase | None) -> HookBase | None:
        if isinstance(hook, EvalHook):
            return EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        if isinstance(hook, PeriodicCheckpointer):
            return CheckpointHook(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.SOLVER.MAX_TO_KEEP)
        if isinstance(hook, PeriodicWriter):
            return WriterHook(hook._writers, self.cfg.TEST.EVAL_PERIOD)
        return hook

    def _evaluate(self) -> dict:
        done = self._done
        self.evaluation_folders = claim_folders(self.cfg, iteration=done)
        evaluators = [
            StoppableEvaluator(self.build_evaluator(self.cfg, name, folder), self.stop)
            for name, folder in self.evaluation_folders.items()
        ]
        try:
            with averaged_weights(self.network, self.average):
                share_buffers(self.network)
                self.last_results = self.test(self.cfg, self.model, evaluators) or {}
                if comm.is_main_process():
                    self._best = self._best or BestWeights(self.cfg, goes_on=self.start_iter > 0)
                    self._best.update(self.network, self.last_results, done, is_last=done + 1 >= self.max_iter)
            if done + 1 < self.max_iter:  # those of the end are shown as a table
                for name, result in results_by_dataset(self.cfg, self.last_results).items():
                    logger.info("Iteration %d, %s: %s", done + 1, name, describe_means(result))
        except StopEvaluation:
            self.stop.check()
        return self.last_results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See DefaultTrainer; compiled where MODEL.COMPILE asks for it.

        Raises:
            ValueError: a part of the network refuses what the keys of MODEL say; KeyError, RuntimeError: as that does.
        """
        try:
            model = super().build_model(cfg)
        except Exception as error:
            if explain(error) is not None:
                raise
            reason = "; ".join(ungrouped_channels(cfg)) or f"{type(error).__name__}: {error}"
            raise ValueError(f"The network cannot be built as the keys of MODEL say ({reason})") from error
        return compile_network(model) if cfg.MODEL.COMPILE else model

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
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)


class CheckpointHook(PeriodicCheckpointer):
    """Save every ``period`` iterations and at the end; keep the newest ``max_to_keep`` of all, 0 for every one."""

    def __init__(self, checkpointer: ContrastCheckpointer, period: int, max_to_keep: int):
        super().__init__(checkpointer, period)
        self.keep = max_to_keep

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_end = done >= self.max_iter
        if is_end:  # not under the number of the iteration as well: both files would hold the same
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=self.trainer.iter)
        else:
            super().after_step()
        if self.keep and (is_end or done % self.period == 0):
            self.checkpointer.remove_oldest(self.keep - is_end)


class WriterHook(PeriodicWriter):
    """Write every 20 iterations, and after each evaluation: writers take no more than the last value of a name."""

    def __init__(self, writers: Sequence[EventWriter], evaluation_period: int):
        super().__init__(writers)
        self.evaluation_period = evaluation_period

    def after_step(self) -> None:
        if self.evaluation_period > 0 and (self.trainer.iter + 1) % self.evaluation_period == 0:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()


def results_by_dataset(cfg: CfgNode, results: dict) -> dict[str, dict]:
    """Results of Detectron2's ``test``, which leaves out the name of a single dataset, by dataset."""
    if not results:
        return {}
    return results if len(cfg.DATASETS.TEST) > 1 else dict.fromkeys(cfg.DATASETS.TEST, results)


def describe_means(result: dict) -> str:
    """The mean IoUs in the results on a dataset."""
    means = {key: value for key, value in result.get("sem_seg", {}).items() if key.startswith("mIoU")}
    return ", ".join(f"{key} {value:.2f} %" for key, value in means.items())


def without_download(cfg: CfgNode) -> CfgNode:
    """The config of a network that gets its weights from a checkpoint: none are downloaded for it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAINED = False
    cfg.freeze()
    return cfg


def claim_folders(cfg: CfgNode, **origin) -> dict[str, str]:
    """A folder for the results on each of DATASETS.TEST; ``origin`` as of ``claim_evaluation_folder``."""
    names = cfg.DATASETS.TEST
    return on_main_process(lambda: {name: claim_evaluation_folder(cfg, name, **origin) for name in names})


def save_config(cfg: CfgNode, folder: str, comments: Sequence[str] = ()) -> None:
    """Write a config to ``config.yaml`` in a folder, below some lines of comment; in the main process alone."""
    if comm.is_main_process():
        write_text(os.path.join(folder, CONFIG_FILE), "\n".join([*comments, cfg.dump()]))


def _read_text(path: str) -> str:
    """The content of a text file, "" if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
