"""Layers that can be traced for all sizes, against those that they stand for."""

import pytest
import torch
from detectron2.modeling.backbone.swin import BasicLayer, PatchMerging
from tiny_models import make_batch, small_model
from torch import nn
from torch.nn import functional as F

from d2_contrast.modeling.backbone import Swin
from d2_contrast.modeling.exportable import (
    AveragePool,
    ExportableFunctions,
    ExportableSegmentor,
    SwinStage,
    make_exportable,
)


@pytest.mark.parametrize("bins", [1, 2, 3, 6, (2, 5)])
def test_average_pool(bins):
    """Maps smaller than the number of bins, of equal size, and of sizes that it does not divide."""
    for size in [(1, 1), (1, 7), (3, 4), (6, 6), (13, 8)]:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(AveragePool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


@pytest.mark.parametrize("window", [2, 5, 7])
def test_swin_stage(window):
    """Both kinds of blocks; maps smaller than a window, of whole windows, and others, odd ones among them."""
    torch.manual_seed(0)
    stage = BasicLayer(8, 3, 2, window_size=window, drop_path=0.0, downsample=PatchMerging).double().eval()
    for table in stage.parameters():
        nn.init.normal_(table, std=0.5)
    for height, width in [(1, 1), (3, 4), (window, 2 * window), (9, 16)]:
        x = torch.randn(2, height * width, 8, dtype=torch.float64)
        with torch.no_grad():
            given, expected = SwinStage(stage)(x, height, width), stage(x, height, width)
        for i in (0, 3):
            torch.testing.assert_close(given[i], expected[i])
        assert given[1:3] + given[4:] == expected[1:3] + expected[4:]


@pytest.mark.parametrize("shifts", [(1, -2), (-3, 3), (7, 0), (-7, 12)])
def test_rolls(shifts):
    """Shifts up to several times the size of the map."""
    x = torch.randn(2, 2, 5, 3)
    expected = torch.roll(x, shifts, (1, 2))
    with ExportableFunctions():
        assert torch.equal(torch.roll(x, shifts, dims=(1, 2)), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (7, 7), (14, 4), (9, 7)])
def test_tables_of_positions(size):
    """Smaller than the table, larger, in one direction, and of its size, where nothing changes."""
    table, options = torch.randn(2, 3, 7, 7), {"mode": "bicubic", "antialias": True}
    expected = F.interpolate(table, size=size, **options)
    with ExportableFunctions():
        given = F.interpolate(table, size=size, **options)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)
    assert size != (7, 7) or torch.equal(given, table)


def test_the_model_stays_as_it_is():
    model = small_model("cityscapes/uper_swin_t_contrast_bs8_160k.yaml")
    before = {name: type(module) for name, module in model.named_modules()}
    network = ExportableSegmentor(model)
    assert before == {name: type(module) for name, module in model.named_modules()}
    assert model.training and not any(module.training for module in network.backbone.modules())
    assert not any(isinstance(module, (BasicLayer, nn.AdaptiveAvgPool2d)) for module in network.modules())


def test_swin():
    swin = Swin(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4)).eval()
    image = torch.rand(2, 3, 64, 288)
    with torch.no_grad():
        expected = swin(image)
        given = make_exportable(swin)(image)
    assert given.keys() == expected.keys()
    for name, x in given.items():
        torch.testing.assert_close(x, expected[name])


def test_heads_whose_stride_the_padding_does_not_fit():
    """Detectron2's ResNet pads nothing: logits are resized to the image."""
    model = small_model(
        "shapes/fpn_r18_contrast.yaml",
        MODEL__BACKBONE__NAME="build_resnet_backbone",
        MODEL__SEM_SEG_HEAD__NAME="UPerHead",
        MODEL__SEM_SEG_HEAD__IN_FEATURES=["res2", "res3", "res4", "res5"],
        MODEL__CONTRAST__ENABLED=False,
    ).eval()
    image = make_batch((50, 71))[0]["image"]
    with torch.no_grad():
        torch.testing.assert_close(
            ExportableSegmentor(model)(image[None].float())[0], model([{"image": image}])[0]["sem_seg"]
        )


def test_what_is_no_segmentor():
    with pytest.raises(ValueError, match="Linear has no backbone: expected a semantic segmentor"):
        ExportableSegmentor(nn.Linear(2, 2))


def test_pools_inside_of_pools():
    module = make_exportable(nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.ReLU()), nn.AdaptiveAvgPool2d(1)))
    assert [type(m) for m in module.modules() if not isinstance(m, nn.Sequential)] == [
        AveragePool,
        nn.ReLU,
        AveragePool,
    ]
