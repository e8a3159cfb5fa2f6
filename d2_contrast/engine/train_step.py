"""One optimisation step: accumulation of gradients, mixed precision."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class TrainStep(SimpleTrainer):
    """SimpleTrainer with gradients averaged over several batches and mixed precision on any device."""

    def __init__(self, model, data_loader, optimizer, *, accumulation_steps: int = 1, amp_dtype: str | None = None):
        """
        Args:
            model, data_loader, optimizer: see SimpleTrainer.
            accumulation_steps: batches for one step of the optimizer.
            amp_dtype: "float16" or "bfloat16" for mixed precision; None for full precision.

        Raises:
            ValueError: one of the two is out of range.
        """
        super().__init__(model, data_loader, optimizer)
        if accumulation_steps < 1:
            raise ValueError(f"SOLVER.ACCUMULATION_STEPS is {accumulation_steps}: expected 1 or more")
        if amp_dtype not in (None, "float16", "bfloat16"):
            raise ValueError(f'SOLVER.AMP.DTYPE is {amp_dtype!r}: expected "float16" or "bfloat16"')
        self.accumulation_steps = accumulation_steps
        self.amp_dtype = amp_dtype and getattr(torch, amp_dtype)
        self.device_type = next(model.parameters()).device.type
        # Gradients of half precision underflow; those of bfloat16 do not.
        self.is_updating = False  # weights are changed in part
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == "float16")

    def run_step(self) -> None:
        """Take ``accumulation_steps`` batches and step the optimizer once; write the mean of each loss."""
        self.optimizer.zero_grad()
        data_time = 0.0
        means: dict[str, torch.Tensor] = defaultdict(float)
        for i in range(self.accumulation_steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            is_last = i == self.accumulation_steps - 1
            # Processes need to agree on the sum of gradients only.
            local = isinstance(self.model, DistributedDataParallel) and not is_last
            with self.model.no_sync() if local else nullcontext():
                with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    losses = self.model(data)
                loss = sum(losses.values()) / self.accumulation_steps
                self.grad_scaler.scale(loss).backward()
            for name, value in losses.items():
                means[name] += value.detach() / self.accumulation_steps
        # Raises if a loss is not finite, before that reaches the weights.
        SimpleTrainer.write_metrics(means, data_time, self.iter)
        self.grad_scaler.unscale_(self.optimizer)  # before the optimizer clips them
        self.is_updating = True
        self.grad_scaler.step(self.optimizer)
        self.is_updating = False
        self.grad_scaler.update()

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
        return {**state, "parameters": self.parameter_names()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what the optimizer keeps of each parameter, by its name; its hyperparameters stay as they were built."""
        ours = self.optimizer.state_dict()
        theirs = state_dict["optimizer"]["state"]
        # Older checkpoints have no names: their order was this one.
        indices = {name: i for i, name in enumerate(chain(*state_dict.get("parameters", self.parameter_names())))}
        found = {i: theirs.get(indices[name]) for i, name in enumerate(chain(*self.parameter_names()))}
        ours["state"] = {i: state for i, state in found.items() if state is not None}
        super().load_state_dict({**state_dict, "optimizer": ours})
        if state_dict["grad_scaler"]:  # empty if the run did not scale its loss so far
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
