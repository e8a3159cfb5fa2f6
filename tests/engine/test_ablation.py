"""An ablation with real training, killed in the middle and run again."""

import json
import os
import re
import signal
import time

import pytest

from d2_contrast.ablate import main
from d2_contrast.ablation.runner import claimed_by


def test_killed_ablation_goes_on(write_config, tmp_path, monkeypatch, capsys):
    write_config()
    spec = tmp_path / "two_rows.yaml"
    spec.write_text("""
        seeds: [1]
        baseline: cross entropy
        rows:
          - {name: cross entropy, config: tiny.yaml, overrides: {MODEL.CONTRAST.ENABLED: False, SOLVER.MAX_ITER: 2}}
          - {name: ours, config: tiny.yaml, overrides: {SOLVER.MAX_ITER: 30, SOLVER.CHECKPOINT_PERIOD: 3}}
        """)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "output"
    arguments = [str(spec), "--output", str(output), "--threads", "1"]

    if not (pid := os.fork()):
        os.setsid()
        os._exit(main(arguments))
    end = time.monotonic() + 300
    while not list(output.glob("ours_*/last_checkpoint")):
        assert time.monotonic() < end and not os.waitpid(pid, os.WNOHANG)[0]
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    (finished,), (half,) = output.glob("cross-entropy_*"), output.glob("ours_*")
    assert [path.stem for path in (output / "results").iterdir()] == [finished.name]
    while claimed_by(half):  # until its training has ended with it
        time.sleep(0.02)
    log = (finished / "stdout.txt").read_text()
    capsys.readouterr()

    assert main(arguments) == 0
    assert (finished / "stdout.txt").read_text() == log
    _, before, after = (half / "stdout.txt").read_text().split("==== attempt")
    loaded = re.compile(r"model_\d+\.pth: checkpoint of a whole model")
    assert not loaded.search(before) and loaded.search(after)
    (dataset,) = (path.name for path in (half / "inference").iterdir())
    expected = json.loads((half / f"inference/{dataset}/sem_seg_results.json").read_text())
    record = json.loads((output / f"results/{half.name}.json").read_text())
    assert record["results"][dataset] == {k: v and pytest.approx(v, abs=1e-4) for k, v in expected.items()}
    assert record["seconds_per_iteration"] > 0 and record["attempts"] == 2
    assert 100 < record["peak_memory_mb"]["process"] < 20_000
    page = capsys.readouterr().out
    assert "2 of 2 runs finished" in page and f"| {expected['mIoU']:.2f} |" in page
