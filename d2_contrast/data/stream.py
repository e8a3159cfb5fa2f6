"""The endless stream of training samples, in which a run can go on at any place."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..random_numbers import derive_seed, same_random_numbers, seed_generators

# Purposes of seeds: those of different purposes are independent.
ORDER, AUGMENTATION, SUBSET = range(3)


class SampleStream(IterableDataset):
    """Samples of a dataset, epoch after epoch, each time in another order; to be given to Detectron2's train loader.

    The sample at a position of the stream and its augmentation depend on the seed and the position only. So a run that
    goes on at position ``start`` gets the samples of an uninterrupted one, whatever the number of workers. Processes
    of a job take turns: their joint batch holds the same samples, however many they are.

    Attributes:
        seed: of the order, of the augmentation and of the subset.
        start: the first position, 0 or more: how many samples all processes together have seen before.
    """

    def __init__(
        self,
        samples: Sequence[dict],
        mapper: Callable[[dict], dict | None],
        *,
        batch_size: int,
        seed: int,
        repeats: Tensor | None = None,
        subset: int | None = None,
    ):
        """
        Args:
            samples: the N dataset dicts.
            mapper: makes a sample of a dict, or None if that cannot be used: then another takes its place, of those
                that come in epochs.
            batch_size: samples of one process that a worker of the loader takes together: those of a batch, or 1 for a
                loader that forms batches of what its workers give.
            seed: the same in all processes, 0 or more.
            repeats: (N,) how often a sample comes in an epoch, 0 or more. Fractions are rounded at random, anew in
                each epoch. None: once.
            subset: how many samples, which the seed chooses, come at all. None: all.
        """
        self.samples = DatasetFromList(list(samples), copy=False)  # which workers share
        self.mapper = mapper
        self.batch_size = batch_size
        self.seed = seed
        self.start = 0
        self._repeats = torch.ones(len(self.samples)) if repeats is None else repeats
        self._is_whole = torch.equal(self._repeats, self._repeats.floor())
        self._subset = subset
        self._rank, self._processes = comm.get_rank(), comm.get_world_size()

    @property
    def repeats(self) -> Tensor:
        """(N,), how often a sample comes in an epoch on average."""
        if self._subset is None:
            return self._repeats
        generator = torch.Generator().manual_seed(derive_seed(self.seed, SUBSET))
        left_out = torch.randperm(len(self._repeats), generator=generator)[self._subset :]
        return self._repeats.index_fill(0, left_out, 0)

    def epoch(self, number: int) -> Tensor:
        """The order of an epoch: indices of samples."""
        counts, generator = self._round(number)
        indices = torch.arange(len(counts)).repeat_interleave(counts)
        return indices[torch.randperm(len(indices), generator=generator)]

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        first_batch, step = (worker.id, worker.num_workers) if worker else (0, 1)
        number, begin = self._find_epoch()
        indices = self.epoch(number)
        for batch in count(first_batch, step):
            for i in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                position = self.start + i * self._processes + self._rank
                while position >= begin + len(indices):
                    begin += len(indices)
                    number += 1
                    indices = self.epoch(number)
                yield self._sample(position, int(indices[position - begin]))

    def _round(self, number: int) -> tuple[Tensor, torch.Generator]:
        """How often each sample comes in an epoch, and what draws the rest of its random numbers."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, number))
        repeats = self.repeats
        whole = repeats.floor()
        if not self._is_whole:
            whole += torch.rand(len(whole), generator=generator) < repeats - whole
        return whole.long(), generator

    def _find_epoch(self) -> tuple[int, int]:
        """The epoch with the position ``start``, and the position where it begins."""
        if self._is_whole:
            size = int(self.repeats.sum())
            return self.start // size, self.start // size * size
        number, begin = 0, 0
        while (end := begin + int(self._round(number)[0].sum())) <= self.start:
            number, begin = number + 1, end
        return number, begin

    def _sample(self, position: int, index: int) -> dict:
        with same_random_numbers():
            seed_generators(derive_seed(self.seed, AUGMENTATION, position))
            if (sample := self.mapper(self.samples[index])) is not None:
                return sample
            others = torch.randperm(len(self.samples))
            for other in others[self.repeats[others] > 0].tolist():
                if (sample := self.mapper(self.samples[other])) is not None:
                    return sample
        raise ValueError("None of the training samples can be used")


def find_stream(loader: object) -> SampleStream | None:
    """The stream behind a data loader, None if it is of another kind."""
    while loader is not None and not isinstance(loader, SampleStream):
        loader = getattr(loader, "dataset", None)
    return loader
