"""Random numbers that depend on where a run is, not on how it came there."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A seed of 64 bits from integers of 0 or more.

    Seeds of different keys have nothing to do with each other, with two exceptions: a key of fewer than four numbers
    counts as filled up with zeros, so that (7, 1) and (7, 1, 0) have the same seed, and a number of more than 32 bits
    counts as several.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_generators(seed: int, device_type: str = "cpu") -> None:
    """Seed the global generators of Python, NumPy and torch: of the CPU, and of the current GPU for "cuda"."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach all GPUs
    if device_type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch's CPU as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
