"""Config keys: old names, and defaults that are those of Python."""

import inspect
import logging

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import add_deeplab_config

from d2_contrast.config import add_contrast_config, default_config, flatten, load_config, parse_config
from d2_contrast.contrast import AnchorSampler, ContrastiveBranch, MultiScaleContrast, Projector
from d2_contrast.modeling.meta_arch import build_contrast

OLD = "VERSION: 2\nMODEL:\n  CONTRAST: {MAX_PER_CLASS: 7, MIN_PER_CLASS: 2}\n"
WARNINGS = [
    "MODEL.CONTRAST.MAX_PER_CLASS is now called MODEL.CONTRAST.MAX_PER_GROUP",
    "MODEL.CONTRAST.MIN_PER_CLASS is now called MODEL.CONTRAST.MIN_PER_GROUP",
]


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_old_names_in_a_file(write, caplog):
    path = write(OLD)
    with caplog.at_level(logging.WARNING):
        cfg = load_config(path)
    assert (cfg.MODEL.CONTRAST.MAX_PER_GROUP, cfg.MODEL.CONTRAST.MIN_PER_GROUP) == (7, 2)
    assert caplog.messages == [f"{path}: {warning}" for warning in WARNINGS]
    assert "PER_CLASS" not in cfg.dump()


def test_old_names_on_the_command_line_override_a_file(write, caplog):
    path = write(OLD.replace("PER_CLASS", "PER_GROUP"))
    with caplog.at_level(logging.WARNING):
        cfg = load_config(path, ["MODEL.CONTRAST.MAX_PER_CLASS", "0", "MODEL.CONTRAST.MIN_PER_CLASS", 3])
    assert (cfg.MODEL.CONTRAST.MAX_PER_GROUP, cfg.MODEL.CONTRAST.MIN_PER_GROUP) == (0, 3)
    assert caplog.messages == [f"command line: {warning}" for warning in WARNINGS]


def test_saved_configs_of_older_runs(write):
    """They hold every key; a base file may have the old names, too."""
    saved = default_config()
    del saved.MODEL.CONTRAST["MAX_PER_GROUP"], saved.MODEL.CONTRAST["MIN_PER_GROUP"], saved.MODEL.CONTRAST["PROJECT"]
    saved.MODEL.CONTRAST.MAX_PER_CLASS = 9
    saved.MODEL.CONTRAST.MIN_PER_CLASS = 5
    write(saved.dump(), "saved.yaml")
    expected = default_config()
    expected.MODEL.CONTRAST.MAX_PER_GROUP = 9
    loaded = load_config(write("_BASE_: saved.yaml\n"))
    assert loaded.MODEL.CONTRAST == expected.MODEL.CONTRAST


def test_no_warning_without_need(write, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(write(OLD.replace("PER_CLASS", "PER_GROUP")), ["MODEL.CONTRAST.MAX_PER_GROUP", 3])
    assert not caplog.messages


def test_old_names_with_wrong_values(write):
    path = write("VERSION: 2\nMODEL:\n  CONTRAST: {MAX_PER_CLASS: many}\n")
    with pytest.raises(ValueError, match="MODEL.CONTRAST.MAX_PER_GROUP"):
        load_config(path)
    path = write("VERSION: 2\nMODEL:\n  CONTRAST: {MAX_PER_CLASS: 3, MAX_PER_GROUP: 4}\n")
    with pytest.raises(ValueError, match=f"{path}: MODEL.CONTRAST.MAX_PER_CLASS is an old name of .* both are set"):
        load_config(path)
    path = write("VERSION: 2\nMODEL:\n  CONTRAST: {MAX_PER_CLAS: 3}\n")
    with pytest.raises(KeyError) as raised:
        load_config(path)
    assert "PER_CLASS" not in str(raised.value)  # is not suggested


def test_detectron2s_own_way_of_reading_names_the_new_key(write):
    with pytest.raises(KeyError, match="MODEL.CONTRAST.MAX_PER_GROUP"):
        default_config().merge_from_file(write(OLD))
    with pytest.raises(KeyError, match="MODEL.CONTRAST.MAX_PER_GROUP"):
        default_config().merge_from_list(["MODEL.CONTRAST.MAX_PER_CLASS", 3])


def test_defaults_are_those_of_python():
    cfg = default_config()
    contrast: CfgNode = cfg.MODEL.CONTRAST
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    branch = build_contrast(cfg, shapes)
    assert branch.criterion.sampler == AnchorSampler()
    plain = MultiScaleContrast(branch.criterion.scales, branch.criterion.pairs)
    for name in ("ms_weight", "cs_weight", "temperature", "warmup_iters", "sampler"):
        assert getattr(branch.criterion, name) == getattr(plain, name), name
    assert branch.project == inspect.signature(ContrastiveBranch).parameters["project"].default
    assert str(branch.projectors["res2"]) == str(Projector(8))
    assert branch.criterion.scales == {"res2": 1.0, "res3": 0.7, "res4": 0.4, "res5": 0.1}
    assert branch.criterion.pairs == {("res2", "res5"): 1.0, ("res2", "res4"): 1.0}
    assert contrast.SAMPLER == AnchorSampler().unit


def test_keys_are_added_without_a_change_of_others():
    """Configs of another project keep what they mean; DeepLab's keys may be there already."""
    plain = get_cfg()
    before = flatten(plain)
    cfg = plain.clone()
    add_contrast_config(cfg)
    after = flatten(cfg)
    assert {key: after[key] for key in before} == before
    assert set(after) == set(flatten(default_config()))
    assert cfg.MODEL.CONTRAST.ENABLED is False
    with_deeplab = plain.clone()
    add_deeplab_config(with_deeplab)
    with_deeplab.SOLVER.POLY_LR_POWER = 0.5
    add_contrast_config(with_deeplab)
    assert with_deeplab.SOLVER.POLY_LR_POWER == 0.5
    with_others = plain.clone()
    with_others.SOLVER.OPTIMIZER = "ADAM"
    with_others.MODEL.SWIN = CfgNode({"EMBED_DIM": 128, "APE": False})
    for _ in range(2):
        add_contrast_config(with_others)
        assert with_others.SOLVER.OPTIMIZER == "ADAM"
        assert with_others.MODEL.SWIN == {**default_config().MODEL.SWIN, "EMBED_DIM": 128, "APE": False}


def test_a_config_as_text(tmp_path):
    cfg = load_config("shapes/uper_r18_contrast", ["SEED", "3"])
    assert yaml.safe_load(parse_config(cfg.dump(), "a.pth").dump()) == yaml.safe_load(cfg.dump())
    assert parse_config("SEED: 4", "a.pth", ["SOLVER.MAX_ITER", "7"]).SOLVER.MAX_ITER == 7
    with pytest.raises(ValueError, match="a.pth: its config cannot be read as yaml"):
        parse_config("SEED: [", "a.pth")
    with pytest.raises(ValueError, match="a.pth: its config holds 'text', expected keys"):
        parse_config("text", "a.pth")
    with pytest.raises(KeyError, match="a.pth: Non-existent config key: SEEDS; similar keys: SEED"):
        parse_config("SEEDS: 1", "a.pth")
