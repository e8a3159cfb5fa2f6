"""Multi-scale and cross-scale contrastive terms over a dict of embeddings (Pissas et al., ECCV 2022, Eq. 3-4)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .anchors import SAMPLERS, sample_anchors
from .info_nce import check_temperature, supervised_info_nce

__all__ = ["MultiScaleContrast"]


class MultiScaleContrast(nn.Module):
    """ms_weight sum_s w_s L(A_s) + cs_weight sum_(s,t) w_st L(A_s, A_t), each term under its own name.

    Anchors are drawn once per feature; the cross-scale terms contrast the same sets. In the term of a pair (s, t) the
    anchors are those of s, positives and negatives those of t, and gradients reach both.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        scale_weights: Sequence[float],
        cross_scale_pairs: Sequence[Sequence[str]] = (),
        cross_scale_weights: Sequence[float] | None = None,
        ms_weight: float = 0.1,
        cs_weight: float = 0.1,
        temperature: float = 0.1,
        sampler: str = "class",
        max_anchors: int = 10000,
        min_per_class: int = 5,
        max_per_class: int | None = None,
        ignore_label: int = 255,
        warmup_iters: int = 0,
        gather: bool = False,
    ):
        """
        Args:
            in_features: names of the feature maps to contrast; strides are free and may repeat.
            scale_weights: w_s, one per feature.
            cross_scale_pairs: pairs (s, t) of names from in_features.
            cross_scale_weights: w_st, one per pair; None for ones.
            ms_weight: weight of the sum of multi-scale terms.
            cs_weight: weight of the sum of cross-scale terms.
            temperature: tau of all terms.
            sampler, max_anchors, min_per_class, max_per_class: see `choose_positions`; each counts per feature, over
                the batch of one process, or of all processes if gather is set.
            ignore_label: label of positions that belong to no class.
            warmup_iters: both weights grow linearly from 0 over so many iterations.
            gather: contrast the anchors of all processes with each other, as if one process held the whole batch.

        Raises:
            ValueError: on lengths that differ, names that are unknown or repeat, and numbers out of range.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.scale_weights = tuple(scale_weights)
        self.cross_scale_pairs = tuple(tuple(pair) for pair in cross_scale_pairs)
        if cross_scale_weights is None:
            cross_scale_weights = [1.0] * len(self.cross_scale_pairs)
        self.cross_scale_weights = tuple(cross_scale_weights)
        self.ms_weight = ms_weight
        self.cs_weight = cs_weight
        self.temperature = temperature
        self.sampling = dict(
            sampler=sampler,
            max_anchors=max_anchors,
            min_per_class=min_per_class,
            max_per_class=max_per_class,
            ignore_label=ignore_label,
            gather=gather,
        )
        self.warmup_iters = warmup_iters
        self._check()

    def _check(self) -> None:
        names = list(self.in_features)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"in_features must name one or more features, each once, got {names}")
        if len(self.scale_weights) != len(names):
            raise ValueError(f"scale_weights must have one entry for each of {names}, got {list(self.scale_weights)}")
        for pair in self.cross_scale_pairs:
            if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(names):
                raise ValueError(f"cross_scale_pairs must be pairs of different names from {names}, got {list(pair)}")
        if len(set(self.cross_scale_pairs)) < len(self.cross_scale_pairs):
            raise ValueError(f"cross_scale_pairs must not repeat, got {self.cross_scale_pairs}")
        if len(self.cross_scale_weights) != len(self.cross_scale_pairs):
            raise ValueError(
                f"cross_scale_weights must have one entry for each of the {len(self.cross_scale_pairs)} "
                f"cross_scale_pairs, got {list(self.cross_scale_weights)}"
            )
        if self.sampling["sampler"] not in SAMPLERS:
            raise ValueError(f"sampler must be one of {SAMPLERS}, got {self.sampling['sampler']!r}")
        for name in ("max_anchors", "min_per_class", "max_per_class"):
            value = self.sampling[name]
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.warmup_iters < 0:
            raise ValueError(f"warmup_iters must be at least 0, got {self.warmup_iters}")
        check_temperature(self.temperature)

    @torch.compiler.disable
    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        labels: Tensor,
        iteration: int | None = None,
        with_stats: bool = False,
        last_layers: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        """
        Args:
            embeddings: name to (N, D, h, w), one D for all; more names than in_features do no harm.
            labels: (N, H, W), integers.
            iteration: iterations done, from 0; drives the warm-up alone.
            with_stats: also describe the anchors and how well they are aligned.
            last_layers: name to last layer of the projector, (A, C') to (A, D), for embeddings (N, C', h, w) that still
                lack it. Only anchors pass it: the same values at a fraction of its cost.

        Returns:
            Weighted scalar losses "loss_contrast_s" and "loss_contrast_s_t"; with_stats adds a second dict of
            "contrast/s/num_anchors", ".../num_classes", ".../anchors_per_class", and ".../positive_similarity" and
            ".../negative_similarity", the mean cosines of positive and negative pairs (nan where there is none).

        Raises:
            ValueError: if a feature is missing or shapes do not fit, or the warm-up lacks its iteration.
        """
        missing = [name for name in self.in_features if name not in embeddings]
        if missing:
            raise ValueError(f"embeddings lack {missing}, they have {list(embeddings)}")
        warmup = self._warmup(iteration)
        last_layers = last_layers or {}
        sets = {}
        for name in self.in_features:
            anchors, classes = sample_anchors(
                embeddings[name], labels, **self.sampling, last_layer=last_layers.get(name)
            )
            sets[name] = anchors, classes.cpu()  # fetched now, while the device has little to do, and not by each term
        losses = {}
        for name, weight in zip(self.in_features, self.scale_weights):
            loss = supervised_info_nce(*sets[name], temperature=self.temperature)
            losses[f"loss_contrast_{name}"] = warmup * self.ms_weight * weight * loss
        for (fine, coarse), weight in zip(self.cross_scale_pairs, self.cross_scale_weights):
            loss = supervised_info_nce(*sets[fine], *sets[coarse], temperature=self.temperature)
            losses[f"loss_contrast_{fine}_{coarse}"] = warmup * self.cs_weight * weight * loss
        if not with_stats:
            return losses
        stats = {}
        for name, (anchors, classes) in sets.items():
            for key, value in describe_anchors(anchors.detach(), classes).items():
                stats[f"contrast/{name}/{key}"] = value
        return losses, stats

    def _warmup(self, iteration: int | None) -> float:
        if not self.warmup_iters:
            return 1.0
        if iteration is None:
            raise ValueError(f"warmup_iters is {self.warmup_iters}: forward needs the iteration")
        return min(1.0, iteration / self.warmup_iters)


@torch.no_grad()
def describe_anchors(anchors: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Size, balance and alignment of a set of anchors (A, D) sorted by class; linear in A.

    The sum of all similarities within a class is the squared length of the sum of its anchors.
    """
    _, index, counts = labels.unique_consecutive(return_inverse=True, return_counts=True)
    index, counts = index.to(anchors.device), counts.to(anchors.device, torch.float64)
    sums = anchors.new_zeros(len(counts), anchors.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, anchors.double())
    total = sums.sum(0).square().sum()
    within = sums.square().sum()
    size = counts.sum()
    itself = anchors.double().square().sum()
    num_classes = size.new_tensor(len(counts))
    return {
        "num_anchors": size.float(),
        "num_classes": num_classes.float(),
        "anchors_per_class": (size / num_classes.clamp(min=1)).float(),
        "positive_similarity": ((within - itself) / (counts.square().sum() - size)).float(),
        "negative_similarity": ((total - within) / (size.square() - counts.square().sum())).float(),
    }
