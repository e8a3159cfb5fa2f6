"""What the losses do on the embedded dataset, over several seeds.

    python -m benchmarks.shapes --seeds 1 2 3 --jobs 2

Trains each config once for every seed (runs that are complete already are not repeated) and prints a Markdown table of
means and standard deviations. Keys and values at the end override every config.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CONFIGS = ("uper_r18", "uper_r18_contrast")
METRICS = ("mIoU", "mIoU-stuff", "mIoU-things", "mIoU-rare", "pACC")
ROOT = Path(__file__).parents[1]


def run(config: str, seed: int, output: Path, threads: int, overrides: list[str]) -> dict[str, float]:
    """Train ``configs/shapes/{config}.yaml`` with a seed, unless ``output`` holds its results; return the results."""
    results = output / "inference/shapes_val/sem_seg_results.json"
    if not results.is_file():
        output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train_net.py", "--config-file", f"configs/shapes/{config}.yaml", "--overwrite"]
        # Evaluated once, at the end: results exist for complete runs only.
        options = ["SEED", str(seed), "OUTPUT_DIR", str(output), "TEST.EVAL_PERIOD", "0", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(output / "stdout.txt", "w") as log:
            subprocess.run(
                [*command, *options], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True
            )
    return json.loads(results.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="names of files in configs/shapes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--output", type=Path, default=ROOT / "output/benchmarks/shapes")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()

    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {
            (config, seed): pool.submit(
                run, config, seed, args.output.resolve() / f"{config}_seed{seed}", threads, args.overrides
            )
            for seed in args.seeds
            for config in args.configs
        }
    print(f"| config | {' | '.join(METRICS)} | mIoU by seed |")
    print("|---|" + "---:|" * (len(METRICS) + 1))
    for config in args.configs:
        results = [futures[config, seed].result() for seed in args.seeds]
        cells = []
        for metric in METRICS:
            values = [result[metric] for result in results]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}")
        seeds = ", ".join(f"{result['mIoU']:.2f}" for result in results)
        print(f"| {config} | {' | '.join(cells)} | {seeds} |")


if __name__ == "__main__":
    main()
