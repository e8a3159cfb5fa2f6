"""Parameter counts of the full models: the paper's Table 3, and counts measured on other implementations."""

import pytest
from configs_on_meta import build_on_meta, count
from tiny_models import CONFIGS

SWIN_T, SWIN_S = "ade20k/uper_swin_t_bs16_160k.yaml", "ade20k/uper_swin_s_bs16_160k.yaml"
SWIN_B, SWIN_L = "ade20k/uper_swin_b_bs16_160k.yaml", "ade20k/uper_swin_l_bs16_160k.yaml"
R101 = "ade20k/uper_r101_bs16_160k.yaml"
DEEPLAB = "ade20k/deeplabv3_r101_bs16_160k.yaml"
OCR = "ade20k/ocrnet_hrnet_w48_bs16_160k.yaml"
HRNET = (
    "cityscapes/hrnet_w48_bs12_120k.yaml",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    150,
    "MODEL.PIXEL_LOSS.CLASS_WEIGHTS",
    [],
)
OCR_R50 = "cadis/ocrnet_r50_task2_bs8_50e.yaml"
DEEP_STEM = ("MODEL.TIMM.NAME", "resnet101c")
RELEASED_OCR = ("MODEL.OCR.AUX_KERNEL_SIZE", 3, "MODEL.OCR.AUX_CHANNELS", 512)


@pytest.fixture
def build(monkeypatch):
    return lambda config, *options: build_on_meta(monkeypatch, CONFIGS / config, *options)


@pytest.mark.parametrize(
    ("config", "options", "millions"),
    [(OCR, (), 71), (R101, DEEP_STEM, 86), (SWIN_T, (), 60), (SWIN_S, (), 81), (SWIN_B, (), 121), (SWIN_L, (), 234)],
)
def test_table_3(build, config, options, millions):
    assert round(count(build(config, *options)) / 1e6) == millions


def conv(c_in, c_out, kernel, bias=False):
    return c_in * c_out * kernel**2 + c_out * bias


def conv_norm(c_in, c_out, kernel, bias=False):
    return conv(c_in, c_out, kernel, bias) + 2 * c_out


@pytest.mark.parametrize(
    ("config", "options", "ours", "redundant", "measured"),
    [
        # ours, biases before norms that other implementations have, what was measured on them (millions)
        (HRNET[0], HRNET[1:], 65_953_110, 720, 65.95),
        (OCR, (), 70_533_100, 720 + 512, 70.53),
        (OCR, RELEASED_OCR, 73_300_844, 512 + 512, 73.3019),
        (OCR_R50, (), 38_867_554, 512 + 512, 38.8686),
        # A bias stands for the norm after global pooling: half as many parameters.
        (DEEPLAB, (), 58_073_558, 256, 58.0738),
        (R101, (), 85_489_004, 256, 85.49),
        (R101, DEEP_STEM, 85_508_236, 256, 85.51),
        (SWIN_T, (), 59_941_862, 256, 59.94),
        (SWIN_S, (), 81_259_766, 256, 81.26),
        (SWIN_B, (), 121_279_716, 256, 121.28),
        (SWIN_L, (), 233_759_936, 256, 233.76),
    ],
)
def test_totals(build, config, options, ours, redundant, measured):
    total = count(build(config, *options))
    assert total == ours
    assert total + redundant == pytest.approx(measured * 1e6, abs=0.5 * 10 ** (6 - len(str(measured).split(".")[1])))


@pytest.mark.parametrize(
    ("config", "backbone", "head", "aux", "aux_on_fourth"),
    [
        (R101, 42.5002, 40.5905, 2.3986, 4.7579),
        (SWIN_T, 27.5207, 31.4974, 0.9241, 1.8088),
        (SWIN_S, 48.8386, 31.4974, 0.9241, 1.8088),
        (SWIN_B, 86.7450, 33.3160, 1.2190, 2.3986),
        (SWIN_L, 194.9982, 36.9532, 1.8088, 3.5783),
    ],
)
def test_parts_of_upernet(build, config, backbone, head, aux, aux_on_fourth):
    model = build(config)
    bottom_up = count(model.backbone.bottom_up)
    assert bottom_up / 1e6 == pytest.approx(backbone, abs=5e-5)
    assert (count(model.backbone, model.sem_seg_head) - bottom_up) / 1e6 == pytest.approx(head, abs=5e-5)
    # The released code has a bias before the norm of the auxiliary head.
    assert (count(model.aux_head) + 256) / 1e6 == pytest.approx(aux, abs=5e-5)
    fourth = build(config, "MODEL.AUX_HEAD.IN_FEATURES", ["res5"])
    assert (count(fourth.aux_head) + 256) / 1e6 == pytest.approx(aux_on_fourth, abs=5e-5)


def test_parts_of_the_other_heads(build):
    """Layer by layer from the published structures."""
    hrnet = build(*HRNET)
    assert count(hrnet.backbone) == 65_325_120
    assert count(hrnet.sem_seg_head) == conv_norm(720, 720, 1) + conv(720, 150, 1, bias=True)

    def ocr_block(classes):
        attention = (
            2 * (conv_norm(512, 256, 1) + conv_norm(256, 256, 1)) + conv_norm(512, 256, 1) + conv_norm(256, 512, 1)
        )
        return attention + conv_norm(1024, 512, 1) + conv(512, classes, 1, bias=True)

    ocr = build(OCR).sem_seg_head
    aux = conv_norm(720, 720, 1) + conv(720, 150, 1, bias=True)
    assert count(ocr) == conv_norm(720, 512, 3) + aux + ocr_block(150)
    r50 = build(OCR_R50)
    aux = conv_norm(1024, 512, 3) + conv(512, 17, 1, bias=True)
    assert count(r50.backbone) == 23_508_032
    assert count(r50.sem_seg_head) == conv_norm(2048, 512, 3) + aux + ocr_block(17)
    deeplab = build(DEEPLAB)
    branches = conv_norm(2048, 256, 1) + 3 * conv_norm(2048, 256, 3) + conv(2048, 256, 1, bias=True)
    assert count(deeplab.backbone) == 42_500_160
    assert count(deeplab.sem_seg_head) == branches + conv_norm(5 * 256, 256, 1) + conv(256, 150, 1, bias=True)


@pytest.mark.parametrize(
    ("config", "one_layer", "two_layers"),
    [
        ("cityscapes/hrnet_w48_contrast_bs12_120k.yaml", 0.3826, 0.6468),
        ("cityscapes/uper_r101_contrast_bs12_120k.yaml", 6.5623, 6.8265),
        ("cityscapes/uper_swin_t_contrast_bs8_160k.yaml", 1.1559, 1.4201),
        ("cityscapes/uper_swin_b_contrast_bs8_160k.yaml", 1.8890, 2.1532),
        ("ade20k/uper_swin_t_contrast_bs16_160k.yaml", 1.5780, 1.8422),
        ("ade20k/deeplabv3_r101_contrast_bs16_160k.yaml", 5.2493, 5.4474),
        ("cadis/ocrnet_r50_task3_contrast_bs8_50e.yaml", 5.2493, 5.4474),
    ],
)
def test_projectors(build, config, one_layer, two_layers):
    for layers, expected in ((1, one_layer), (2, two_layers)):
        model = build(config, "MODEL.CONTRAST.PROJECTOR_LAYERS", layers)
        assert count(model.contrast) / 1e6 == pytest.approx(expected, abs=5e-5)
