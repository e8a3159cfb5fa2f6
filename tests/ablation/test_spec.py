import re
from pathlib import Path

import pytest

from d2_contrast.ablation import AblationError, read_spec

CONFIGS = Path(__file__).parents[2] / "configs"
SPECS = sorted((CONFIGS / "ablations").glob("*.yaml"))

TWO_ROWS = """
    seeds: [1, 2]
    baseline: plain
    overrides: {SOLVER.MAX_ITER: 30}
    rows:
      - {name: plain, config: "{config}"}
      - name: small rate
        config: "{config}"
        overrides: {SOLVER: {BASE_LR: 5e-3}}
    """


def test_rows_times_seeds(write_spec):
    spec = read_spec(write_spec(TWO_ROWS))
    assert [(run.row.name, run.seed) for run in spec.runs] == [
        ("plain", 1), ("small rate", 1), ("plain", 2), ("small rate", 2),
    ]  # fmt: skip
    plain, small = spec.rows
    assert (plain.baseline, small.baseline) == (None, "plain")
    assert plain.iterations == small.iterations == 30 and plain.datasets == ("shapes_val",)
    assert small.options == ["SOLVER.MAX_ITER", "30", "SOLVER.BASE_LR", "5e-3"]
    assert small.settings["SOLVER.BASE_LR"] == 0.005 and plain.settings["SOLVER.BASE_LR"] == 0.002
    assert spec.runs[1].name == f"small-rate_seed1_{small.hash}" != spec.runs[3].name
    assert str(spec.output) == "output/ablations/spec"


def test_a_row_may_have_seeds_of_its_own(write_spec):
    spec = read_spec(write_spec(TWO_ROWS.replace("{name: plain,", "{name: plain, seeds: [2, 3],")))
    assert [(run.row.name, run.seed) for run in spec.runs] == [
        ("plain", 2), ("small rate", 2), ("plain", 3), ("small rate", 1),
    ]  # fmt: skip


def test_command_line_is_stronger_than_the_file(write_spec):
    spec = read_spec(write_spec(TWO_ROWS), ["SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.5"])
    assert [row.iterations for row in spec.rows] == [7, 7]
    assert [row.settings["SOLVER.BASE_LR"] for row in spec.rows] == [0.5, 0.5]


def hash_with(write_spec, *overrides):
    return read_spec(write_spec(TWO_ROWS), overrides).rows[0].hash


@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [
        ("SOLVER.WEIGHT_DECAY", "0.02", True),
        ("DATASETS.TEST", "('shapes_train',)", True),
        ("TEST.AUG.ENABLED", "True", True),
        ("MODEL.WEIGHTS", "a.pth", True),
        ("SOLVER.WEIGHT_DECAY", "0.01", False),  # as in the config
        ("DATALOADER.NUM_WORKERS", "7", False),
        ("VISUALIZE.TSNE_POINTS", "0", False),
        ("TEST.EVAL_PERIOD", "5", False),
        ("SOLVER.CHECKPOINT_PERIOD", "5", False),
        ("WANDB.PROJECT", "p", False),
        ("PROCESS_GROUP_TIMEOUT", "60", False),
    ],
)
def test_hash_changes_with_what_makes_the_result(write_spec, key, value, changes):
    assert (hash_with(write_spec, key, value) != hash_with(write_spec)) == changes


def test_axes_of_a_row_multiply_it(write_spec):
    spec = read_spec(
        write_spec("""
            seeds: [1]
            baseline: plain
            rows:
              - {name: plain, config: "{config}"}
              - name: other
                config: "{config}"
                axes:
                  SOLVER.WEIGHT_DECAY: [0.0, 0.1]
                  size:
                    small: {INPUT.CROP.SIZE: [64, 64], SOLVER.IMS_PER_BATCH: 4}
                    large: {INPUT.CROP.SIZE: [128, 128]}
            """)
    )
    others = spec.rows[1:]
    assert [row.name for row in others] == [
        "other, WEIGHT_DECAY 0.0, size small",
        "other, WEIGHT_DECAY 0.0, size large",
        "other, WEIGHT_DECAY 0.1, size small",
        "other, WEIGHT_DECAY 0.1, size large",
    ]
    assert {row.baseline for row in others} == {"plain"}
    assert others[2].settings["INPUT.CROP.SIZE"] == [64, 64] and others[2].settings["SOLVER.WEIGHT_DECAY"] == 0.1
    assert others[2].settings["SOLVER.IMS_PER_BATCH"] == 4
    assert len({row.hash for row in spec.rows}) == 5


def test_axes_of_all_rows_multiply_the_baseline_too(write_spec):
    spec = read_spec(write_spec(TWO_ROWS + "axes: {SOLVER.IMS_PER_BATCH: [4, 16]}\n"))
    assert [(row.name, row.baseline) for row in spec.rows] == [
        ("plain, IMS_PER_BATCH 4", None),
        ("plain, IMS_PER_BATCH 16", None),
        ("small rate, IMS_PER_BATCH 4", "plain, IMS_PER_BATCH 4"),
        ("small rate, IMS_PER_BATCH 16", "plain, IMS_PER_BATCH 16"),
    ]


def test_rows_choose_their_baseline(write_spec):
    spec = read_spec(
        write_spec("""
            seeds: [1]
            baseline: a
            rows:
              - {name: a, config: "{config}"}
              - {name: b, config: "{config}", overrides: {SOLVER.MAX_ITER: 2}, baseline: null}
              - {name: c, config: "{config}", overrides: {SOLVER.MAX_ITER: 3}, baseline: b}
            """)
    )
    assert [row.baseline for row in spec.rows] == [None, None, "b"]


ROW = '{name: a, config: "{config}"}'
ONE = f"seeds: [1]\nrows: [{ROW}]\n"
WRONG = {
    "": r"expected the keys seeds, rows, found None",
    "seeds: [1, 2": r"this is no yaml file: .*\(line 1",
    f"rows: [{ROW}]": r"the key seeds is missing",
    f"seeds: 4\nrows: [{ROW}]": r"seeds is 4: expected a list",
    f"seeds: [1, -1]\nrows: [{ROW}]": r"seeds is \[1, -1\]: expected a list of numbers from 0 on",
    f"seeds: [1, 5000000000]\nrows: [{ROW}]": r"seeds has 5000000000: expected whole numbers",
    f"seeds: [1, 1]\nrows: [{ROW}]": r"seeds is \[1, 1\]: expected each once",
    ONE.replace("name: a", "name: a, seeds: 3"): r"row 'a': seeds is 3: expected a list",
    f"seeds: [1]\nbase: a\nrows: [{ROW}]": r"unknown key 'base': did you mean baseline\?",
    f"seeds: [1]\nseeds: [2]\nrows: [{ROW}]": r"the key 'seeds' is there twice, first in line 1 \(line 2",
    "seeds: [1]\nrows: []": r"rows is \[\]: expected a list of rows",
    "seeds: [1]\nrows: [a]": r"row 1: expected the keys name, config, found 'a'",
    "seeds: [1]\nrows: [{name: a}]": r"row 'a': the key config is missing",
    f"seeds: [1]\nrows: [{ROW}, {ROW}]": r"there are 2 rows with the name 'a'",
    f"seeds: [1]\nbaseline: b\nrows: [{ROW}]": r"the baseline 'b' of row 'a' is no row: expected one of \['a'\]",
    "seeds: [1]\nrows: [{name: a, config: gone.yaml}]": r"row 'a': .*gone\.yaml: no such config file",
    ONE + "overrides: {SOLVER.MAXITER: 4}": r"row 'a': Non-existent.*SOLVER\.MAXITER.*SOLVER\.MAX_ITER",
    ONE + "overrides: {SOLVER.MAX_ITER: many}": r"row 'a': .*(MAX_ITER.*many|many.*MAX_ITER)",
    ONE + "overrides: {SEED: 4}": r"SEED is set for each run: use seeds",
    ONE + "overrides: {SOLVER.MAX_ITER: 4, SOLVER: {MAX_ITER: 5}}": r"overrides: SOLVER\.MAX_ITER is set twice",
    ONE + "axes: {MODEL.DEVICE: [cpu], size: {small: {MODEL: {DEVICE: cpu}}}}": r"axes: MODEL\.DEVICE is set twice",
    ONE + "overrides: [SOLVER.MAX_ITER, 4]": r"overrides: expected keys with values",
    ONE + "axes: {SOLVER.MAX_ITER: 4}": r"axis 'SOLVER\.MAX_ITER' is 4: expected a list",
    ONE + "overrides: {DATASETS.TEST: []}": r"row 'a': DATASETS\.TEST is empty",
    ONE + "overrides: {DATASETS.TEST: [shape]}": r"row 'a': .*'shape' is not registered",
    f"seeds: [1]\nmetrics: [mIoU-rar]\nrows: [{ROW}]": r"no dataset has the metric 'mIoU-rar'.*mIoU-rare",
    f"seeds: [1]\nmetrics: mIoU\nrows: [{ROW}]": r"metrics is 'mIoU': expected a list",
    ONE + "output: ''": r"output is '': expected the name of a folder",
    ONE + "output: [runs]": r"output is \['runs'\]: expected the name of a folder",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_are_named(write_spec, text):
    path = write_spec(text)
    with pytest.raises(AblationError, match=WRONG[text]) as raised:
        read_spec(path)
    message = str(raised.value)
    assert message.startswith(str(path)) and "\n" not in message


@pytest.mark.parametrize(
    ("text", "folder"), [("", "output/ablations/spec"), ("~/runs", "/home/me/runs"), ("runs", "runs")]
)
def test_folder_of_the_runs(write_spec, monkeypatch, text, folder):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(read_spec(write_spec(f"{ONE}output: {text}\n")).output) == folder


def test_config_that_is_no_yaml(write_spec, tmp_path):
    (tmp_path / "broken.yaml").write_text("SOLVER: [1")
    with pytest.raises(AblationError, match=r"row 'a': .*line 1") as raised:
        read_spec(write_spec("seeds: [1]\nrows: [{name: a, config: broken.yaml}]"))
    assert "\n" not in str(raised.value)


def test_missing_spec_and_odd_overrides(tmp_path, write_spec):
    with pytest.raises(AblationError, match=r"none\.yaml: cannot read this spec \(No such file"):
        read_spec(tmp_path / "none.yaml")
    with pytest.raises(AblationError, match="'SOLVER.MAX_ITER' are no pairs of KEY and VALUE"):
        read_spec(write_spec(TWO_ROWS), ["SOLVER.MAX_ITER"])


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_of_this_project(path):
    spec = read_spec(path)
    # Rows may share their runs to be compared with two baselines.
    assert len({(row.hash, row.baseline) for row in spec.rows}) == len(spec.rows)
    first = path.read_text().split("\nseeds:")[0]
    assert f"d2-contrast ablate ablations/{path.stem}" in first


def test_spec_of_the_docs(write_spec):
    snippet = re.search(r"```yaml\n(.*?)```", (CONFIGS.parent / "docs/ablations.md").read_text(), re.DOTALL).group(1)
    spec = read_spec(write_spec(snippet.replace("../", f"{CONFIGS}/")))
    assert [row.name for row in spec.rows] == [
        "cross entropy",
        *(f"ours, TEMPERATURE {t}, weight {w}" for t in (0.07, 0.1) for w in ("small", "paper")),
    ]


def test_specs_cover_the_tables():
    """The rows of docs/model_zoo.md, but for those whose labels only the benchmark's server has."""
    zoo = (CONFIGS.parent / "docs/model_zoo.md").read_text()
    tables = dict(re.findall(r"^## Table (\w+):.*?\n(.*?)(?=^## |\Z)", zoo, re.MULTILINE | re.DOTALL))
    for table, content in tables.items():
        if table == "4b":
            continue
        spec = read_spec(CONFIGS / f"ablations/table_{table.removesuffix('a') if table == '4a' else table}.yaml")
        configs = {row.config.relative_to(CONFIGS) for row in spec.rows}
        assert configs == {Path(x) for x in re.findall(r"\(\.\./configs/(.+?\.yaml)\)", content)}, table
