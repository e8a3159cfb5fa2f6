"""One optimisation step: accumulation of gradients, mixed precision, numbers that are not finite."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..arrivals import arrive
from ..contrast.device import to_device
from ..contrast.distributed import gather_rows
from ..modeling import precision
from ..random_numbers import derive_seed, seed_generators
from .checkpoint import NonFiniteError
from .rollback import Rollback

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NonFinitePolicy:
    """What to do about a step with a loss or a gradient that is infinite or not a number.

    Args:
        action: "stop" at the first, or "skip" the step: weights, running statistics and moments stay as they were.
        max_in_row: number of skipped steps in a row that stops the run.

    Raises:
        ValueError: one of the two is out of range.
    """

    action: str = "stop"
    max_in_row: int = 10

    def __post_init__(self):
        if self.action not in ("stop", "skip"):
            raise ValueError(f'SOLVER.NON_FINITE is {self.action!r}: expected "stop" or "skip"')
        if self.max_in_row < 1:
            raise ValueError(f"SOLVER.NON_FINITE_MAX_IN_ROW is {self.max_in_row}: expected 1 or more")


class TrainStep(SimpleTrainer):
    """SimpleTrainer with gradients averaged over several batches, mixed precision on any device, and a look at losses
    and gradients before they reach the weights.

    Attributes:
        batches: those of the current or the last step.
        random_key: two integers that the random numbers of the steps follow from, see __init__; None for none.
        skipped: how many steps were skipped because something was not finite.
        is_skipped: whether the last step was.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        *,
        accumulation_steps: int = 1,
        amp_dtype: str | None = None,
        non_finite: NonFinitePolicy | None = None,
        random_key: Sequence[int] | None = None,
    ):
        """
        Args:
            model, data_loader, optimizer: see SimpleTrainer.
            accumulation_steps: batches for one step of the optimizer.
            amp_dtype: "float16" or "bfloat16" for mixed precision; None for full precision.
            non_finite: what to do where numbers are not finite; None stops.
            random_key: seed of the run and rank. The global generators are seeded for each batch by these, the
                iteration and the place of the batch in it, so that a step draws the same numbers in a run that goes on.
                None leaves the generators alone.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(model, data_loader, optimizer)
        if accumulation_steps < 1:
            raise ValueError(f"SOLVER.ACCUMULATION_STEPS is {accumulation_steps}: expected 1 or more")
        self.accumulation_steps = accumulation_steps
        self.amp_dtype = None if amp_dtype is None else precision.amp_dtype(amp_dtype)
        self.non_finite = non_finite or NonFinitePolicy()
        self.device_type = next(model.parameters()).device.type
        # Gradients of half precision underflow; those of bfloat16 do not.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == "float16")
        self.is_updating = False  # weights are changed in part
        self._rollback = Rollback(model)
        self.batches: list = []
        self.random_key = random_key
        self.skipped = self._skipped_in_row = 0
        self.is_skipped = False

    def run_step(self) -> None:
        """Take ``accumulation_steps`` batches and step the optimizer once; write the mean of each loss.

        Raises:
            NonFiniteError: a loss or a gradient is not finite, in any process; weights are as before. All processes
                raise it. ``non_finite`` says which steps are skipped instead. Gradients of float16 may be infinite
                while the scale of the loss is above 1: the scaler then skips the step.
        """
        self.batches = []
        self.optimizer.zero_grad()
        self._rollback.mark()
        try:
            losses, data_time = self._backward()
            shared = self._share(losses, data_time)
            is_finite = all(math.isfinite(value) for numbers in shared for value in numbers.values())
            if not is_finite and not self._scale_is_too_large(shared, losses):
                own = {name: shared[comm.get_rank()][name] for name in losses}
                problem, ranks = find_problem(comm.all_gather(self._report(own)))
                if problem:
                    self._count_non_finite(problem, ranks)
                    self._rollback.undo()
                    self.is_skipped = True
                    return
        except BaseException:
            self._rollback.undo()  # so that what is saved then is the last complete step
            raise
        self._skipped_in_row, self.is_skipped = 0, False
        self._write(shared, list(losses))
        self.grad_scaler.unscale_(self.optimizer)  # before the optimizer clips them
        self.is_updating = True
        self.grad_scaler.step(self.optimizer)
        self.is_updating = False
        self.grad_scaler.update()

    def _backward(self) -> tuple[dict[str, torch.Tensor], float]:
        """Take the batches of a step and add up their gradients.

        Returns:
            The mean of each loss, and the seconds that the batches were waited for.
        """
        data_time = 0.0
        means: dict[str, torch.Tensor] = defaultdict(float)
        for i in range(self.accumulation_steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            arrive()
            self.batches.append(data)
            if self.random_key is not None:
                seed_generators(derive_seed(*self.random_key, self.iter, i), self.device_type)
            is_last = i == self.accumulation_steps - 1
            # Processes need to agree on the sum of gradients only.
            local = isinstance(self.model, DistributedDataParallel) and not is_last
            with self.model.no_sync() if local else nullcontext():
                with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    losses = self.model(data)
                loss = sum(losses.values()) / self.accumulation_steps
                arrive()
                self.grad_scaler.scale(loss).backward()
            for name, value in losses.items():
                means[name] += value.detach() / self.accumulation_steps
        return means, data_time

    def _scale_is_too_large(self, shared: list[dict[str, float]], losses: Iterable[str]) -> bool:
        """Whether the scale of the loss may be why gradients are not finite, as is usual in float16.

        The scaler then skips the step and lowers the scale. One that magnifies nothing is not the cause.
        """
        are_finite = all(math.isfinite(numbers[name]) for numbers in shared for name in losses)
        return are_finite and self.grad_scaler.get_scale() > 1  # 1 without scaler

    def infinite_gradients(self) -> list[str]:
        """Names of the parameters whose gradient, with the scale of the loss, is not finite."""
        return [name for name, gradient in self._gradients().items() if not gradient.isfinite().all()]

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in self.named_parameters() if p.grad is not None}

    def _share(self, losses: dict[str, torch.Tensor], data_time: float) -> list[dict[str, float]]:
        """Tell all processes the losses and times of each; the only copy from the device in a step.

        Returns:
            For each process its losses by name, "data_time" in seconds, and under "gradients" a sum that is not finite
            if a gradient is not, or if it overflows.
        """
        values = [value.reshape(()) for value in losses.values()]
        # A tenth of the work of looking at each entry.
        sums = [gradient.sum() for gradient in self._gradients().values()]
        gradients = torch.stack(sums).sum() if sums else torch.zeros_like(values[0])
        seconds = to_device(torch.tensor(data_time), gradients.device)
        numbers = torch.stack([*values, gradients, seconds])
        rows = gather_rows(numbers[None], [1] * comm.get_world_size()) if comm.get_world_size() > 1 else numbers[None]
        return [dict(zip([*losses, "gradients", "data_time"], row)) for row in rows.tolist()]

    def _report(self, losses: dict[str, float]) -> dict:
        """What a process tells the others about a step with a number that is not finite."""
        report = {"losses": losses, "gradients": self.infinite_gradients()}
        if report["gradients"] or not all(map(math.isfinite, losses.values())):
            report["files"] = batch_files(self.batches)
        return report

    def _count_non_finite(self, problem: str, ranks: list[int]) -> None:
        """Count a step with a number that is not finite as skipped, or stop."""
        self._skipped_in_row += 1
        sentence = f"Not finite in iteration {self.iter}: {problem}"
        if self.non_finite.action == "stop":
            raise NonFiniteError(sentence, ranks)
        if self._skipped_in_row >= self.non_finite.max_in_row:
            raise NonFiniteError(f"{sentence}; so it was in {self._skipped_in_row} steps in a row", ranks)
        self.skipped += 1
        logger.warning("%s. The step is skipped, %d so far", sentence, self.skipped)
        get_event_storage().put_scalar("skipped_steps", self.skipped, smoothing_hint=False)

    def _write(self, shared: list[dict[str, float]], names: list[str]) -> None:
        """Log the means over all processes, and the time that the slowest waited for its data."""
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(numbers["data_time"] for numbers in shared))
        means = {name: sum(numbers[name] for numbers in shared) / len(shared) for name in names}
        storage.put_scalars(total_loss=sum(means.values()), **means)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the optimizer steps, named as in a single process."""
        stepped = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        for name, parameter in getattr(self.model, "module", self.model).named_parameters():
            if parameter in stepped:
                yield name, parameter

    def parameter_names(self) -> list[list[str]]:
        """The names of the parameters in each group of the optimizer."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        return [[names[parameter] for parameter in group["params"]] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        state = {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}
        return {**state, "parameters": self.parameter_names(), "skipped": [self.skipped, self._skipped_in_row]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what the optimizer keeps of each parameter, by its name; its hyperparameters stay as they were built.

        What has the shape of a parameter gets its strides, too, which MODEL.CHANNELS_LAST may have changed: fused
        optimizers go through the memory of both side by side.
        """
        ours = self.optimizer.state_dict()
        theirs = state_dict["optimizer"]["state"]
        # Older checkpoints have no names: their order was this one.
        indices = {name: i for i, name in enumerate(chain(*state_dict.get("parameters", self.parameter_names())))}
        found = {i: theirs.get(indices[name]) for i, name in enumerate(chain(*self.parameter_names()))}
        ours["state"] |= {i: state for i, state in found.items() if state is not None}
        super().load_state_dict({**state_dict, "optimizer": ours})
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if state_dict["grad_scaler"]:  # empty if the run did not scale its loss so far
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.skipped, self._skipped_in_row = state_dict.get("skipped", (0, 0))


def find_problem(reports: list[dict]) -> tuple[str, list[int]]:
    """Say what is not finite in a step, "" if all is, and in which processes.

    Args:
        reports: of the processes, by rank.
    """

    def is_bad(report: dict) -> bool:
        return not all(map(math.isfinite, report["losses"].values()))

    # Gradients are summed over the processes: if all losses are finite, any of them may be the cause.
    ranks = [rank for rank, report in enumerate(reports) if is_bad(report)]
    ranks = ranks or [rank for rank, report in enumerate(reports) if report["gradients"]]
    if not ranks:
        return "", []
    first = reports[ranks[0]]
    what = [f"{name} {value}" for name, value in first["losses"].items() if not math.isfinite(value)]
    what = what or [f"gradient of {name}" for name in first["gradients"]]
    where = f" in process {', '.join(map(str, ranks))} of {len(reports)}" if len(reports) > 1 else ""
    files = ", ".join(chain(*(reports[rank]["files"] for rank in ranks))) or "a batch without files"
    return f"{', '.join(what[:4])}{', ...' if len(what) > 4 else ''}{where}, from {files}", ranks


def batch_files(batches: Iterable) -> list[str]:
    """The image files of batches, where the samples name them."""
    samples = [sample for batch in batches for sample in batch if isinstance(sample, Mapping)]
    return [str(sample["file_name"]) for sample in samples if "file_name" in sample]
