import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import nn

from d2_contrast.config import default_config
from d2_contrast.contrast import Projector
from d2_contrast.modeling.heads import (
    ASPPHead,
    DeepSupervisionHead,
    FCNHead,
    HRNetHead,
    OCRHead,
    UPerHead,
    build_aux_head,
)
from d2_contrast.modeling.pixel_losses import CrossEntropy, LovaszSoftmax

K = 3
SHAPES = {
    "res2": ShapeSpec(channels=4, stride=4),
    "res3": ShapeSpec(channels=6, stride=8),
    "res4": ShapeSpec(channels=8, stride=8),
}
COMMON = dict(num_classes=K, norm="", loss_weight=1.0, ignore_value=255)


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, s.channels, 32 // s.stride, 48 // s.stride, generator=generator)
        for name, s in SHAPES.items()
    }


def make(cls, shapes=SHAPES, **options):
    torch.manual_seed(0)
    return cls(shapes, pixel_loss=CrossEntropy(num_classes=K), **(COMMON | options))


def make_ocr(**options):
    aux = dict(aux_input_shape={"res2": SHAPES["res2"]}, aux_pixel_loss=CrossEntropy(num_classes=K))
    return make(OCRHead, channels=10, key_channels=5, aux_channels=7, **(aux | options))


HEADS = {
    "UPerHead": lambda: make(UPerHead, channels=5),
    "HRNetHead": lambda: make(HRNetHead, channels=5),
    "OCRHead": make_ocr,
    "ASPPHead": lambda: make(ASPPHead, {"res4": SHAPES["res4"]}, channels=5, dilations=[1, 2, 3]),
    "FCNHead": lambda: make(FCNHead, {"res4": SHAPES["res4"]}, channels=5),
}


@pytest.mark.parametrize("name", HEADS)
def test_logits_and_losses(name):
    """Inference gives logits of the image's size; training losses of those logits before they are resized."""
    head = HEADS[name]()
    maps = features()
    with torch.no_grad():
        logits, losses = head.eval()(maps)
    stride = 4 if "res2" in head.in_features else 8
    assert head.common_stride == stride and logits.shape == (2, K, 32, 48) and losses == {}
    targets = torch.randint(0, K, (2, 32, 48))
    targets[:, :5] = 255
    for module in head.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    result, losses = head.train()(maps, targets)
    torch.testing.assert_close(F.interpolate(result, scale_factor=stride, mode="bilinear"), logits)
    expected = F.cross_entropy(logits, targets, ignore_index=255)
    torch.testing.assert_close(losses["loss_sem_seg"], expected)


@pytest.mark.parametrize("cls", [UPerHead, HRNetHead, OCRHead, DeepSupervisionHead], ids=lambda c: c.__name__)
def test_a_coarse_map_may_be_the_first(cls):
    """Logits have its stride, and the size of the image all the same."""
    names = ["res3", "res4", "res2"]
    cfg = config("MODEL.SEM_SEG_HEAD.IN_FEATURES", names, "MODEL.CONTRAST.SCALE_WEIGHTS", [1.0, 1.0, 1.0])
    head = cls(cfg, SHAPES).eval()
    with torch.no_grad():
        logits, _ = head(features())
    assert logits.shape == (2, K, 32, 48) and head.layers(features()).shape[2:] == (4, 6)


def test_concatenation_by_hand():
    head = make(HRNetHead, channels=5).eval()
    maps = features()
    coarse = [F.interpolate(maps[k], size=(8, 12), mode="bilinear", align_corners=False) for k in ("res3", "res4")]
    x = torch.cat([maps["res2"], *coarse], dim=1)
    with torch.no_grad():
        x = torch.einsum("nchw,dc->ndhw", x, head.fuse.weight[:, :, 0, 0]) + head.fuse.bias.view(1, -1, 1, 1)
        x = torch.einsum("nchw,dc->ndhw", x.relu(), head.predictor.weight[:, :, 0, 0])
        torch.testing.assert_close(head.layers(maps), x + head.predictor.bias.view(1, -1, 1, 1))


def test_uper_and_hrnet_heads_differ_in_the_kernel():
    assert make(UPerHead, channels=5).fuse.kernel_size == (3, 3)
    assert make(HRNetHead, channels=5).fuse.kernel_size == (1, 1)


def test_object_context_by_hand():
    """Regions and attention from Eq. 1 to 5 of the paper, pixel by pixel."""
    head = make_ocr().eval()
    maps = features()
    with torch.no_grad():
        logits = head.layers(maps)
        coarse = [F.interpolate(maps[k], size=(8, 12), mode="bilinear", align_corners=False) for k in ("res3", "res4")]
        pixels = head.pixels([maps["res2"], *coarse]).double()
        aux = head.aux([maps["res2"]]).double()
        head.double()
        attention = head.attention
        for n in range(2):
            x = pixels[n].flatten(1).t()  # (P, C)
            regions = []
            for k in range(K):
                weights = aux[n, k].flatten().exp()
                regions.append((weights[:, None] * x).sum(0) / weights.sum())

            def apply(layer, v):
                return layer(v.view(1, -1, 1, 1)).flatten()

            keys = [apply(attention.key, r) for r in regions]
            values = [apply(attention.value, r) for r in regions]
            for i in (0, 17, 95):
                query = apply(attention.query, x[i])
                weights = torch.stack([(query @ key / math.sqrt(5)).exp() for key in keys])
                context = sum(w * v for w, v in zip(weights / weights.sum(), values))
                z = torch.cat([apply(attention.output, context), x[i]])
                expected = apply(head.predictor, apply(head.fuse, z))
                torch.testing.assert_close(logits[n].flatten(1)[:, i].double(), expected, rtol=1e-4, atol=1e-5)


def test_first_prediction_of_ocr_is_supervised():
    head = make_ocr(aux_loss_weight=0.4, dropout=0.0).train()
    maps, targets = features(), torch.randint(0, K, (2, 32, 48))
    _, losses = head(maps, targets)
    aux = F.interpolate(head.aux([maps["res2"]]), size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(losses["loss_aux_sem_seg"], 0.4 * F.cross_entropy(aux, targets))


def test_deep_supervision():
    """Cross entropy of each map behind what the contrastive losses have there; predictions are those of the first."""
    names = ["res2", "res4"]
    shapes = {name: SHAPES[name] for name in names}
    head = make(DeepSupervisionHead, shapes, channels=5, scale_weights=[1.0, 0.3], norm="BN", loss_weight=0.5)
    maps, targets = features(), torch.randint(0, K, (2, 32, 48))
    logits, losses = head(maps, targets)
    torch.manual_seed(0)
    expected = {}
    for name, weight in zip(names, [1.0, 0.3]):
        projector, classifier = Projector(SHAPES[name].channels, 5), nn.Conv2d(5, K, 1)
        x = F.interpolate(classifier(projector(maps[name])), size=(32, 48), mode="bilinear", align_corners=False)
        expected[f"loss_{name}"] = 0.5 * weight * F.cross_entropy(x, targets)
    torch.testing.assert_close(losses, expected)
    assert logits.shape == (2, K, 8, 12)
    assert head.eval()(maps)[0].shape == (2, K, 32, 48)


def test_deep_supervision_as_auxiliary_head():
    cfg = config("MODEL.AUX_HEAD.NAME", "DeepSupervisionHead", "MODEL.AUX_HEAD.IN_FEATURES", [*SHAPES])
    cfg.merge_from_list(["MODEL.AUX_HEAD.CONVS_DIM", 6, "MODEL.CONTRAST.SCALE_WEIGHTS", [1.0, 0.5, 0.1]])
    cfg.merge_from_list(["MODEL.CONTRAST.PROJECTOR_LAYERS", 1])
    head = build_aux_head(cfg, SHAPES)
    assert head.scale_weights == {"res2": 1.0, "res3": 0.5, "res4": 0.1} and head.loss_weight == 0.4
    projectors = {name: classifier[0] for name, classifier in head.classifiers.items()}
    assert all(len(p.hidden) == 3 and p.last.out_features == 6 for p in projectors.values())
    cfg.merge_from_list(["MODEL.CONTRAST.SCALE_WEIGHTS", [1.0]])
    with pytest.raises(
        ValueError, match="MODEL.CONTRAST.SCALE_WEIGHTS is .1.0.: .* needs one for each of MODEL.AUX_HE"
    ):
        build_aux_head(cfg, SHAPES)


def test_loss_weight():
    targets = torch.randint(0, K, (2, 32, 48))
    plain = make(HRNetHead, channels=5)(features(), targets)[1]["loss_sem_seg"]
    torch.testing.assert_close(
        make(HRNetHead, channels=5, loss_weight=0.3)(features(), targets)[1]["loss_sem_seg"], 0.3 * plain
    )


def config(*options):
    cfg = default_config()
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", K, "MODEL.SEM_SEG_HEAD.NORM", "BN", *options])
    return cfg


@pytest.mark.parametrize("cls", [UPerHead, HRNetHead, OCRHead, ASPPHead])
def test_unknown_feature(cls):
    cfg = config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "p9"])
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.IN_FEATURES .*gives .'res2', 'res3', 'res4'., not .'p9'"):
        cls(cfg, SHAPES)


def test_unknown_feature_of_auxiliary_heads():
    cfg = config("MODEL.AUX_HEAD.NAME", "FCNHead", "MODEL.AUX_HEAD.IN_FEATURES", ["res7"])
    with pytest.raises(ValueError, match="MODEL.AUX_HEAD.IN_FEATURES .*'res2', 'res3', 'res4'., not .'res7'"):
        build_aux_head(cfg, SHAPES)
    cfg = config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3"], "MODEL.OCR.AUX_IN_FEATURES", ["res7"])
    with pytest.raises(ValueError, match="MODEL.OCR.AUX_IN_FEATURES .*not .'res7'"):
        OCRHead(cfg, SHAPES)


def test_numbers_of_features():
    for cls in (FCNHead, ASPPHead):
        cfg = config("MODEL.AUX_HEAD.NAME", cls.__name__, "MODEL.AUX_HEAD.IN_FEATURES", ["res2", "res3"])
        with pytest.raises(
            ValueError, match=f"MODEL.AUX_HEAD.IN_FEATURES is .'res2', 'res3'.: {cls.__name__} reads one"
        ):
            build_aux_head(cfg, SHAPES)
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.IN_FEATURES is .'res2', 'res3'.: ASPPHead reads one"):
        ASPPHead(config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3"]), SHAPES)
    with pytest.raises(ValueError, match="stride of the first must be that of the first of .'res3'., 8"):
        OCRHead(config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3"], "MODEL.OCR.AUX_IN_FEATURES", ["res2"]), SHAPES)


def test_from_config():
    cfg = config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4"], "MODEL.SEM_SEG_HEAD.CONVS_DIM", 12)
    cfg.merge_from_list(
        ["MODEL.OCR.AUX_IN_FEATURES", ["res3"], "MODEL.OCR.AUX_KERNEL_SIZE", 3, "MODEL.OCR.KEY_CHANNELS", 6]
    )
    cfg.merge_from_list(
        ["MODEL.OCR.AUX_CHANNELS", 9, "MODEL.OCR.AUX_LOSS_WEIGHT", 0.7, "MODEL.SEM_SEG_HEAD.DROPOUT", 0.2]
    )
    head = OCRHead(cfg, SHAPES)
    assert head.aux[0].weight.shape == (9, 6, 3, 3) and head.pixels.weight.shape == (12, 8, 3, 3)
    assert head.attention.value.weight.shape == (6, 12, 1, 1)
    assert head.aux_loss_weight == 0.7 and head.dropout.p == 0.2
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", [2, 3, 4], "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.3])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 14])
    head = ASPPHead(cfg, SHAPES)
    assert [conv.dilation[0] for conv in list(head.aspp.convs)[1:4]] == [2, 3, 4]
    assert head.aspp.dropout == 0.3 and head.predictor.in_channels == 14


@pytest.mark.parametrize("name", [*HEADS, "SemSegFPNHead", "DeepLabV3Head", "DeepLabV3PlusHead"])
def test_any_head_can_be_the_auxiliary_one(name):
    """It reads MODEL.AUX_HEAD where it would read MODEL.SEM_SEG_HEAD."""
    cfg = config(
        *["MODEL.AUX_HEAD.NAME", name, "MODEL.AUX_HEAD.CONVS_DIM", 6, "MODEL.AUX_HEAD.LOSS_WEIGHT", 0.5],
        *["MODEL.SEM_SEG_HEAD.CONVS_DIM", 99, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 1.0],
        *["MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 6, "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [2]],
        *["MODEL.AUX_HEAD.IN_FEATURES", ["res2", "res4"] if name == "DeepLabV3PlusHead" else ["res4"]],
        *["MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy"],
    )
    head = build_aux_head(cfg, SHAPES)
    assert head.loss_weight == 0.5 and (head.predictor.in_channels, head.predictor.out_channels) == (6, K)
    _, losses = head.train()(features(), torch.randint(0, K, (2, 32, 48)))
    assert losses["loss_sem_seg"].isfinite()
    assert cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM == 99


def test_auxiliary_pixel_loss():
    cfg = config("MODEL.AUX_HEAD.NAME", "FCNHead", "MODEL.AUX_HEAD.IN_FEATURES", ["res4"])
    assert type(build_aux_head(cfg, SHAPES).pixel_loss) is CrossEntropy
    cfg.MODEL.PIXEL_LOSS.AUX_NAME = "LovaszSoftmax"
    assert type(build_aux_head(cfg, SHAPES).pixel_loss) is LovaszSoftmax


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FCN", "MODEL.AUX_HEAD.NAME is 'FCN': expected one of .*'FCNHead'.*, or '' for no"),
        ("DeepLabV3PlusHead", "'DeepLabV3PlusHead' cannot be built on MODEL.AUX_HEAD.IN_FEATURES .'res4'.: Expected 0"),
    ],
)
def test_auxiliary_heads_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_aux_head(config("MODEL.AUX_HEAD.NAME", name, "MODEL.AUX_HEAD.IN_FEATURES", ["res4"]), SHAPES)
