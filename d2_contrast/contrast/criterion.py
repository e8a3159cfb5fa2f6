"""The multi-scale and cross-scale contrastive losses (Pissas et al., ECCV 2022, Eq. 3-4)."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from numbers import Real
from typing import cast

from torch import Tensor, nn

from .anchor_set import AnchorSet, check_sets
from .device import to_device
from .eager import eager
from .info_nce import check_temperature, info_nce
from .memory import ContrastMemory
from .sampler import AnchorSampler

__all__ = ["MultiScaleContrast"]


class MultiScaleContrast(nn.Module):
    """ms_weight sum_s w_s L(A_s) + cs_weight sum_(s,t) w_st L(A_s, A_t), each term under its own name.

    Anchors are drawn once for each scale; the cross-scale terms contrast the same sets. In the term of a pair (s, t)
    the anchors are those of s, positives and negatives those of t, and gradients reach both.
    """

    def __init__(
        self,
        scales: Mapping[str, float],
        pairs: Mapping[tuple[str, str], float] | None = None,
        *,
        sampler: AnchorSampler | None = None,
        ms_weight: float = 0.1,
        cs_weight: float = 0.1,
        temperature: float = 0.1,
        warmup_iters: int = 0,
        decay_iters: int = 0,
        memories: Mapping[str, ContrastMemory] | None = None,
        tf32: bool = False,
    ):
        """
        Args:
            scales: w_s by the name of the scale; strides are free and may repeat.
            pairs: w_st by the names of two scales (s, t); None for no cross-scale terms.
            sampler: draws the anchors of each scale; None for an AnchorSampler with its defaults.
            ms_weight: weight of the sum of multi-scale terms.
            cs_weight: weight of the sum of cross-scale terms.
            temperature: tau of all terms.
            warmup_iters: both weights grow linearly from 0 over this many iterations; 0 for none.
            decay_iters: both weights fall linearly to 0 at this iteration; 0 for never.
            memories: for scales whose term contrasts anchors with what a memory holds, instead of with each other; None
                for none.
            tf32: compute scores and gradients in TF32 on a GPU, whatever torch's settings are: faster, less exact.

        Raises:
            ValueError: scales or pairs are no mappings, a pair or a memory has an unknown name, two terms would have
                one name, anchors are gathered although there is a memory, or a number is out of range.
        """
        super().__init__()
        if not isinstance(scales, Mapping) or not scales:
            raise ValueError(f'scales must map one or more names to weights, as {{"c2": 1.0}}, got {scales!r}')
        pairs = {} if pairs is None else pairs
        if not isinstance(pairs, Mapping):
            raise ValueError(f'pairs must map two names to a weight, as {{("c2", "c5"): 1.0}}, got {pairs!r}')
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(scales):
                raise ValueError(f"pairs must be of two different names from {list(scales)}, got {pair!r}")
        names = [*scales, *("_".join(pair) for pair in pairs)]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"two terms would have the name loss_contrast_{twice[0]}: name the scales differently")
        weights = {"ms_weight": ms_weight, "cs_weight": cs_weight}
        for name, weight in {**weights, **scales, **{f"pair {pair}": weight for pair, weight in pairs.items()}}.items():
            if not isinstance(weight, Real) or not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} must be a finite number of at least 0, got {weight!r}")
        for name, count in (("warmup_iters", warmup_iters), ("decay_iters", decay_iters)):
            if count < 0:
                raise ValueError(f"{name} must be at least 0, got {count}")
        check_temperature(temperature)
        memories = {} if memories is None else memories
        if not set(memories) <= set(scales):
            raise ValueError(f"memories must be of some of {list(scales)}, got some for {list(memories)}")
        self.scales = dict(scales)
        self.pairs = dict(pairs)
        self.sampler = sampler or AnchorSampler()
        self.ms_weight = ms_weight
        self.cs_weight = cs_weight
        self.temperature = temperature
        self.warmup_iters = warmup_iters
        self.decay_iters = decay_iters
        self.memories = nn.ModuleDict(memories)
        if memories and self.sampler.gather:
            raise ValueError("gather must be off with a memory, which all processes fill and share")
        self.tf32 = tf32

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        labels: Tensor,
        iteration: int | None = None,
        logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Draw anchors from maps of embeddings and contrast them.

        Args:
            embeddings: (N, D, h, w) by scale, one D for the scales of a pair; they are normalised here. Other
                names are ignored.
            labels: (N, H, W), integers.
            iteration: iterations done, from 0; drives warm-up and decay alone.
            logits: (N, K, H', W'), of the segmentation; memories alone need them.

        Returns:
            Weighted scalar losses "loss_contrast_s" and "loss_contrast_s_t".

        Raises:
            ValueError: a scale is missing, shapes do not fit, anchors are not finite, the iteration is missing, or a
                memory lacks the logits.
        """
        self.check_names("embeddings", embeddings)
        return self.terms(self.draw(embeddings, labels, logits=logits), iteration)

    @eager
    def draw(
        self,
        maps: Mapping[str, Tensor],
        labels: Tensor,
        projects: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        logits: Tensor | None = None,
    ) -> dict[str, AnchorSet]:
        """Make the anchors of each scale: the sampler draws them, or a memory makes them.

        Args:
            maps: by scale, (N, D, h, w), or (N, C, h, w) in front of projects.
            labels, logits: see forward.
            projects: map vectors at some positions, (A, C), to embeddings (A, D), by scale.
        """
        projects = projects or {}
        if not self.memories:  # positions of all scales are drawn at once, while the device works
            draws = self.sampler.draw([maps[scale] for scale in self.scales], labels)
            return {
                scale: self.sampler.take(maps[scale], draw, projects.get(scale))
                for scale, draw in zip(self.scales, draws)
            }
        sets = {}
        for scale in self.scales:
            of_scale, project = maps[scale], projects.get(scale)
            if scale in self.memories:
                on_device = to_device(labels, of_scale.device)
                sets[scale] = self._memory(scale).draw(of_scale, on_device, self.sampler, project, logits)
            else:
                sets[scale] = self.sampler(of_scale, labels, project)
        return sets

    @eager
    def terms(
        self, anchor_sets: Mapping[str, AnchorSet], iteration: int | None = None, check: bool = True
    ) -> dict[str, Tensor]:
        """Contrast sets of anchors that are drawn already.

        Args:
            anchor_sets: by scale.
            iteration: see forward.
            check: that anchors are finite and of unit length.

        Returns:
            As forward.

        Raises:
            ValueError: a scale is missing, anchors are not sound, or the iteration is missing.
        """
        self.check_names("anchor_sets", anchor_sets)
        factor = self.schedule(iteration)
        sets = {}
        for scale in self.scales:
            vectors, labels = anchor_sets[scale]
            sets[scale] = AnchorSet(vectors, labels.cpu())  # fetched once, and not by each term
        for scale, other in self.pairs:
            dims = [sets[name].vectors.shape[-1] for name in (scale, other)]
            if dims[0] != dims[1]:
                raise ValueError(
                    f"embeddings of scales {scale!r} and {other!r} must have one dimension to be a pair, got {dims}"
                )
        if check:
            check_sets({f"scale {scale!r}": anchor_set for scale, anchor_set in sets.items()})
        losses = {}
        for scale, weight in self.scales.items():
            if scale in self.memories:
                loss = self._memory(scale).contrast(sets[scale], self.temperature, tf32=self.tf32)
            else:
                loss = info_nce(sets[scale], None, self.temperature, tf32=self.tf32)
            losses[f"loss_contrast_{scale}"] = factor * self.ms_weight * weight * loss
        for (scale, other), weight in self.pairs.items():
            loss = info_nce(sets[scale], sets[other], self.temperature, tf32=self.tf32)
            losses[f"loss_contrast_{scale}_{other}"] = factor * self.cs_weight * weight * loss
        return losses

    def check_names(self, what: str, named: Mapping[str, object]) -> None:
        """Raise ValueError unless a mapping has an entry for every scale."""
        missing = [scale for scale in self.scales if scale not in named]
        if missing:
            raise ValueError(f"{what} lack {missing}, they have {list(named)}")

    def _memory(self, scale: str) -> ContrastMemory:
        return cast(ContrastMemory, self.memories[scale])

    def schedule(self, iteration: int | None) -> float:
        """The factor of both weights, from 0 to 1, by warm-up and decay.

        Raises:
            ValueError: there is one of them, and no iteration.
        """
        used = [name for name in ("warmup_iters", "decay_iters") if getattr(self, name)]
        if not used:
            return 1.0
        if iteration is None:
            raise ValueError(f"{used[0]} is {getattr(self, used[0])}: forward needs the iteration")
        growth = min(1.0, iteration / self.warmup_iters) if self.warmup_iters else 1.0
        return growth * (max(0.0, 1.0 - iteration / self.decay_iters) if self.decay_iters else 1.0)
