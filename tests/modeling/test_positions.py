"""Positions of feature maps and pixels of images: what is where, whatever the sizes of the maps."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch.nn import functional as F

from d2_contrast.modeling import ContrastiveSegmentor
from d2_contrast.modeling.backbone import TimmBackbone
from d2_contrast.modeling.heads import SemSegHead
from d2_contrast.modeling.layers import concat_at_finest, fit_to_grid

# One model of each family; the first eight have maps that are not input / stride, or take images of few sizes alone.
FAMILIES = [
    "inception_v3", "inception_v4", "inception_resnet_v2", "legacy_xception", "mobilevitv2_050", "csatv2",
    "maxvit_rmlp_pico_rw_256", "halonet26t", "resnet18", "resnetv2_18", "convnext_atto", "mobilenetv3_small_050",
    "regnetx_002", "hrnet_w18_small", "pvt_v2_b0", "edgenext_xx_small", "mobilevit_xxs", "densenet121", "dla46_c",
    "ghostnet_050", "fasternet_t0", "selecsls42", "tinynet_e", "skresnet18", "efficientvit_b0", "vgg11",
]  # fmt: skip
SIZES = [(96, 128), (100, 150), (231, 131)]


def coordinates(size, image_size):
    """Coordinates (2, h, w) in pixels of the positions of a map that covers an image: of the middles of their areas."""
    sides = [(torch.arange(own, dtype=torch.float64) + 0.5) * full / own - 0.5 for own, full in zip(size, image_size)]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))


class Coordinates(SemSegHead):
    """Logits that are, for each feature map, the pixels at which training compares its positions with labels."""

    def __init__(self, shapes):
        super().__init__(shapes, pixel_loss=self.keep, loss_weight=1.0, ignore_value=255)

    def keep(self, logits, targets):
        self.kept = logits
        return logits.sum()

    def layers(self, features):
        self.features = features
        maps = [coordinates(features[name].shape[-2:], self.image_size)[None] for name in self.in_features]
        return concat_at_finest(maps)


@pytest.mark.parametrize("name", FAMILIES)
def test_predictions_are_where_training_put_them(name):
    """The network runs without arithmetic: only the sizes of its maps matter."""
    with torch.device("meta"):
        backbone = TimmBackbone(name=name)
        head = Coordinates(backbone.output_shape())
        model = ContrastiveSegmentor(
            backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
        ).eval()
    shapes = backbone.output_shape()
    # Nearer to the edges than half the stride of a map, there is nothing to interpolate with.
    border = max(shape.stride for shape in shapes.values()) // 2 + min(shape.stride for shape in shapes.values())
    for size in SIZES:
        head.image_size = padded = backbone.sizes.pad(size)
        inner = (..., slice(border, padded[0] - border), slice(border, padded[1] - border))
        truth = coordinates(padded, padded).repeat(4, 1, 1)
        (output,) = model([{"image": torch.zeros(3, *size)}])
        assert output["sem_seg"].shape == (8, *size)
        torch.testing.assert_close(
            output["sem_seg"][inner], truth.float()[:, : size[0], : size[1]][inner], rtol=0, atol=1e-3
        )
        head.train()(head.features, torch.zeros(1, *padded))
        torch.testing.assert_close(head.kept[0][inner], truth.float()[inner], rtol=0, atol=1e-3)
        head.eval()
        for feature, shape in shapes.items():
            assert head.features[feature].shape[1:] == (shape.channels, *(side // shape.stride for side in padded))


class Odd(Backbone):
    """Maps that are not input / stride: convolutions without padding."""

    size_divisibility = 32

    def forward(self, image):
        return {"res2": F.avg_pool2d(image, 3, 2)}

    def output_shape(self):
        return {"res2": ShapeSpec(channels=3, stride=2)}


def test_logits_of_a_backbone_that_breaks_its_promise():
    """The heads multiply by the stride; the segmentor knows better."""
    head = Coordinates(Odd().output_shape()).eval()
    model = ContrastiveSegmentor(backbone=Odd(), sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3).eval()
    head.image_size = (64, 96)
    (output,) = model([{"image": torch.zeros(3, 40, 90)}])
    truth = coordinates((64, 96), (64, 96))[:, 4:40, 4:90]
    torch.testing.assert_close(output["sem_seg"][:, 4:, 4:], truth.float(), rtol=0, atol=1e-3)


def test_a_map_without_its_border_is_put_in_the_middle():
    """Each position of convolutions without padding stays at the pixel that they look at, and is not stretched away."""
    image = coordinates((64, 96), (64, 96))[None]
    looks_at = image[..., 4:-4, 4:-4][..., ::4, ::4]  # what valid convolutions of stride 4 leave: 14 x 22 of 16 x 24
    fitted = fit_to_grid(looks_at, (16, 24))
    assert fitted.shape == (1, 2, 16, 24)
    distance = fitted - coordinates((16, 24), (64, 96))[None]
    inner = distance[..., 1:-1, 1:-1]
    assert torch.equal(inner, inner[..., :1, :1].expand_as(inner)) and inner.abs().max() <= 2
    assert torch.equal(fitted[..., 0, :], fitted[..., 1, :]) and torch.equal(fitted[..., -1], fitted[..., -2])


def test_a_map_that_was_stretched_is_resized():
    stretched = coordinates((10, 12), (288, 352))[None]
    fitted = fit_to_grid(stretched, (9, 11))[..., 1:-1, 1:-1]
    torch.testing.assert_close(fitted, coordinates((9, 11), (288, 352))[None, :, 1:-1, 1:-1])


@pytest.mark.parametrize(("size", "wanted"), [((3, 9), (4, 7)), ((1, 1), (5, 2)), ((6, 6), (6, 6))])
def test_any_map_gets_the_size_of_its_grid(size, wanted):
    x = torch.randn(2, 3, *size)
    fitted = fit_to_grid(x, wanted)
    assert fitted.shape == (2, 3, *wanted)
    assert (fitted is x) == (size == wanted)
