import pytest
import torch
from torch import nn

from d2_contrast.contrast import Projector


@pytest.mark.parametrize(
    "channels, hidden_layers, millions",
    [
        # (feature channels), released code / paper, parameters of all projectors with 256 output channels
        ((48, 96, 192, 384), 1, 0.3826),
        ((48, 96, 192, 384), 2, 0.6468),
        ((256, 2048), 1, 4.8548),
        ((256, 2048), 2, 4.9869),
        ((512, 512, 512, 512), 1, 1.5780),
        ((512, 512, 512, 512), 2, 1.8422),
    ],
)
def test_parameter_counts(channels, hidden_layers, millions):
    projectors = [Projector(c, hidden_layers=hidden_layers) for c in channels]
    count = sum(p.numel() for projector in projectors for p in projector.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-5)


@pytest.mark.parametrize("hidden_layers", [0, 1, 2, 3])
def test_layers_and_output(hidden_layers):
    projector = Projector(12, out_channels=8, hidden_layers=hidden_layers)
    assert [type(layer) for layer in projector.hidden] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d] * hidden_layers
    convs = [layer for layer in projector.hidden if isinstance(layer, nn.Conv2d)]
    assert all(conv.kernel_size == (1, 1) and conv.bias is None for conv in convs)
    assert projector.last.bias is not None
    out = projector(torch.randn(2, 12, 5, 7))
    assert out.shape == (2, 8, 5, 7)
    assert not torch.allclose(out.norm(dim=1), torch.ones(2, 5, 7))  # normalised only where it is sampled


def test_norm_is_exchangeable_and_the_input_untouched():
    projector = Projector(12, 8, norm=lambda channels: nn.GroupNorm(4, channels))
    assert type(projector.hidden[2]) is nn.GroupNorm
    x = torch.randn(2, 12, 4, 4, requires_grad=True)
    before = x.detach().clone()
    projector(x).sum().backward()
    assert torch.equal(x.detach(), before)
    assert all(p.grad is not None for p in projector.parameters())


@pytest.mark.parametrize("hidden_layers", [0, 2])
def test_it_is_a_stack_of_1x1_convolutions(hidden_layers):
    projector = Projector(12, 8, hidden_layers)
    last = nn.Conv2d(projector.last.in_features, 8, 1)
    last.weight.data, last.bias.data = projector.last.weight[..., None, None].data, projector.last.bias.data
    x = torch.randn(2, 12, 5, 7)
    torch.testing.assert_close(projector(x), last(nn.Sequential(*projector.hidden)(x)))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda channels: nn.GroupNorm(2, channels)])
def test_vectors_are_projected_as_a_map_of_their_own(norm):
    projector = Projector(12, 8, norm=norm)
    vectors = torch.randn(35, 12)
    one_map = vectors.t().reshape(1, 12, 5, 7)
    torch.testing.assert_close(projector.project_vectors(vectors), projector(one_map)[0].flatten(1).t())
