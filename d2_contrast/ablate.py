"""Run an ablation, rows times seeds as a yaml file says, and collect it into one table.

    d2-contrast ablate ablations/shapes_ladder --jobs 2                # again: go on where it was stopped
    d2-contrast ablate ablations/table_1a --gpus 8 --gpus-per-run 4
    d2-contrast ablate ablations/table_1a --print-commands             # one command a run, for a queue
    d2-contrast ablate ablations/shapes_ladder --collect-only --plot
    d2-contrast ablate ablations/shapes_ladder --plan-only SOLVER.MAX_ITER 6000

Keys and values at the end override every config. docs/ablations.md describes the file and the table.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from .cli import PROGRAM, given_path, verb_parser
from .errors import in_plain_words


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("ablate", __doc__)
    parser.add_argument("spec", metavar="SPEC", help="what to run: a yaml file, or the name of one of this project's")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each run (default: share the cores)")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of this machine to use, one for each run")
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="GPUs of each run (default: 1)")
    parser.add_argument("--output", type=given_path, help="folder for the runs and the table (default: the spec's)")
    parser.add_argument("--results", type=given_path, help="folder for the results of runs (default: OUTPUT/results)")
    parser.add_argument("--plot", action="store_true", help="draw the differences to the baseline")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plan-only", action="store_true", help="check and show what would be run")
    how.add_argument("--print-commands", action="store_true", help="print a shell command for each run to be done")
    how.add_argument("--run", metavar="NAME", help="do this one alone, as a printed command does")
    how.add_argument("--collect-only", action="store_true", help="make the table of what is finished")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to override in all rows")
    return parser


@in_plain_words()
def main(argv: list[str] | None = None) -> int:
    """Run what is not finished and print the table; returns the exit code, 128 + a signal if one stopped it."""
    parser = build_parser()
    arguments = sys.argv[1:] if argv is None else argv
    args = parser.parse_intermixed_args(arguments)
    for name in ("jobs", "threads", "gpus", "gpus_per_run"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: expected 1 or more")
    from .ablation import AblationError, Progress, Runner, Store, check_labels, describe_plan, read_spec, write_tables
    from .config_files import find_config

    args.spec = find_config(args.spec)
    spec = read_spec(args.spec, args.overrides)
    output = args.output or spec.output
    store = Store(output, args.results or output / "results")
    if not args.collect_only:
        check_labels(spec)
        runs = spec.distinct_runs if args.run is None else [run for run in spec.runs if run.name == args.run]
        if not runs:
            raise AblationError(f"{args.spec} has no run {args.run!r}: was it changed after the command was printed?")
        if args.run is None:
            print(describe_plan(spec, store), file=sys.stderr)
        if args.plan_only:
            return 0
        if args.print_commands:
            for run in runs:
                if store.record(spec.name, run) is None:
                    print(shell_command(args, run.name, store))
            return 0
        slots = make_slots(args.jobs, args.threads, args.gpus, args.gpus_per_run)
        runner = Runner(spec.name, runs, store, slots, Progress(sys.stderr))
        runner.run()
        if runner.stopped_by:
            again = shlex.join([PROGRAM, "ablate", *arguments])
            print(f"Stopped; {runner.finished} of {len(runs)} runs are finished. To go on: {again}", file=sys.stderr)
            return 128 + runner.stopped_by
    if args.run is None:
        page, paths = write_tables(spec, store, args.plot)
        print(page)
        print("Written: " + ", ".join(map(str, paths)), file=sys.stderr)
    if not args.collect_only and runner.failures:
        print(describe_failures(runner.failures), file=sys.stderr)
        return 1
    return 0


def make_slots(jobs: int, threads: int | None, gpus: int | None, gpus_per_run: int) -> list:
    """Slots for runs at the same time, which share the cores and the GPUs of this machine.

    Raises:
        AblationError: these numbers do not go together, or there are too few GPUs.
    """
    import torch

    from .ablation import AblationError, Slot

    if gpus is None:
        if jobs > 1 and gpus_per_run > 1:
            raise AblationError(f"--jobs {jobs} with --gpus-per-run {gpus_per_run}: say by --gpus how many there are")
        groups = [None] * jobs
    else:
        found = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",")[:found] if visible else [str(i) for i in range(found)]
        if jobs > 1:
            raise AblationError(f"--jobs {jobs} with --gpus {gpus}: the GPUs decide how many runs there are at a time")
        if gpus > found:
            raise AblationError(f"--gpus {gpus}: torch can use {found} GPUs here")
        if gpus % gpus_per_run:
            raise AblationError(f"--gpus {gpus} is no multiple of --gpus-per-run {gpus_per_run}")
        groups = [tuple(names[i : i + gpus_per_run]) for i in range(0, gpus, gpus_per_run)]
    share = max(1, len(os.sched_getaffinity(0)) // (len(groups) * gpus_per_run))
    return [Slot(threads or share, gpus_per_run, group) for group in groups]


def shell_command(args: argparse.Namespace, name: str, store) -> str:
    """A command that does one run, from any folder."""
    settings = [f"{key}={os.environ[key]}" for key in ("DETECTRON2_DATASETS", "PYTHONPATH") if key in os.environ]
    command = ["env", *settings, sys.executable, "-m", "d2_contrast.ablate"]
    command += [str(Path(args.spec).resolve()), "--run", name]
    command += ["--output", str(store.output.resolve()), "--results", str(store.results.resolve())]
    command += ["--threads", str(args.threads)] if args.threads else []
    command += ["--gpus-per-run", str(args.gpus_per_run)] if args.gpus_per_run > 1 else []
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join([*command, *args.overrides])}"


def describe_failures(failures: list) -> str:
    """Each failed run with the end of its log."""
    parts = [f"Failed runs: {len(failures)}. The same command tries them again."]
    for failure in failures:
        tail = "".join(f"    {line}\n" for line in failure.tail.splitlines())
        parts.append(f"{failure.run.name}: {failure.reason}; the end of {failure.log}:\n{tail}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
