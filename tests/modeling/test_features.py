import pytest
from detectron2.layers import ShapeSpec

from d2_contrast.config import load_config
from d2_contrast.modeling.features import contrasted_features

STAGES = ["res2", "res3", "res4", "res5"]
PYRAMID = ["p2", "p3", "p4", "p5"]


@pytest.mark.parametrize(
    "baseline, twin, names",
    [
        ("shapes/uper_r18.yaml", "shapes/uper_r18_contrast.yaml", PYRAMID),
        ("camvid/uper_mobilenetv2_bs4_1600.yaml", "camvid/uper_mobilenetv2_contrast_bs4_1600.yaml", PYRAMID),
        ("ade20k/uper_r101_bs16_160k.yaml", "ade20k/uper_r101_contrast_bs16_160k.yaml", PYRAMID),
        ("cityscapes/hrnet_w48_bs12_120k.yaml", "cityscapes/hrnet_w48_contrast_bs12_120k.yaml", STAGES),
        (
            "cityscapes/deeplabv3_r101_bs12_120k.yaml",
            "cityscapes/deeplabv3_r101_contrast_bs12_120k.yaml",
            ["res2", "res3", "res5"],
        ),
    ],
)
def test_a_baseline_has_the_maps_of_its_twin(baseline, twin, names, pytestconfig):
    shapes = dict.fromkeys(STAGES + (PYRAMID if names == PYRAMID else []), ShapeSpec(channels=8, stride=4))
    for config in (baseline, twin):
        cfg = load_config(str(pytestconfig.rootpath / "configs" / config))
        assert contrasted_features(cfg, shapes) == names


@pytest.mark.parametrize("enabled", [True, False])
def test_concatenated_maps_are_contrasted(enabled):
    cfg = load_config("", ["MODEL.CONTRAST.ENABLED", str(enabled)])
    cfg.MODEL.CONTRAST.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2+res3", "res3+res9"], ["res2"]
    shapes = dict.fromkeys(STAGES, ShapeSpec(channels=8, stride=4))
    assert contrasted_features(cfg, shapes) == ["res2+res3"]


def test_a_backbone_with_other_names():
    assert contrasted_features(load_config(""), {"fine": ShapeSpec(stride=4), "coarse": ShapeSpec(stride=8)}) == [
        "fine",
        "coarse",
    ]
