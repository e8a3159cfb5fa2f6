"""How far the probabilities of a network can be trusted: calibration, and entropy of single pixels."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Bins of equal width between 0 and 1, closed above: (0, 1/15], (1/15, 2/15], ...
BINS = 15
# Number of rows whose scores are turned into probabilities at once.
ROWS_PER_BAND = 64


@dataclass
class Calibration:
    """Pixels by the probability of their predicted class, collected image by image.

    Attributes:
        pixels: (BINS,) int64, pixels in each bin.
        confidence: (BINS,) float64, sum of their probabilities.
        right: (BINS,) int64, how many of them are predicted right.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    right: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Count pixels.

        Args:
            confidence: (P,) probability of the predicted class; one that is no number counts as 0.
            right: (P,) bool, whether it is the class of the label.
        """
        confidence = np.nan_to_num(confidence.astype(np.float64))
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.pixels += np.bincount(bins, minlength=BINS)
        self.confidence += np.bincount(bins, confidence, minlength=BINS)
        self.right += np.bincount(bins[right], minlength=BINS)

    @property
    def mean_confidence(self) -> np.ndarray:
        """Mean probability of the pixels of each bin, (BINS,); NaN for a bin without pixels."""
        return _divide(self.confidence, self.pixels)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of the pixels of each bin that is right, (BINS,); NaN for a bin without pixels."""
        return _divide(self.right, self.pixels)

    @property
    def ece(self) -> float:
        """Expected calibration error in percent (Guo et al., ICML 2017); NaN without pixels.

        The difference of mean probability and accuracy in a bin, as mean over all pixels.
        """
        total = self.pixels.sum()
        return float(100 * np.abs(self.right - self.confidence).sum() / total) if total else math.nan


@torch.no_grad()
def confidence_of(scores: Tensor, probabilities: bool = False) -> Tensor:
    """Probability of the predicted class of each pixel.

    Args:
        scores: (K, H, W).
        probabilities: the scores are probabilities already, not logits.

    Returns:
        (H, W) float32.
    """
    if probabilities:
        return scores.amax(0).float()
    return torch.cat([(x.amax(0) - x.logsumexp(0)).exp() for x in scores.float().split(ROWS_PER_BAND, dim=1)])


@torch.no_grad()
def entropy_of(scores: Tensor, probabilities: bool = False) -> Tensor:
    """Entropy of the classes of each pixel as a share of the largest that K classes can have.

    Args:
        scores, probabilities: see :func:`confidence_of`.

    Returns:
        (H, W) float32: 0 where one class is certain, 1 where all are equally likely.
    """
    bands = scores.float().split(ROWS_PER_BAND, dim=1)
    entropy = torch.cat([torch.special.entr(x if probabilities else x.softmax(0)).sum(0) for x in bands])
    return entropy / math.log(max(2, len(scores)))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
