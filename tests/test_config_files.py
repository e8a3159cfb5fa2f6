import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import d2_contrast
from d2_contrast.config import default_config, load_config
from d2_contrast.config_files import CONFIGS, find_config, load_yaml, read_config

NAMES = sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_configs_are_those_of_this_checkout(pytestconfig):
    assert CONFIGS == pytestconfig.rootpath / "configs"
    assert len(NAMES) > 70 and "shapes/uper_r18_contrast" in NAMES


@pytest.mark.parametrize("name", ["shapes/uper_r18", "shapes/uper_r18.yaml", "configs/shapes/uper_r18.yaml"])
def test_names_work_from_any_folder(name):
    expected = default_config()
    expected.merge_from_file(str(CONFIGS / "shapes/uper_r18.yaml"))  # Detectron2's own reading
    assert d2_contrast.get_config(name) == load_config(name) == expected
    assert d2_contrast.get_config(name, ["SEED", 7]).SEED == 7


def test_what_a_config_names_is_registered():
    """By the first call in a new process."""
    code = """
import d2_contrast
d2_contrast.get_config("shapes/uper_r18")
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
print("shapes_train" in DatasetCatalog, "ContrastiveSegmentor" in META_ARCH_REGISTRY)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("ade20k/", "cadis/", "Base"))])
def test_files_are_read_as_detectron2_reads_them(name):
    """Chains of bases, lists of bases, tuples written as text."""
    expected = default_config()
    expected.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    assert load_config(name) == expected


def test_a_path_that_exists_wins(tmp_path):
    own = tmp_path / "shapes" / "uper_r18.yaml"
    own.parent.mkdir()
    own.write_text("SEED: 99")
    assert load_config("shapes/uper_r18.yaml").SEED == 99
    assert load_config("shapes/uper_r18").SEED == 1


def test_bases_by_path_and_by_name(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "own.yaml").write_text("_BASE_: [shapes/uper_r18, ../speed.yaml]\nSEED: 5")
    (tmp_path / "speed.yaml").write_text("_BASE_: models/uper_r101.yaml\nSOLVER: {BASE_LR: 0.5}\nSEED: 4")
    cfg = load_config("more/own.yaml")
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (5, 0.5, 8)
    assert cfg.MODEL.TIMM.NAME == "resnet101.tv_in1k"  # of the later base


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapes/uper_r18_contrst", "similar names: shapes/uper_r18_contrast"),
        ("uper_swin_t", "similar names: models/uper_swin_t"),
        ("nonsense", str(CONFIGS)),
        ("shapes", str(CONFIGS)),
    ],
)
def test_an_unknown_name_is_told_with_similar_ones(name, expected):
    for read in (find_config, load_config, d2_contrast.get_config):
        with pytest.raises(FileNotFoundError) as raised:
            read(name)
        assert f"{name}: no such config file" in str(raised.value) and expected in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error", "expected"),
    [
        ("_BASE_: shapes/uper_r81\n", FileNotFoundError, "_BASE_: .*similar names: shapes/uper_r18"),
        ("_BASE_: own.yaml\n", ValueError, "a base of itself"),
        ("SOLVER: {MAX_ITER: 7}\nSEED: 1\nSOLVER: {BASE_LR: 0.5}\n", ValueError, "key 'SOLVER' .*in line 1 .*line 3"),
        ("_BASE_:\n", ValueError, "_BASE_ is None: expected the name of a config"),
        ("_BASE_: [5]\n", ValueError, r"_BASE_ is \[5\]: expected the name"),
        ("_BASE_: {a: b}\n", ValueError, "_BASE_ is {'a': 'b'}: expected the name"),
        ("5: 3\n", ValueError, "the key 5 is no text"),
        ("SOLVER: {on: 3}\n", ValueError, "the key True is no text"),
        ("SEED: [1\n", ValueError, "cannot read this file as yaml: .*line 2"),
        ("SEED: !!python/object/apply:os.getpid []\n", ValueError, "cannot read .* tag .*os.getpid"),
        ("SEED: 'a\n\n  b'\n", ValueError, "SEED is a b: expected a whole number"),
        ("- SEED\n", ValueError, "expected keys with values"),
        ("SEED: " + "[" * 9999, ValueError, "cannot read this file as yaml: .*recursion"),
        ("MODEL: &a {CONTRAST: *a}\n", ValueError, "not nested in themselves"),
        ("MODEL: &a [*a]\n", ValueError, "MODEL is .*: expected a section with keys"),
        ("\xff", ValueError, "cannot read this file as yaml"),
    ],
)
def test_errors_name_the_file(tmp_path, text, error, expected):
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=expected) as raised:
        load_config("own.yaml")
    assert "own.yaml" in str(raised.value)


def test_an_empty_file_is_the_defaults(tmp_path):
    Path("empty.yaml").write_text("# nothing yet")
    assert read_config("empty.yaml") == {}
    assert load_config("empty.yaml") == default_config()


def test_merged_keys_are_no_repeated_ones():
    """An alias may be merged before the mapping that it names is built."""
    text = "a: {b: {c: &c {<<: &d {x: 1, y: 2}, x: 3}}}\ne: {<<: [*c, *d], y: 4}\n<<: *d\n"
    assert load_yaml(text) == yaml.safe_load(text)
