"""Calibration and entropy beside their definitions, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from d2_contrast.evaluation import Calibration, confidence_of, entropy_of
from d2_contrast.evaluation.calibration import BINS, ROWS_PER_BAND


def expected_calibration_error(confidence, right):
    """Guo et al., ICML 2017, equation 3, in percent."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = [i for i, p in enumerate(confidence) if (m - 1) / BINS < p <= m / BINS]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return 100 * total


@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_error_as_defined(skill):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 500)
    right = rng.random(500) < skill
    calibration = Calibration()
    for part in np.array_split(np.arange(500), 3):  # image by image
        calibration.add(confidence[part], right[part])
    assert calibration.ece == pytest.approx(expected_calibration_error(confidence, right))
    assert calibration.pixels.sum() == 500 and calibration.right.sum() == right.sum()


def test_by_hand():
    calibration = Calibration()
    calibration.add(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False]))
    assert calibration.ece == pytest.approx(15)
    assert calibration.accuracy[13] == 0.75 and calibration.mean_confidence[13] == pytest.approx(0.9)
    assert np.isnan(calibration.accuracy[0])


def test_bins_are_closed_above():
    calibration = Calibration()
    calibration.add(np.array([1 / BINS, 1.0, 0.0]), np.array([True, True, False]))
    assert calibration.pixels[0] == 2 and calibration.pixels[-1] == 1


def test_without_pixels_and_with_no_number():
    assert math.isnan(Calibration().ece)
    calibration = Calibration()
    calibration.add(np.array([np.nan]), np.array([False]))
    assert calibration.pixels[0] == 1 and calibration.ece == 0


class TestScores:
    scores = 3 * torch.randn(5, 2 * ROWS_PER_BAND + 3, 4, generator=torch.Generator().manual_seed(0))

    def test_logits(self):
        p = self.scores.double().softmax(0)
        torch.testing.assert_close(confidence_of(self.scores), p.amax(0).float())
        entropy = -(p * p.log()).sum(0) / math.log(5)
        torch.testing.assert_close(entropy_of(self.scores), entropy.float())

    def test_probabilities(self):
        p = self.scores.softmax(0)
        torch.testing.assert_close(confidence_of(p, probabilities=True), confidence_of(self.scores))
        torch.testing.assert_close(entropy_of(p, probabilities=True), entropy_of(self.scores))

    def test_extremes(self):
        certain = torch.tensor([-math.inf, 1000.0, 0.0])[:, None, None]
        assert confidence_of(certain).item() == 1 and entropy_of(certain).item() == 0
        assert entropy_of(torch.zeros(7, 1, 1)).item() == pytest.approx(1)
        assert entropy_of(torch.zeros(1, 1, 1)).item() == 0
