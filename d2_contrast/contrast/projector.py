"""The projection f_proj of a feature map into the space of the contrastive loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Projector"]


class Projector(nn.Module):
    """hidden_layers x [1x1 convolution, ReLU, norm], then a 1x1 convolution; (N, C, h, w) to (N, D, h, w).

    The paper uses two hidden layers, the released code one. The first keeps the width of the feature map, further ones
    have the width of the output. Embeddings are not normalised here: only those that are sampled need it.

    Attributes:
        hidden: the hidden layers, (N, C, h, w) to (N, C', h, w).
        last: the last layer, (..., C') to (..., D); a 1x1 convolution if applied at each position.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        hidden_layers: int = 2,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        """
        Args:
            in_channels: C of the feature map.
            out_channels: D of the embeddings.
            hidden_layers: number of [convolution, ReLU, norm] layers.
            norm: makes a normalisation layer, given its number of channels.
        """
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for i in range(hidden_layers):
            hidden = in_channels if i == 0 else out_channels
            layers += [nn.Conv2d(width, hidden, 1, bias=False), nn.ReLU(inplace=True), norm(hidden)]
            width = hidden
        self.hidden = _ChannelsLast(*layers)
        self.last = nn.Linear(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.last(self.hidden(x).permute(0, 2, 3, 1))
        return embeddings.permute(0, 3, 1, 2)

    def project_vectors(self, vectors: Tensor) -> Tensor:
        """Project the vectors (A, C) at some positions alone, two at least, as a map that has no others; (A, D).

        Norms take their statistics over these vectors.
        """
        one_map = vectors[None, :, None].permute(0, 3, 1, 2)  # (1, C, A, 1), channels last
        embeddings: Tensor = self(one_map)
        return embeddings.permute(0, 2, 3, 1)[0, :, 0]


class _ChannelsLast(nn.Sequential):
    """Layers on a map with channels last.

    There a 1x1 convolution is a plain matrix product, and an anchor lies in one piece.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self:
            x = layer(x)
        return x
