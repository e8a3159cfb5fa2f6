"""What each key may be, and how keys fit together."""

import math

import pytest

from d2_contrast.config import default_config, load_config
from d2_contrast.config_files import CONFIGS, flatten
from d2_contrast.config_ranges import RANGES, UNUSED, Choice, ListOf, Number, Text, check_config, is_unused
from d2_contrast.engine import Trainer

FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "ablations"]
# Keys that only newer releases of Detectron2 have.
NEWER = {"FLOAT32_PRECISION", "DATALOADER.REPEAT_SQRT", "DATALOADER.RANDOM_SUBSET_RATIO"}

SWIN = ["MODEL.BACKBONE.NAME", "Swin"]
SLIDING = ["TEST.SLIDING_WINDOW.ENABLED", True]
CONTRAST = ["MODEL.CONTRAST.ENABLED", True]


def test_every_key_has_a_range_or_is_unused():
    keys = flatten(default_config()).keys()
    assert [key for key in keys if (key in RANGES) == is_unused(key)] == []
    assert RANGES.keys() - keys <= NEWER
    assert [own for own in UNUSED if not any(key == own or key.startswith(own + ".") for key in keys)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_configs_of_the_project_are_in_range(path):
    check_config(load_config(str(path)))


@pytest.mark.parametrize("key", [key for key in RANGES if key not in (*NEWER, "DATASETS.FOLDERS")])
def test_senseless_values_of_every_key(key):
    """None of them makes sense anywhere, but for the few that are listed."""
    fine = {
        "SOLVER.WEIGHT_DECAY_NORM": [None],
        "SOLVER.WEIGHT_DECAY_BIAS": [None],
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": [math.inf],
        "SEED": [-7],
    }
    for value in (None, {}, "\0", " ", -7, math.nan, math.inf, 1e30, [None], [[]], [-7.5]):
        cfg = default_config()
        node, _, name = key.rpartition(".")
        section = cfg
        for part in filter(None, node.split(".")):
            section = section[part]
        section.update({name: value})
        if value in fine.get(key, []):
            check_config(cfg)
            continue
        with pytest.raises(ValueError, match=f"^{key}.*: expected "):
            check_config(cfg)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Number(least=0, below=1), [0, 0.5], [1, -1e-9, True, "0.5", math.nan], "a number of at least 0 and below 1"),
        (Number(above=0, infinite=True), [1e-9, math.inf], [0, -math.inf], "a number above 0 or inf"),
        (Number(odd=True, least=1, most=3), [1, 3], [2, 5, 1.0], "an odd number of at least 1 and at most 3"),
        (Number(whole=True), [-3], [3.0, True], "a whole number"),
        (Choice("", 1), ["", 1], ["1", True, 1.0, None], "'' or 1"),
        (Text("a word", r"\w+", empty=True), ["a", ""], ["a b", 3, None], "a word, or ''"),
        (Text(), ["a b"], ["", "\t", "a\0b"], "a name"),
        (ListOf(Number(), length=2, order="ordered"), [(1, 1), [0, 2]], [[2, 1], [1], 1, "12", [1, "2"]], None),
        (ListOf(Text(), least=1, order="distinct"), [["a", "b"]], [[], ["a", "b", "a"], "ab"], None),
        (ListOf(Number(whole=True), order="increasing"), [(), (1, 3)], [(1, 1), (3, 1)], None),
    ],
)
def test_ranges(allowed, inside, outside, text):
    assert [value for value in inside if value not in allowed] == []
    assert [value for value in outside if value in allowed] == []
    assert text is None or str(allowed) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.MOMENTUM", "1"], "SOLVER.MOMENTUM is 1.0: expected a number of at least 0 and below 1"),
        (["SEED", "x"], "command line: SEED is x: expected a whole number"),
        (["MODEL.CONTRAST", "3"], "command line: MODEL.CONTRAST is 3: expected a section with keys"),
        (["DATASETS.TRAIN", "shapes_train"], "DATASETS.TRAIN is shapes_train: expected a list of names"),
        (["INPUT.CROP.SIZE", "[]"], r"INPUT.CROP.SIZE is \[\]: expected a list of 2 whole numbers of at least 1"),
        (["INPUT.SCALE_RANGE", "[2, 1]"], r"INPUT.SCALE_RANGE is \[2, 1\]: .*, none smaller than the one before"),
        (["MODEL.RPN.IOU_LABELS", "3"], r"MODEL.RPN.IOU_LABELS is 3: expected a value like \[0, -1, 1\]"),
        (["SEED", "1e-3", "SOLVER.GAMMA", 7.0], "SEED is 0.001: expected a whole number"),
        ([*CONTRAST, "MODEL.CONTRAST.SCALE_WEIGHTS", [1.0]], "CONTRAST.SCALE_WEIGHTS is .* one weight for each of"),
        ([*CONTRAST, "MODEL.CONTRAST.IN_FEATURES", ["a", "b", "c", "res2"]], "CROSS_SCALE_PAIRS has .'res2', 'res5'"),
        (["MODEL.PIXEL_LOSS.CLASS_WEIGHTS", [1.0, 2.0]], "CLASS_WEIGHTS is .*each of the 54 classes"),
        (["MODEL.PIXEL_LOSS.CLASS_WEIGHTS", [0.0] * 54], "CLASS_WEIGHTS is .*not all of them 0"),
        ([*SWIN, "MODEL.SWIN.NUM_HEADS", [3, 6, 12, 25]], "NUM_HEADS is .* divisors of .*EMBED_DIM 96"),
        (["MODEL.RESNETS.DEPTH", 18], "RESNETS.RES2_OUT_CHANNELS is 256: expected 64 where MODEL.RESNETS.DEPTH is 18"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res6"]], "RESNETS.OUT_FEATURES is .'res6'.: expected names from"),
        (["INPUT.MIN_SIZE_TRAIN", (512, 2048)], "INPUT.MAX_SIZE_TRAIN is 1333: expected at least INPUT.MIN_SIZE_TRAIN"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "DATALOADER.REPEAT_THRESHOLD is 0: expected"),
        (["SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0], "SOLVER.MOMENTUM is 0: expected a number above 0"),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1],
            "SOLVER.BASE_LR_END is 1.0: expected",
        ),
        (["SOLVER.REFERENCE_WORLD_SIZE", 3], "SOLVER.IMS_PER_BATCH is 16: expected a multiple of .*, 3"),
        (["SOLVER.NO_DECAY_NAMES", ["bias"], "SOLVER.WEIGHT_DECAY_BIAS", 0.0], "SOLVER.NO_DECAY_NAMES has 'bias'"),
        ([*SLIDING, "TEST.SLIDING_WINDOW.STRIDE", [513, 9]], r"STRIDE is \[513, 9\]: expected at most .*\[512, 512\]"),
        (["TEST.PRECISE_BN.ENABLED", True, "SOLVER.EMA.ENABLED", True], "PRECISE_BN.ENABLED is True: expected False"),
        (
            ["TEST.PRECISE_BN.ENABLED", True, "MODEL.CONTRAST.ENABLED", True, "MODEL.CONTRAST.MEMORY.METHOD", "pixels"],
            "PRECISE_BN.ENABLED is True: expected False with MODEL.CONTRAST.MEMORY",
        ),
        (["TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU", 50, 1]]], r"EXPECTED_RESULTS is .*: expected \[\] unless"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        load_config("", options)


def test_all_problems_are_named():
    with pytest.raises(ValueError, match="^SOLVER.MOMENTUM is -1.0: .*; SOLVER.GAMMA is 7.0: "):
        load_config("", ["SOLVER.MOMENTUM", -1.0, "SOLVER.GAMMA", 7.0])


def test_relations_count_where_their_keys_do():
    load_config("", ["MODEL.CONTRAST.SCALE_WEIGHTS", [1.0], "TEST.SLIDING_WINDOW.STRIDE", [513, 9]])
    load_config("", ["SOLVER.BASE_LR_END", 1.0, "MODEL.SWIN.NUM_HEADS", [3, 6, 12, 25]])


def test_whole_numbers_are_taken_for_floats(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("SOLVER: {BASE_LR: 1, GAMMA: '1'}\nMODEL: {CONTRAST: {TEMPERATURE: 1}}\n")
    cfg = load_config(str(path), ["SOLVER.HEAD_LR_FACTOR", "10", "SOLVER.BASE_LR_END", 1])
    values = cfg.SOLVER.BASE_LR, cfg.MODEL.CONTRAST.TEMPERATURE, cfg.SOLVER.BASE_LR_END, cfg.SOLVER.HEAD_LR_FACTOR
    assert values == (1.0, 1.0, 1.0, 10.0)
    assert {type(value) for value in values} == {float}


def test_texts_that_are_numbers_are_taken_for_floats(tmp_path):
    """Those that yaml 1.1, or Python's notation of values, does not have."""
    (tmp_path / "a.yaml").write_text(
        "SOLVER: {BASE_LR: 1e-3, CLIP_GRADIENTS: {NORM_TYPE: inf}}\nINPUT: {SCALE_RANGE: [5e-1, 2]}\n"
        "MODEL: {PIXEL_LOSS: {CLASS_WEIGHTS: [1e-1, 1e+1]}, SEM_SEG_HEAD: {NUM_CLASSES: 2}}\n"
        "DATASETS: {TRAIN: [1e5]}\n"
    )
    cfg = load_config(str(tmp_path / "a.yaml"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE, cfg.INPUT.SCALE_RANGE) == (
        0.001,
        math.inf,
        [0.5, 2],
    )
    assert (cfg.MODEL.PIXEL_LOSS.CLASS_WEIGHTS, cfg.DATASETS.TRAIN) == ([0.1, 10.0], ("1e5",))
    for text in "inf", ".inf", math.inf:
        assert load_config("", ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", text]).SOLVER.CLIP_GRADIENTS.NORM_TYPE == math.inf
    for text in "nan", "-inf", "info", "":
        with pytest.raises(ValueError, match="NORM_TYPE is .*expected a number above 0 and at most 1000 or inf"):
            load_config("", ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", text])


def test_whoever_extends_adds_to_the_ranges(monkeypatch):
    monkeypatch.setitem(RANGES, "SOLVER.OPTIMIZER", Choice("SGD", "Lion"))
    assert load_config("", ["SOLVER.OPTIMIZER", "Lion"]).SOLVER.OPTIMIZER == "Lion"
    cfg = default_config()
    cfg.MY_KEY = -1
    check_config(cfg)


def test_channels_that_a_group_norm_cannot_share_out():
    cfg = load_config("models/uper_swin_t", ["MODEL.UPER.NORM", "GN", "MODEL.UPER.OUT_CHANNELS", 40])
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.PRETRAINED, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = "cpu", False, 64
    with pytest.raises(
        ValueError, match=r"MODEL.UPER.OUT_CHANNELS is 40: .* multiple of 32 .*MODEL.UPER.NORM is 'GN'\)$"
    ):
        Trainer.build_model(cfg)
    cfg.MODEL.UPER.OUT_CHANNELS = 32
    with pytest.raises(ValueError, match=r"^MODEL.UPER.OUT_CHANNELS is 32: expected a multiple of 32, 64 or more"):
        Trainer.build_model(cfg)
