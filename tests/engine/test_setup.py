import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_contrast.data.datasets.shapes_drawing import CLASSES
from d2_contrast.engine.setup import unread_keys

SHAPES = list(CLASSES)


@pytest.mark.parametrize(
    ("overrides", "error", "culprit"),
    [
        (["MODEL.CONTRAST.TEMPERATUR", 0.1], KeyError, "MODEL.CONTRAST.TEMPERATUR"),
        (["MODEL.CONTRAST.TEMPERATURE", "warm"], ValueError, "MODEL.CONTRAST.TEMPERATURE"),
        (["SEED"], ValueError, "SEED"),
        (["DATASETS.TRAIN", "('moon_landing',)"], KeyError, "DATASETS.TRAIN: dataset 'moon_landing' is not registered"),
        (["DATASETS.TEST", "('moon_landing',)"], KeyError, "begin with ade20k_150, "),
        (["DATASETS.TEST", "('shape_val',)"], KeyError, "similar names: shapes_val"),
        (["MODEL.PIXEL_LOSS.AUX_NAME", "Dice"], KeyError, "MODEL.PIXEL_LOSS.AUX_NAME: 'Dice' is not registered"),
        (["SOLVER.REFERENCE_WORLD_SIZE", 3], ValueError, "SOLVER.IMS_PER_BATCH is 2: expected a multiple of"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 13], ValueError, "12 classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 13"),
        (["OUTPUT_DIR", "a" * 300], ValueError, "cannot be made (File name too long)"),
        (["OUTPUT_DIR", __file__], ValueError, f"OUTPUT_DIR '{__file__}' cannot be made"),
        (["MODEL.DEVICE", "meta"], ValueError, "MODEL.DEVICE is 'meta', which holds no numbers"),
        (
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            ValueError,
            "which ignores MODEL.CONTRAST.ENABLED: expected",
        ),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], ValueError, "META_ARCHITECTURE is 'GeneralizedRCNN', which "),
        (["MODEL.UPER.BOTTOM_UP", "UPerFPN"], ValueError, "MODEL.UPER.BOTTOM_UP is 'UPerFPN': expected the backbone"),
        (
            ["MODEL.CONTRAST.IN_FEATURES", ["p2+p2", "p3", "p4", "p5"], "MODEL.CONTRAST.CROSS_SCALE_PAIRS", []]
            + ["MODEL.CONTRAST.CROSS_SCALE_WEIGHTS", []],
            ValueError,
            "MODEL.CONTRAST.IN_FEATURES has 'p2+p2': expected each map once",
        ),
        (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254], ValueError, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 254"),
    ],
)
def test_errors_name_the_culprit(make_cfg, overrides, error, culprit):
    with pytest.raises(error) as raised:
        make_cfg(*overrides)
    assert culprit in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["MODEL.PIXEL_LOSS.NAME", "OHEM"],
            "MODEL.PIXEL_LOSS.NAME is 'OHEM', which the head 'SemSegFPNHead' of Detectron2",
        ),
        (["MODEL.PIXEL_LOSS.CLASS_WEIGHTS", [1.0] * 12], "MODEL.PIXEL_LOSS.CLASS_WEIGHTS is .*which the head"),
        (["MODEL.BACKBONE.PRETRAINED", True], "PRETRAINED is True, which the backbone 'build_resnet_fpn_backbone'"),
    ],
)
def test_what_detectron2s_parts_would_ignore_is_refused(make_cfg, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_cfg(*overrides, base="fpn_r18_contrast.yaml")


def test_keys_without_effect_are_said(make_cfg, logged):
    make_cfg("MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.RPN.NMS_THRESH", 0.5, "SOLVER.MOMENTUM", 0.5)
    (line,) = [line for line in logged().splitlines() if "of no effect" in line]
    assert line.endswith("MODEL.BACKBONE.FREEZE_AT, MODEL.RPN.NMS_THRESH, SOLVER.MOMENTUM")


@pytest.mark.parametrize(
    ("head", "aux_head", "expected"),
    [
        ("UPerHead", "", {"PIXEL_LOSS.AUX_NAME"}),
        ("UPerHead", "FCNHead", set()),
        ("UPerHead", "SemSegFPNHead", {"AUX_HEAD.DROPOUT", "PIXEL_LOSS.AUX_NAME"}),
        ("UPerHead", "DeepSupervisionHead", {"AUX_HEAD.DROPOUT"}),
        ("UPerHead", "ASPPHead", {"AUX_HEAD.CONVS_DIM", "AUX_HEAD.DROPOUT"}),
        ("OCRHead", "", set()),
        ("ASPPHead", "FCNHead", {"SEM_SEG_HEAD.CONVS_DIM", "SEM_SEG_HEAD.DROPOUT"}),
        ("DeepSupervisionHead", "", {"SEM_SEG_HEAD.DROPOUT", "PIXEL_LOSS.AUX_NAME"}),
    ],
)
def test_keys_that_heads_do_not_read(make_cfg, head, aux_head, expected):
    cfg = make_cfg("MODEL.SEM_SEG_HEAD.NAME", head, "MODEL.AUX_HEAD.NAME", repr(aux_head))
    assert {key for key in unread_keys(cfg) if "HEAD" in key or "LOSS" in key} == {f"MODEL.{key}" for key in expected}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stuff_classes": SHAPES[:10] + [SHAPES[11], SHAPES[10]]},
            "class 10 is '{}' in dataset 'shapes_train' and '{}'",
        ),
        ({"stuff_classes": SHAPES[:11] + ["blob"]}, "class 11 is '{1}' in dataset 'shapes_train' and 'blob'"),
        ({"stuff_classes": SHAPES, "ignore_label": -1}, "dataset 'others' has the ignore_label -1"),
        ({"stuff_classes": ["thing"]}, "dataset 'others' has 1 class to learn"),
        ({}, "dataset 'others' has no stuff_classes"),
    ],
)
def test_datasets_of_a_run_must_agree(make_cfg, changes, message):
    DatasetCatalog.register("others", lambda: [])
    MetadataCatalog.get("others").set(**changes)
    try:
        with pytest.raises(ValueError, match=message.format(*SHAPES[10:])):
            make_cfg("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val', 'others')")
    finally:
        DatasetCatalog.remove("others")
        MetadataCatalog.remove("others")


def test_unknown_key_in_a_file(tmp_path):
    from d2_contrast.config import load_config

    path = tmp_path / "typo.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  CONTRAST:\n    SCALE_WEIGHT: [1.0]\n")
    with pytest.raises(KeyError) as raised:
        load_config(str(path))
    for part in (str(path), "MODEL.CONTRAST.SCALE_WEIGHT;", "MODEL.CONTRAST.SCALE_WEIGHTS"):
        assert part in str(raised.value)


def test_paths_may_begin_with_the_home(make_cfg, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cfg = make_cfg("OUTPUT_DIR", "~/run", "MODEL.WEIGHTS", "~/a.pth")
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == (f"{tmp_path}/run", f"{tmp_path}/a.pth")
    assert (tmp_path / "run/log.txt").is_file() and not (tmp_path / "~").exists()


def test_falls_back_to_cpu(make_cfg, monkeypatch, logged):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = make_cfg("MODEL.DEVICE", "cuda")
    assert cfg.MODEL.DEVICE == "cpu"
    assert "running on cpu" in logged()
