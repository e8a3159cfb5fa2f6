"""Statistics of a few runs: means, spreads and paired differences over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1 in its denominator; None for one value) of n values."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and the ends of its 95 % interval, which a single pair does not have (None)."""

    n: int
    mean: float
    low: float | None
    high: float | None


def summarize(values: Sequence[float]) -> Summary | None:
    """Summarise the scores of a row, one a seed; None if there are none."""
    if not values:
        return None
    return Summary(len(values), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Difference of two rows over the seeds that both have, with the interval of the paired t test.

    Args:
        values, baseline: {seed: score}.

    Returns:
        None if they have no seed in common.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    n, mean = len(seeds), float(differences.mean())
    if n == 1:
        return Difference(n, mean, None, None)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return Difference(n, mean, mean - margin, mean + margin)
