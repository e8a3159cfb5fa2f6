"""Stands in for train_net.py: the same arguments and files, iterations that only wait.

In its OUTPUT_DIR it counts attempts in ``calls.jsonl``, with what it was given. The environment says what happens:
FAKE_SECONDS for an iteration, FAKE_FAIL a part of the folder's name that makes it fail at its third iteration.
"""

import json
import os
import sys
import time
from pathlib import Path

arguments = sys.argv[sys.argv.index("--resume") + 1 :]
processes = 1
if arguments[0] == "--num-gpus":
    processes, arguments = int(arguments[1]), arguments[4:]
options = dict(zip(arguments[::2], arguments[1::2]))
folder = Path(options["OUTPUT_DIR"])
last = folder / "last_checkpoint"
start = int(last.read_text()) if last.is_file() else 0
call = {"start": start, "processes": processes, "pid": os.getpid(), "options": options}
call.update({name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")})
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\n")


def log(**values) -> None:
    with open(folder / "metrics.json", "a") as file:
        file.write(json.dumps(values) + "\n")


def evaluate(iteration: int, miou: float) -> None:
    results = {"mIoU": miou, "mIoU-rare": miou / 2, "IoU-star": float("nan")}
    log(iteration=iteration, **{f"sem_seg/{name}": value for name, value in results.items()})


total = int(options["SOLVER.MAX_ITER"])
for iteration in range(start, total):
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    log(iteration=iteration, time=0.25 if iteration else 9.0, total_loss=1.0)
    if iteration == 2 and os.environ.get("FAKE_FAIL", "nothing") in folder.name:
        print("reading images\nOSError: no such image: 7.png", flush=True)
        sys.exit(3)
    if iteration + 1 < total:
        last.write_text(str(iteration + 1))
        evaluate(iteration, 1.0)  # an evaluation on the way, which is no result
evaluate(total, 50.0 + int(options["SEED"]) + 10 * float(options["SOLVER.MOMENTUM"]))
