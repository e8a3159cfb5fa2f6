"""Kill a training run again and again, go on with it each time, and compare its end with that of an unbroken one.

python -m benchmarks.resume --kills 20

A small network with the losses is trained on a few pictures of the embedded dataset, with everything on that draws
random numbers or keeps a state: crops, colours, blur, dropout, drop path, anchors, repeats of rare classes,
accumulation, moving average, mixed precision. Every second kill waits until a checkpoint is being written; the others
come at random moments. All tensors of the last checkpoints have to be equal bit for bit, and the logs line by line but
for times.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from d2_contrast.config_files import find_config
from d2_contrast.data.datasets.shapes_drawing import CLASSES, draw
from d2_contrast.engine import setup, train
from d2_contrast.output import PARTIAL

RANDOM = {
    "SEED": 3,
    "MODEL.SEM_SEG_HEAD.DROPOUT": 0.5,
    "MODEL.TIMM.DROP_PATH": 0.3,
    "INPUT.SCALE_RANGE": [0.5, 1.5],
    "INPUT.COLOR_JITTER.ENABLED": True,
    "INPUT.BLUR.PROB": 0.5,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.9,
}
STATEFUL = {"SOLVER.EMA.ENABLED": True, "SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.AMP.ENABLED": True}
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.TIMM.NAME": "test_resnet",
    "MODEL.UPER.OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
    "MODEL.CONTRAST.EMBEDDING_DIM": 8,
    "INPUT.CROP.SIZE": [32, 32],
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.MAX_TO_KEEP": 2,
    "TEST.EVAL_PERIOD": 20,
    "VISUALIZE.NUM_IMAGES": 0,
    "VISUALIZE.TSNE_POINTS": 0,
}
TIMES = ("time", "data_time", "eta_seconds")  # what depends on the clock


def make_options(root: Path, iterations: int, period: int, **more) -> list[str]:
    """Keys and values of a run over shapes/uper_r18_contrast, whose pictures are drawn into a folder."""
    for index in range(8):
        for kind, array in zip(("images", "labels"), draw("val", index)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{index}.png")
    name = f"killed_{root.name}"
    dataset = {"name": name, "images": f"{root}/images", "labels": f"{root}/labels", "classes": list(CLASSES)}
    options = SMALL | RANDOM | STATEFUL | {key.replace("__", "."): value for key, value in more.items()}
    options |= {"DATASETS.FOLDERS": [dataset], "DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,)}
    options |= {"SOLVER.MAX_ITER": iterations, "SOLVER.CHECKPOINT_PERIOD": period}
    return [str(part) for pair in options.items() for part in pair]


def start(options: Sequence[str], folder: Path) -> int:
    """Start a run, or go on with the one in a folder, in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        with open(f"{folder}.log", "a") as log:
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        resume = folder.exists()
        config = find_config("shapes/uper_r18_contrast")
        arguments = [*options, "OUTPUT_DIR", str(folder)]
        train(setup(Namespace(config_file=config, opts=arguments, eval_only=False, resume=resume)), resume=resume)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int, folder: Path) -> None:
    """Wait until a run has ended well."""
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"The run in {folder} ended with {status}:\n{Path(f'{folder}.log').read_text()[-3000:]}")


def train_with_kills(options: Sequence[str], folder: Path, kills: int, seconds: float, seed: int = 0) -> Counter:
    """Train to the end, killed on the way.

    Args:
        kills: how often.
        seconds: that the whole run takes unbroken, over which the kills are spread.

    Returns:
        How many kills there were, fewer if the run ended before, and how many of them left a file half written.
    """
    moments = random.Random(seed)
    counted: Counter = Counter()
    for number in range(kills):
        child = start(options, folder)
        deadline = time.monotonic() + moments.uniform(0, 2 * seconds / kills)
        while time.monotonic() < deadline or (number % 2 and not list(folder.glob(f"model_*{PARTIAL}"))):
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                wait(child, folder)
                return counted
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counted["kills"] += 1
        counted["half written"] += bool(list(folder.glob(f"*{PARTIAL}")))
    wait(start(options, folder), folder)
    return counted


def find_differences(folder: Path, other: Path) -> list[str]:
    """What two runs ended differently in: names of tensors of the last checkpoint, "scaler", "log: ..."."""
    (first, first_log), (second, second_log) = map(_outcome, (folder, other))
    a, b = flatten_tensors(first), flatten_tensors(second)
    found = [name for name in sorted(a.keys() | b.keys()) if not torch.equal(a[name], b[name])]
    scalers = [checkpoint["trainer"]["_trainer"]["grad_scaler"] for checkpoint in (first, second)]
    found += ["scaler"] * (scalers[0] != scalers[1])
    keys = sorted(first_log.keys() | second_log.keys())
    return found + [f"log: {key}" for key in keys if first_log.get(key) != second_log.get(key)]


def _outcome(folder: Path) -> tuple[dict, dict[str, list]]:
    """The last checkpoint of a run, and the values that it logged, by name and iteration."""
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    logged: dict[str, list] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        for name, value in (record := json.loads(line)).items():
            if name not in (*TIMES, "iteration"):
                logged.setdefault(name, []).append((record["iteration"], value))
    return checkpoint, logged


def flatten_tensors(tree: object, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dicts and lists, by the keys that lead to them."""
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {name: tensor for key, part in items for name, tensor in flatten_tensors(part, f"{path}/{key}").items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--period", type=int, default=5, help="iterations between two checkpoints")
    parser.add_argument("--amp", choices=["bfloat16", "float16"], default="bfloat16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        whole, killed = Path(root, "whole"), Path(root, "killed")
        options = make_options(Path(root), args.iterations, args.period, SOLVER__AMP__DTYPE=args.amp)
        began = time.monotonic()
        wait(start(options, whole), whole)
        seconds = time.monotonic() - began
        counted = train_with_kills(options, killed, args.kills, seconds)
        tensors = flatten_tensors(torch.load(whole / "model_final.pth", weights_only=True))
        differences = find_differences(whole, killed)
    print(
        f"{counted['kills']} kills survived, {counted['half written']} of them left a file half written; "
        f"{len(differences)} of {len(tensors)} tensors and logs differ: {', '.join(differences[:5]) or 'none'}"
    )
    raise SystemExit(bool(differences))


if __name__ == "__main__":
    main()
