import csv
import io
import re

import pytest

from d2_contrast.ablation import (
    AblationError,
    build_tables,
    draw_differences,
    read_spec,
    to_csv,
    to_latex,
    to_markdown,
)
from d2_contrast.tables import write_json

# mIoU of rows by seed; "ours" - "plain": 2, 4, 6, mean 4, deviation 2, t of 97.5 % at 2 degrees 4.302653.
SCORES = {"plain": {1: 50.0, 2: 51.0, 3: 52.0}, "ours": {1: 52.0, 2: 55.0, 3: 58.0}, "a|b_%": {2: 50.5}}
MARGIN = 4.302653 * 2 / 3**0.5


SPEC = """
    seeds: [1, 2, 3]
    baseline: plain
    rows:
      - {name: plain, config: "{config}"}
      - {name: ours, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.5}}
      - {name: a|b_%, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.6}}
      - {name: missing, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.7}}
    """


@pytest.fixture
def spec(write_spec):
    return read_spec(write_spec(SPEC))


def record_of(spec, row, seed, miou, **changed):
    return {
        "spec": spec.name,
        "row": row.name,
        "seed": seed,
        "hash": row.hash,
        "settings": row.settings,
        "results": {"shapes_val": {"mIoU": miou, "mIoU-rare": miou - 30, "IoU-star": None}},
        "seconds_per_iteration": 0.1 * seed,
        "peak_memory_mb": {"process": 1000.0 + seed, "gpu": None},
        "machine": {"cpu": "A CPU", "threads": 2, "torch": "2.9", "commit": "abc"},
        **changed,
    }


@pytest.fixture
def write_records(store):
    def write(spec):
        for run in spec.runs:
            if run.seed in SCORES.get(run.row.name, {}):
                record = record_of(spec, run.row, run.seed, SCORES[run.row.name][run.seed])
                write_json(store.results / f"{run.name}.json", record)

    return write


@pytest.fixture
def collected(spec, store, write_records):
    write_records(spec)
    records, remarks = store.collect(spec)
    assert remarks == []
    return spec, build_tables(spec, records), records


def test_figures(collected):
    _, (table,), _ = collected
    plain, ours, odd, missing = table.lines
    assert (table.dataset, table.metrics) == ("shapes_val", ("mIoU", "mIoU-rare"))
    assert [line.finished for line in table.lines] == [3, 3, 1, 0]
    assert (ours.summary("mIoU").mean, ours.summary("mIoU").std) == (55.0, 3.0)
    difference = ours.differences["mIoU"]
    assert (difference.n, difference.mean) == (3, pytest.approx(4.0))
    assert (difference.low, difference.high) == (pytest.approx(4 - MARGIN), pytest.approx(4 + MARGIN))
    assert ours.differences["mIoU-rare"] == difference
    assert odd.differences["mIoU"].n == 1 and odd.differences["mIoU"].low is None
    assert odd.differences["mIoU"].mean == pytest.approx(-0.5)  # to seed 2 of the baseline, not to its mean
    assert plain.differences["mIoU"] is None and missing.summary("mIoU") is None
    assert (ours.seconds, ours.process_gb, ours.gpu_gb) == (pytest.approx(0.2), pytest.approx(1.003), None)


def test_markdown(collected):
    spec, tables, records = collected
    page = to_markdown(spec, tables, records, ["a remark"])
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page.splitlines() if "|" in line]
    assert rows[0] == ["row", "n", "mIoU", "Δ mIoU", "mIoU-rare", "Δ mIoU-rare", "s/iteration", "memory (GB)"]
    assert rows[2][:4] == ["plain", "3", "51.00 ± 1.00", "baseline"]
    assert rows[3][:4] == ["ours", "3", "55.00 ± 3.00", "+4.00 [-0.97, +8.97]"]
    assert rows[4] == [r"a\|b_%", "1 of 3", "50.50", "-0.50", "20.50", "-0.50", "0.200", "1.00"]
    assert rows[5] == ["missing", "0 of 3", "-", "-", "-", "-", "-", "-"]
    assert (
        rows[6] == ["mIoU by seed", "1", "2", "3"] and rows[9] == ["ours", "52.00", "55.00", "58.00"][:1] + rows[9][1:]
    )
    assert "4 rows, 3 seeds: 7 of 12 runs finished." in page
    assert "\n- a remark\n- Trained on A CPU, threads 2, torch 2.9, commit abc.\n" in page


def test_a_row_with_seeds_of_its_own(write_spec, store, write_records):
    spec = read_spec(write_spec(SPEC.replace("{name: ours,", "{name: ours, seeds: [2, 3, 4],")))
    write_records(spec)
    records, _ = store.collect(spec)
    (table,) = build_tables(spec, records)
    plain, ours, *_ = table.lines
    assert table.seeds == (1, 2, 3, 4)
    assert [(line.finished, line.planned, list(line.scores["mIoU"])) for line in (plain, ours)] == [
        (3, 3, [1, 2, 3]), (2, 3, [2, 3]),
    ]  # fmt: skip
    assert ours.differences["mIoU"].n == 2 and ours.differences["mIoU"].mean == pytest.approx(5.0)


def test_figures_of_fewer_seeds_have_their_own_n(write_spec, store, write_records):
    spec = read_spec(write_spec(SPEC.replace("baseline: plain", "baseline: plain\n    metrics: [mIoU, IoU-star]")))
    write_records(spec)
    records, _ = store.collect(spec)
    star = {("plain", 1): 10.0, ("plain", 2): 20.0, ("ours", 2): 23.0, ("ours", 3): 27.0}
    for key, score in star.items():
        records[key]["results"]["shapes_val"]["IoU-star"] = score
    page = to_markdown(spec, build_tables(spec, records), records, [])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert rows[1][:6] == ["plain", "3", "51.00 ± 1.00", "baseline", "15.00 ± 7.07 (n = 2)", "baseline"]
    assert rows[2][2:6] == ["55.00 ± 3.00", "+4.00 [-0.97, +8.97]", "25.00 ± 2.83 (n = 2)", "+3.00 (n = 1)"]


def test_latex(collected):
    spec, tables, _ = collected
    text = to_latex(spec, tables)
    assert r"ours & 3 & 55.00 $\pm$ 3.00 & +4.00 [-0.97, +8.97] &" in text
    assert r"a|b\_\% & 1 of 3 & 50.50 & -0.50 &" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert r"& mIoU & $\Delta$ mIoU &" in lines[0]
    assert len(lines) == 5 and {line.replace(r"\&", "").count("&") for line in lines} == {7}
    assert text.count(r"\begin{tabular}{lrrrrrrr}") == text.count(r"\end{tabular}") == 1


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        (r"$\lambda_{cs}$ 0.1, 50 %", r"$\lambda_{cs}$ 0.1, 50 \%"),
        (r"$a_1$ & $b^2$", r"$a_1$ \& $b^2$"),
        (r"a~b^c\d{e}", r"a\textasciitilde{}b\textasciicircum{}c\textbackslash{}d\{e\}"),
        ("5 $ a_1", r"5 \$ a\_1"),
        ("US$$ #1", r"US\$\$ \#1"),
        ("Δ ± 1", r"$\Delta$ $\pm$ 1"),
    ],
)
def test_names_in_latex(write_spec, name, latex):
    spec = read_spec(write_spec(f"seeds: [1]\nrows: [{{name: '{name}', config: '{{config}}'}}]"))
    assert f"\n{latex} & 0 of 1 &" in to_latex(spec, build_tables(spec, {}))


def test_csv(collected):
    _, tables, _ = collected
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert len(rows) == 4 * 2
    (ours,) = (row for row in rows if (row["row"], row["metric"]) == ("ours", "mIoU"))
    assert float(ours["mean"]) == 55 and float(ours["low"]) == pytest.approx(4 - MARGIN) and ours["planned"] == "3"
    assert ours["by_seed"] == "1=52.0 2=55.0 3=58.0" and ours["gpu_gb"] == ""


def test_baselines_of_rows_are_named(write_spec, store, write_records):
    spec = read_spec(
        write_spec("""
            seeds: [1, 2, 3]
            rows:
              - {name: plain, config: "{config}"}
              - {name: ours, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.5}, baseline: plain}
              - {name: a|b_%, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.6}, baseline: ours}
            """)
    )
    write_records(spec)
    records, _ = store.collect(spec)
    tables = build_tables(spec, records)
    page = to_markdown(spec, tables, records, [])
    assert re.search(r"\| row +\| +baseline \| +n \|", page)
    assert re.search(r"\| a\\\|b_% +\| +ours \| 1 of 3 \| +50.50 \| +-4.50 \|", page)


def test_without_baseline_there_are_no_differences(write_spec, store, write_records):
    spec = read_spec(write_spec('seeds: [1, 2, 3]\nrows: [{name: plain, config: "{config}"}]'))
    write_records(spec)
    records, _ = store.collect(spec)
    tables = build_tables(spec, records)
    assert "Δ" not in to_markdown(spec, tables, records, []) and "Delta" not in to_latex(spec, tables)
    assert draw_differences(tables) is None


def test_classes_on_request_and_several_datasets(write_spec, store):
    spec = read_spec(
        write_spec("""
            seeds: [1]
            metrics: [IoU-star, mIoU]
            overrides: {DATASETS.TEST: [shapes_val, shapes_train]}
            rows:
              - {name: plain, config: "{config}"}
            """)
    )
    results = {"shapes_val": {"mIoU": 40.0, "IoU-star": None}, "shapes_train": {"mIoU": 60.0, "IoU-star": 10.0}}
    write_json(store.results / f"{spec.runs[0].name}.json", record_of(spec, spec.rows[0], 1, 0, results=results))
    tables = build_tables(spec, store.collect(spec)[0])
    assert [(table.dataset, table.metrics) for table in tables] == [
        ("shapes_val", ("IoU-star", "mIoU")),
        ("shapes_train", ("IoU-star", "mIoU")),
    ]
    (on_val,), (on_train,) = (table.lines for table in tables)
    assert on_val.summary("IoU-star") is None and on_val.summary("mIoU").mean == 40.0
    assert on_train.summary("IoU-star").mean == 10.0


def test_results_of_other_settings_are_left_out(spec, store, write_records, write_spec):
    write_records(spec)
    next(store.results.glob("ours_seed1_*")).unlink()
    other = read_spec(write_spec(SPEC), ["SOLVER.MAX_ITER", "9"])
    run = other.runs[1]
    write_json(store.results / f"{run.name}.json", record_of(other, run.row, run.seed, 99.0))
    records, remarks = store.collect(spec)
    assert len(records) == 6 and ("ours", 1) not in records
    assert remarks == ["Left out: 1 run with SOLVER.MAX_ITER 9 (the spec: 1800)."]
    (table,) = build_tables(spec, records)
    assert table.lines[1].differences["mIoU"].n == 2


def test_results_that_all_deviate_alike_are_taken_and_said_so(spec, store, write_records, write_spec):
    write_records(read_spec(write_spec(SPEC), ["MODEL.WEIGHTS", "/somewhere/a.pth"]))
    records, remarks = store.collect(spec)
    assert len(records) == 7
    assert remarks == ["All runs are with MODEL.WEIGHTS /somewhere/a.pth (the spec: its default)."]
    write_records(read_spec(write_spec(SPEC), ["SOLVER.MAX_ITER", "9"]))
    records, remarks = store.collect(spec)
    assert not records and len(remarks) == 2  # which of them to take is not ours to say


@pytest.mark.parametrize(
    ("key", "values", "shown"),
    [
        (
            "MODEL.WEIGHTS",
            [f"/data/weights/mobilenetv2_100/pretrained/imagenet1k/2024-06/{name}.pth" for name in ("ours", "stock")],
            ["/2024-06/ours.pth (the spec: its", "/2024-06/stock.pth (the spec: its"],
        ),
        # They differ in the middle alone.
        (
            "MODEL.PIXEL_LOSS.CLASS_WEIGHTS",
            [str([1.125] * 4 + [weight] + [2.125] * 7) for weight in (0.25, 0.75)],
            ["1.125, 0.25, 2.125", "1.125, 0.75, 2.125"],
        ),
    ],
)
def test_long_values_that_look_alike_are_different_settings(spec, store, write_spec, key, values, shown):
    for value in values:
        other = read_spec(write_spec(SPEC), [key, value])
        run = other.runs[0]
        write_json(store.results / f"{run.name}.json", record_of(other, run.row, run.seed, 50.0))
    records, remarks = store.collect(spec)
    assert not records and len(remarks) == 2
    for text in shown:
        assert sum(text in remark for remark in remarks) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"spec": "s", "row": "a", "seed": 1, "hash": "z", "settings": []}'])
def test_damaged_result_is_named(spec, store, text):
    store.results.mkdir()
    (store.results / "plain.json").write_text(text)
    with pytest.raises(AblationError, match=r"plain\.json: this is no result of a run"):
        store.collect(spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"results": None},
        {"results": {"shapes_val": None}},
        {"results": {"shapes_val": {"mIoU": "50"}}},
        {"machine": None},
        {"peak_memory_mb": {"process": "1 GB", "gpu": None}},
    ],
)
def test_result_of_another_form_is_named(spec, store, changes):
    run = spec.runs[0]
    write_json(store.results / f"{run.name}.json", record_of(spec, run.row, run.seed, 50.0))
    assert len(store.collect(spec)[0]) == 1
    write_json(store.results / f"{run.name}.json", record_of(spec, run.row, run.seed, 50.0, **changes))
    with pytest.raises(AblationError, match=rf"{run.name}\.json: this is no result of a run"):
        store.collect(spec)


def test_picture(collected):
    _, tables, _ = collected
    figure = draw_differences(tables)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["ours", "a|b_%"]  # what can be compared
    assert [axis.get_title() for axis in (first, second)] == ["mIoU, shapes_val", "mIoU-rare, shapes_val"]
    drawn = [list(line.get_xdata()) for line in first.get_lines()]
    assert [2.0, 4.0, 6.0] in drawn and [pytest.approx(4 - MARGIN), pytest.approx(4 + MARGIN)] in drawn
    assert [-0.5] in drawn
    # Half as much room as the seeds take, -0.5 to 6, on each side of them: enough for the interval.
    assert first.get_xlim() == pytest.approx((-3.75, 9.25))
    assert {line.get_marker() for line in first.get_lines()}.isdisjoint("<>")


def test_an_interval_longer_than_its_panel_ends_in_arrows(collected):
    spec, _, records = collected
    of_two_seeds = {key: record for key, record in records.items() if record["seed"] < 3}
    first = draw_differences(build_tables(spec, of_two_seeds)).axes[0]
    # Differences 2 and 4, and -0.5 of another row; the interval of two seeds is 3 +- 12.7.
    arrows = {line.get_marker(): list(line.get_xdata()) for line in first.get_lines() if line.get_marker() in "<>"}
    assert arrows == {"<": [-2.75], ">": [6.25]} and first.get_xlim() == (-2.75, 6.25)
