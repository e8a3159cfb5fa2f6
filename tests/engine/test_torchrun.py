"""Jobs that torchrun starts again when a process is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch


def find_workers(pid: int) -> list[int]:
    """The processes that a process has started, without their own."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_a_killed_worker_is_survived(write_config, tmp_path, pytestconfig):
    """Killed once the first checkpoint is there: the job starts again, goes on, and reaches its last iteration."""
    output, log = tmp_path / "output", tmp_path / "log"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", str(pytestconfig.rootpath / "train_net.py"), "--resume"]
    command += ["--config-file", write_config(base="uper_r18.yaml"), "OUTPUT_DIR", str(output), "SEED", "1"]
    command += ["SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Without it torch 2.14 often waits for ever when it starts a job again, see docs/distributed.md.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(log, "w") as file:
        job = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        while job.poll() is None and not (output / "last_checkpoint").exists():
            time.sleep(0.02)
        os.kill(find_workers(job.pid)[1], signal.SIGKILL)
        assert job.wait() == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert re.search(r"Going on from \S+ at iteration \d+ of 40", text) and "Not exactly as without" not in text
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 39
