"""The contrastive branch of a network: feature maps and labels in, losses out."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .anchor_set import AnchorSet
from .criterion import MultiScaleContrast
from .eager import eager, eager_outside
from .projector import Projector
from .sampler import Draw, tap

__all__ = ["ContrastiveBranch", "Tapped"]

Project = Literal["dense", "anchors"]

# A norm needs two vectors for its statistics.
_FEWEST_VECTORS = 2


class Tapped(NamedTuple):
    """Vectors (a, C) that were taken out of a map, and the draw of their positions."""

    draw: Draw
    vectors: Tensor


class ContrastiveBranch(nn.Module):
    """Projects feature maps, draws anchors and contrasts them.

    Only what a loss needs is computed. With project "dense" (the paper) the hidden layers of the projectors, and
    so their norms, see whole maps; the last layer, which treats each position by itself, is applied to the anchors
    alone. With "anchors" positions are drawn first, from the labels, and only their vectors are projected. No
    projected map exists then, and norms see the balanced anchors.
    """

    def __init__(self, projectors: Mapping[str, Projector], criterion: MultiScaleContrast, project: Project = "dense"):
        """
        Args:
            projectors: one for each scale of the criterion.
            criterion: the losses, with their sampler.
            project: "dense" or "anchors".

        Raises:
            ValueError: projectors and scales differ, project is neither of the two, or there is a memory
                with project "anchors".
        """
        super().__init__()
        if set(projectors) != set(criterion.scales):
            raise ValueError(
                f"projectors must be one for each scale, {list(criterion.scales)}, got some for {list(projectors)}"
            )
        if project not in get_args(Project):
            raise ValueError(f"project must be one of {get_args(Project)}, got {project!r}")
        if project != "dense" and criterion.memories:
            raise ValueError(f'project must be "dense" with a memory, which stores other vectors too, got {project!r}')
        self.projectors = nn.ModuleDict(projectors)
        self.criterion = criterion
        self.project = project

    @property
    def needs_logits(self) -> bool:
        """Whether the losses depend on what the segmentation predicts, which memories look at."""
        return bool(self.criterion.memories)

    @eager_outside
    def forward(
        self,
        features: Mapping[str, Tensor],
        labels: Tensor,
        iteration: int | None = None,
        logits: Tensor | None = None,
        tapped: Mapping[str, Tapped] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            features: (N, C, h, w) by scale; other names are ignored.
            labels: (N, H, W), integer class ids; in host memory, so that nothing waits for the device.
            iteration: iterations done, from 0; drives warm-up and decay alone.
            logits: (N, K, H', W'), of the segmentation, if ``needs_logits``.
            tapped: what ``tap`` took out of these features, if it was called.

        Returns:
            Weighted scalar losses by name, see ``MultiScaleContrast``.

        Raises:
            ValueError: a scale is missing, shapes do not fit, the iteration is missing, or a memory lacks the logits.
        """
        return self.losses(self.sample(features, labels, logits, tapped), iteration)

    @eager
    def tap(self, features: Mapping[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tapped]]:
        """Take the vectors at the drawn positions out of the maps before others read these, with project "anchors".

        If what else reads the maps gets those that are returned, and runs before the losses, the gradient of the losses
        takes the room of the vectors during the backward pass, and not that of the maps.

        Args:
            features, labels: see forward.

        Returns:
            The features, and what to give to ``forward`` or ``sample``.

        Raises:
            ValueError: a scale is missing, shapes do not fit, or project is "dense".
        """
        if self.project == "dense":
            raise ValueError('project is "dense", which reads whole maps: there is nothing to tap')
        scales = self.criterion.scales
        self.criterion.check_names("features", features)
        draws = self.criterion.sampler.draw([features[scale] for scale in scales], labels)
        passed_on, tapped = dict(features), {}
        for scale, draw in zip(scales, draws):
            passed_on[scale], vectors = tap(features[scale], draw)
            tapped[scale] = Tapped(draw, vectors)
        return passed_on, tapped

    @eager_outside
    def sample(
        self,
        features: Mapping[str, Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        tapped: Mapping[str, Tapped] | None = None,
    ) -> dict[str, AnchorSet]:
        """The first half of forward: the anchors of each scale, for ``losses`` and, say, ``describe_anchors``."""
        criterion = self.criterion
        criterion.check_names("features", features)
        if self.project == "dense":
            maps = self._hidden_maps(features)
            projects = {scale: self._projector(scale).last for scale in maps}
            return criterion.draw(maps, labels, projects, logits)
        if tapped is None:
            _, tapped = self.tap(features, labels)
        return {
            scale: criterion.sampler.finish(
                vectors, draw, _projection_of_drawn(self._projector(scale), features[scale])
            )
            for scale, (draw, vectors) in tapped.items()
        }

    @eager
    def losses(self, anchor_sets: Mapping[str, AnchorSet], iteration: int | None = None) -> dict[str, Tensor]:
        """The second half of forward: the losses of the anchors that ``sample`` gave."""
        return self.criterion.terms(anchor_sets, iteration, check=False)

    def embed(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project whole maps to unit-length embeddings, {scale: (N, D, h, w)}."""
        return {scale: F.normalize(projector(features[scale])) for scale, projector in self.projectors.items()}

    def _hidden_maps(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {scale: self._projector(scale).hidden(features[scale]) for scale in self.criterion.scales}

    def _projector(self, scale: str) -> Projector:
        return cast(Projector, self.projectors[scale])


def _projection_of_drawn(projector: Projector, feature_map: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that projects vectors (A, C) of a map, however few they are; (A, D).

    If there are too few for a norm, other vectors of the map are added to its statistics and dropped afterwards. So
    all parameters get gradients, and all processes call synchronised norms.
    """

    def project(vectors: Tensor) -> Tensor:
        count = len(vectors)
        if count < _FEWEST_VECTORS:
            ends = feature_map[0, :, 0, 0], feature_map[-1, :, -1, -1]
            vectors = torch.cat([vectors, torch.stack(ends).detach()[count:]])
        return projector.project_vectors(vectors)[:count]

    return project
