"""The runner with a stand-in for train_net.py: what is started, shared, resumed, stopped, and what it leaves."""

import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from d2_contrast.ablation import Progress, Runner, Slot, Store, build_tables, describe_plan, read_spec
from d2_contrast.ablation.progress import duration
from d2_contrast.ablation.records import read_attempt
from d2_contrast.ablation.runner import Claim, claimed_by

FAKE = (sys.executable, str(Path(__file__).parent / "fake_train.py"))
TWO_ROWS = """
    seeds: [1, 2]
    baseline: plain
    overrides: {SOLVER.MAX_ITER: 6}
    rows:
      - {name: plain, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.0}}
      - {name: ours, config: "{config}", overrides: {SOLVER.MOMENTUM: 0.5}}
    """


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr("d2_contrast.ablation.runner.POLL_SECONDS", 0.02)
    monkeypatch.setattr("d2_contrast.ablation.runner.CLAIM_SECONDS", 0.1)


@pytest.fixture
def spec(write_spec):
    return read_spec(write_spec(TWO_ROWS))


def make_runner(spec, store, *slots, stream=None):
    return Runner(spec.name, spec.runs, store, slots or [Slot(1)], Progress(stream or io.StringIO()), FAKE)


def calls(store, run) -> list[dict]:
    path = store.folder(run) / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_background(spec, store, *slots) -> int:
    """Run in another process, which leads a process group; returns its id."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        runner = make_runner(spec, store, *slots, stream=open(store.output.parent / "log.txt", "a"))
        runner.run()
        os._exit(128 + runner.stopped_by if runner.stopped_by else len(runner.failures))
    finally:
        os._exit(99)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_everything_is_run_once_and_recorded(spec, store):
    stream = io.StringIO()
    runner = make_runner(spec, store, Slot(3), Slot(3), stream=stream)
    runner.run()
    assert not runner.failures and not runner.stopped_by and runner.finished == 4
    for run in spec.runs:
        (call,) = calls(store, run)
        assert call["OMP_NUM_THREADS"] == "3" and call["options"]["SEED"] == str(run.seed)
        record = json.loads((store.results / f"{run.name}.json").read_text())
        assert record == store.record(spec.name, run)
        miou = 50 + run.seed + (5 if run.row.name == "ours" else 0)
        assert record["results"] == {"shapes_val": {"mIoU": miou, "mIoU-rare": miou / 2, "IoU-star": None}}
        assert (record["row"], record["seed"], record["iterations"]) == (run.row.name, run.seed, 6)
        assert record["seconds_per_iteration"] == 0.25  # the median
        assert 1 < record["peak_memory_mb"]["process"] < 10_000 and record["peak_memory_mb"]["gpu"] is None
        assert record["machine"]["threads"] == 3 and record["machine"]["cpu"] and record["machine"]["torch"]
        assert record["overrides"] == run.row.overrides
    assert "finished in" in stream.getvalue() and "mIoU 51.00 on shapes_val" in stream.getvalue()

    make_runner(spec, store).run()
    assert all(len(calls(store, run)) == 1 for run in spec.runs)
    assert "4 finished" in describe_plan(spec, store)


def test_records_alone_say_what_is_finished(spec, store, tmp_path):
    make_runner(spec, store).run()
    elsewhere = Store(tmp_path / "elsewhere", store.results)
    runner = make_runner(spec, elsewhere)
    runner.run()
    assert runner.finished == 4 and not elsewhere.output.exists()


def test_folders_alone_say_what_is_finished(spec, store, tmp_path):
    make_runner(spec, store).run()
    other = Store(store.output, tmp_path / "other")
    make_runner(spec, other).run()
    assert all(len(calls(store, run)) == 1 for run in spec.runs)
    for path in store.results.iterdir():
        old, new = (json.loads((folder / path.name).read_text()) for folder in (store.results, other.results))
        assert {**old, "finished": ""} == {**new, "finished": ""}


def metrics_file(store, run):
    """Where a run logs its metrics, in a folder that is there."""
    store.folder(run).mkdir(parents=True)
    return store.folder(run) / "metrics.json"


def test_results_of_an_earlier_iteration_do_not_count(spec, store):
    run = spec.runs[0]
    metrics = metrics_file(store, run)
    metrics.write_text('{"iteration": 5, "sem_seg/mIoU": 1.0}\n{"iteration": 6, "time": 1.0}\n{"iteration": 6, "sem_')
    assert store.record(spec.name, run) is None
    metrics.write_text('{"iteration": 5, "sem_seg/mIoU": 1.0}\n{"iteration": 6, "sem_seg/mIoU": 2.0}\n')
    assert store.record(spec.name, run)["results"] == {"shapes_val": {"mIoU": 2.0}}


def test_results_of_several_datasets(write_spec, store):
    spec = read_spec(write_spec(TWO_ROWS), ["DATASETS.TEST", "('shapes_train', 'shapes_val')"])
    run = spec.runs[0]
    metrics = metrics_file(store, run)
    metrics.write_text('{"iteration": 6, "total_loss": 2.0}\n')
    assert store.record(spec.name, run) is None
    metrics.write_text('{"iteration": 6, "shapes_train/sem_seg/IoU-disc": NaN, "shapes_val/sem_seg/mIoU": 2.0}\n')
    assert store.record(spec.name, run)["results"] == {"shapes_train": {"IoU-disc": None}, "shapes_val": {"mIoU": 2.0}}


def test_a_dataset_without_labels_has_no_results(write_spec, store):
    spec = read_spec(write_spec(TWO_ROWS), ["DATASETS.TEST", "('shapes_train', 'shapes_val')"])
    run = spec.runs[0]
    # One evaluation is one line: what it lacks has no results.
    metrics_file(store, run).write_text('{"iteration": 6, "shapes_val/sem_seg/mIoU": 2.0}\n')
    assert store.record(spec.name, run)["results"] == {"shapes_val": {"mIoU": 2.0}}
    assert [table.dataset for table in build_tables(spec, {})] == ["shapes_train", "shapes_val"]
    (table,) = build_tables(spec, store.collect(spec)[0])
    assert table.dataset == "shapes_val" and [line.finished for line in table.lines] == [1, 0]


def test_row_with_another_name_keeps_its_runs_and_other_settings_do_not(spec, store, write_spec):
    make_runner(spec, store).run()
    renamed = read_spec(write_spec(TWO_ROWS.replace("ours", "better name")))
    make_runner(renamed, store).run()
    assert all(len(calls(store, run)) == 1 for run in renamed.runs)

    longer = read_spec(write_spec(TWO_ROWS), ["SOLVER.MAX_ITER", "7"])
    make_runner(longer, store).run()
    assert all(len(calls(store, run)) == 1 and store.record("spec", run)["iterations"] == 7 for run in longer.runs)
    assert len(list(store.results.iterdir())) == 8


def test_failure_stops_no_other_run(spec, store, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "ours_seed1")
    runner = make_runner(spec, store)
    runner.run()
    (failure,) = runner.failures
    assert (failure.run.row.name, failure.run.seed, failure.reason) == ("ours", 1, "failed with exit code 3")
    assert failure.tail == "reading images\nOSError: no such image: 7.png\n"
    assert runner.finished == 3 and "1 failed before" in describe_plan(spec, store)

    monkeypatch.delenv("FAKE_FAIL")
    runner = make_runner(spec, store)
    runner.run()
    assert not runner.failures
    assert [call["start"] for call in calls(store, failure.run)] == [0, 2]  # went on from its checkpoint
    assert store.record(spec.name, failure.run)["attempts"] == 2


def test_end_without_results_is_a_failure(spec, store, tmp_path):
    nothing = tmp_path / "nothing.py"
    nothing.write_text("")
    runner = Runner(spec.name, spec.runs[:1], store, [Slot(1)], Progress(io.StringIO()), [sys.executable, str(nothing)])
    runner.run()
    assert runner.failures[0].reason == "ended without the results of its last iteration"


def test_gpus(spec, store, monkeypatch):
    make_runner(spec, store, Slot(1, 2, ("0", "1")), Slot(1, 2, ("4", "5"))).run()
    found = {call["CUDA_VISIBLE_DEVICES"]: call["processes"] for run in spec.runs for call in calls(store, run)}
    assert found == {"0,1": 2, "4,5": 2}


def test_killed_runs_are_resumed_and_finished_ones_are_not_repeated(spec, store, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    first, second = spec.runs[:2]
    pid = in_background(spec, store)
    wait_for(lambda: calls(store, second) and (store.folder(second) / "last_checkpoint").is_file())
    assert claimed_by(store.folder(second)) and "1 finished, 1 running, 2 to do" in describe_plan(spec, store)
    os.killpg(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    training = calls(store, second)[0]["pid"]
    wait_for(lambda: not is_alive(training), 5)  # it was not in that group
    assert claimed_by(store.folder(second)) is None
    assert "1 finished, 1 begun, 2 to do" in describe_plan(spec, store)

    make_runner(spec, store).run()
    assert len(calls(store, first)) == 1
    starts = [call["start"] for call in calls(store, second)]
    assert len(starts) == 2 and starts[0] == 0 < starts[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_runs(spec, store, monkeypatch, number):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    pid = in_background(spec, store, Slot(1), Slot(1))
    wait_for(lambda: all(calls(store, run) for run in spec.runs[:2]))
    os.kill(pid, number)
    assert exit_code(pid) == 128 + number
    for run in spec.runs[:2]:
        assert not is_alive(calls(store, run)[0]["pid"])
        assert read_attempt(store.folder(run))["outcome"] == "stopped"
    assert not calls(store, spec.runs[2])
    assert "stopping 2 runs" in (store.output.parent / "log.txt").read_text()


def test_two_processes_share_the_work(spec, store, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    pid = in_background(spec, store)
    runner = make_runner(spec, store)
    runner.run()
    assert exit_code(pid) == 0 and not runner.failures
    assert runner.finished == 4  # those of the other process, too
    assert all(len(calls(store, run)) == 1 for run in spec.runs)


def test_run_of_a_process_that_dies_is_taken_over(spec, store, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    pid = in_background(spec, store)
    wait_for(lambda: calls(store, spec.runs[0]))
    if not (killer := os.fork()):
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os._exit(0)
    monkeypatch.setenv("FAKE_SECONDS", "0")
    stream = io.StringIO()
    runner = make_runner(spec, store, stream=stream)
    runner.run()
    assert exit_code(killer) == 0 and exit_code(pid) == -signal.SIGKILL
    assert runner.finished == 4 and f"left to {os.uname().nodename}, process {pid}" in stream.getvalue()
    assert len(calls(store, spec.runs[0])) == 2


def test_failure_under_another_process_is_not_tried_again(spec, store, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "plain_seed1")
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    pid = in_background(spec, store)
    wait_for(lambda: calls(store, spec.runs[0]))
    runner = make_runner(spec, store)
    runner.run()
    assert exit_code(pid) == 1
    (failure,) = runner.failures
    assert failure.reason.startswith("failed under ") and "no such image" in failure.tail
    assert len(calls(store, spec.runs[0])) == 1


def test_claims(tmp_path):
    folder = tmp_path / "run"
    assert claimed_by(folder) is None
    claim = Claim.take(folder)
    assert Claim.take(folder) is None
    assert claimed_by(folder) == f"{os.uname().nodename}, process {os.getpid()}"
    claim.release()
    assert claimed_by(folder) is None
    Claim.take(folder).release()


def test_time_left(spec, store):
    """Two slots, 0.25 s an iteration, no overhead: 4 runs of 6 iterations take two rounds of 1.5 s."""
    runner = make_runner(spec, store, Slot(1), Slot(1))
    assert runner._seconds_left() is None
    runner._pending = list(spec.runs)
    runner._note_speed(spec.runs[0], 0.25)
    assert runner._seconds_left() == pytest.approx(3.0)
    runner._note_speed(spec.runs[1], 0.5)  # 3 s for every second run: 1.5 + 1.5 + 3 s in one slot, 3 s in the other
    assert runner._seconds_left() == pytest.approx(6.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        progress = Progress(stream)
        progress.update(lambda: "a state that is too long for the line")
        progress.update(lambda: pytest.fail("asked for too soon"))
        progress.event("something")
        progress.close()
    assert log.getvalue().split(" ", 1)[1] == "something\n"  # the state only every ten minutes
    assert terminal.getvalue().startswith("a state that is to…\r\x1b[K")
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (119, "2 min"), (7500, "2 h 5 min"), (7199, "2 h 0 min"), (190_000, "2 d 4 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
