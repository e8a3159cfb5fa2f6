"""A control for the contrastive losses: cross entropy on the same feature maps, behind the same projectors."""

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from d2_contrast.contrast import Projector

from ..layers import allow_single_values
from .base import SemSegHead


@SEM_SEG_HEADS_REGISTRY.register()
class DeepSupervisionHead(SemSegHead):
    """On each feature map a projector, as the contrastive losses have, and a linear classifier with a loss of its own.

    It is meant as an auxiliary head. Elsewhere its prediction is that of the first feature map.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        scale_weights: Sequence[float],
        channels: int = 256,
        hidden_layers: int = 2,
        norm: str = "BN",
        **kwargs,
    ):
        """
        Args:
            input_shape: feature maps by name.
            num_classes: K.
            scale_weights: weight of the loss of each feature map, beside that of the head.
            channels: width of the embeddings that are classified.
            hidden_layers: see Projector.
            norm: normalisation layer by Detectron2's name.
            kwargs: see SemSegHead.

        Raises:
            ValueError: there is not one weight for each feature map.
        """
        super().__init__(input_shape, **kwargs)
        if len(scale_weights) != len(input_shape):
            raise ValueError(
                f"MODEL.CONTRAST.SCALE_WEIGHTS is {list(scale_weights)}: DeepSupervisionHead needs one for each of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES, {list(input_shape)}"
            )
        self.scale_weights = dict(zip(input_shape, scale_weights))
        self.classifiers = nn.ModuleDict()
        for name, shape in input_shape.items():
            projector = Projector(shape.channels, channels, hidden_layers, lambda width: get_norm(norm, width))
            self.classifiers[name] = allow_single_values(nn.Sequential(projector, nn.Conv2d(channels, num_classes, 1)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        args = super().from_config(cfg, input_shape)
        del args["dropout"]  # projectors have none
        contrast = cfg.MODEL.CONTRAST
        return {**args, "scale_weights": contrast.SCALE_WEIGHTS, "hidden_layers": contrast.PROJECTOR_LAYERS}

    def layers(self, features: Mapping[str, Tensor]) -> tuple[Tensor, ...] | Tensor:
        """Map features to logits (N, K, h, w) of the first feature map; in training to those of each."""
        names = self.in_features if self.training else self.in_features[:1]
        logits = tuple(self.classifiers[name](features[name]) for name in names)
        return logits if self.training else logits[0]

    def losses(self, logits: tuple[Tensor, ...], targets: Tensor) -> dict[str, Tensor]:
        return {
            f"loss_{name}": self.scale_weights[name]
            * super(DeepSupervisionHead, self).losses(x, targets)["loss_sem_seg"]
            for name, x in zip(self.in_features, logits)
        }
