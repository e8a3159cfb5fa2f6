import numpy as np
import pytest
from scipy import stats

from d2_contrast.ablation import Difference, Summary, paired_difference, summarize


def test_summary_by_hand():
    """Mean 3; squared deviations 4 + 1 + 0 + 1 + 4 = 10, over 4."""
    assert summarize([1.0, 2.0, 3.0, 4.0, 5.0]) == Summary(5, 3.0, pytest.approx(2.5**0.5))


def test_one_value_has_no_spread():
    assert summarize([7.0]) == Summary(1, 7.0, None)
    assert summarize([]) is None


def test_difference_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3); t of 97.5 % at 2 degrees is 4.302653."""
    difference = paired_difference({1: 11.0, 2: 22.0, 3: 33.0}, {3: 30.0, 2: 20.0, 1: 10.0})
    margin = 4.302653 / 3**0.5
    assert difference == Difference(3, 2.0, pytest.approx(2 - margin, abs=1e-6), pytest.approx(2 + margin, abs=1e-6))


def test_published_example_of_camvid():
    """Four seeds: +2.24, +2.48, +1.04, +0.40, which is 1.54 with a margin of 1.57 (t of 3 degrees is 3.182446)."""
    gains = {1: 2.24, 2: 2.48, 3: 1.04, 4: 0.40}
    difference = paired_difference(gains, dict.fromkeys(gains, 0.0))
    deviation = (sum((x - 1.54) ** 2 for x in gains.values()) / 3) ** 0.5
    assert difference.mean == pytest.approx(1.54)
    assert difference.high - difference.mean == pytest.approx(3.182446 * deviation / 2, abs=1e-6)
    assert difference.high - difference.mean == pytest.approx(1.57, abs=0.005)


def test_seeds_are_paired_whatever_their_order_and_spread():
    """Runs that differ much between seeds and little from their pairs have a narrow interval."""
    baseline = {seed: 10.0 * seed for seed in range(1, 6)}
    ours = {seed: baseline[seed] + 1 + 0.01 * seed for seed in (5, 3, 1, 2, 4)}
    difference = paired_difference(ours, baseline)
    assert difference.n == 5 and 1.0 < difference.low < 1.03 < difference.high < 1.06


def test_only_common_seeds_count():
    assert paired_difference({1: 5.0, 2: 6.0}, {2: 4.0, 3: 1.0}) == Difference(1, 2.0, None, None)
    assert paired_difference({1: 5.0}, {2: 4.0}) is None
    assert paired_difference({}, {}) is None


def test_equal_differences_have_an_interval_of_no_width():
    assert paired_difference({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}) == Difference(2, 1.0, 1.0, 1.0)


def test_agrees_with_the_test_of_scipy():
    """The interval excludes 0 exactly where the paired t test has p < 0.05, and ends where a shift makes it 0.05."""
    generator = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        a, b = generator.normal(0.7, 1, n), generator.normal(0, 1, n)
        difference = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
        assert (not difference.low <= 0 <= difference.high) == (stats.ttest_rel(a, b).pvalue < 0.05)
        for end in (difference.low, difference.high):
            assert stats.ttest_rel(a - end, b).pvalue == pytest.approx(0.05)
