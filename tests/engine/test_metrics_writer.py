import json
import math

import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from d2_contrast.engine.metrics_writer import MetricsWriter, put_back, recent_values
from d2_contrast.visualize import read_metrics


def strict(line: str) -> dict:
    def refuse(token: str):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(line, parse_constant=refuse)


def log(writers, values: dict[str, list[float]]) -> None:
    with EventStorage() as storage:
        for iteration, row in enumerate(zip(*values.values())):
            storage.iter = iteration
            storage.put_scalars(**dict(zip(values, row)))
            if iteration % 2:
                for writer in writers:
                    writer.write()
    for writer in writers:
        writer.close()


def test_finite_values_are_written_as_by_detectron2(tmp_path):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    log([MetricsWriter(str(ours)), JSONWriter(str(theirs))], {"a": [1.0, 2.5, 1e-9, 4.0], "b": [1, 2, 3, 4]})
    assert ours.read_text() == theirs.read_text() != ""


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.json"
    log([MetricsWriter(str(path))], {"IoU": [0.0, math.nan], "loss": [0.0, math.inf], "c": [0.0, 1.0]})
    assert [strict(line) for line in path.read_text().splitlines()] == [
        {"IoU": None, "loss": None, "c": 0.5, "iteration": 1}
    ]
    iterations, values = read_metrics(str(path))["IoU"]
    assert iterations.tolist() == [1] and math.isnan(values[0])


def test_a_run_that_goes_on_takes_up_its_file(tmp_path):
    """Lines of iterations that are done again, and one that was cut off, are dropped; no value is written twice."""
    whole, path = tmp_path / "whole.json", tmp_path / "metrics.json"
    values = {"a": [1.0, 5.0, 2.0, 4.0, 8.0, 1.0], "b": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}

    def go_on(writer: MetricsWriter, storage: EventStorage, end: int) -> None:
        with storage:
            for iteration in range(storage.iter, end):
                storage.iter = iteration
                storage.put_scalar("a", values["a"][iteration])
                storage.put_scalar("b", values["b"][iteration], smoothing_hint=False)
                if iteration % 2:
                    writer.write()
        writer.close()

    go_on(MetricsWriter(str(whole)), EventStorage(), 6)
    killed = EventStorage()
    go_on(MetricsWriter(str(path)), killed, 5)
    path.write_text(path.read_text() + '{"a": 1.')
    storage = EventStorage(3)
    put_back(storage, json.loads(json.dumps(recent_values(killed, iteration=2))))
    go_on(MetricsWriter(str(path), start_iter=3), storage, 6)
    assert path.read_text() == whole.read_text() and whole.read_text().count("\n") == 3


def test_a_full_disk_is_named():
    writer = MetricsWriter("/dev/full")
    with pytest.raises(OSError, match="/dev/full: cannot write this file .No space left on device."):
        log([writer], {"a": [1.0, 2.0]})
