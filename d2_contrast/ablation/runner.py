"""Runs as processes: started, watched, resumed, stopped. Claims on folders keep several runners apart."""

import ctypes
import fcntl
import heapq
import json
import os
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from .. import env
from ..tables import write_json
from .progress import Progress, counted, duration
from .records import ATTEMPT_FILE, Store, read_attempt
from .spec import Row, Run

POLL_SECONDS = 0.2
# How often to look at a run that another process trains.
CLAIM_SECONDS = 5.0
# A run that is asked to end is killed after this time.
STOP_SECONDS = 60.0
# Loaded before any fork.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
LOG_FILE = "stdout.txt"
CLAIM_FILE = "claim"
TRAIN = (sys.executable, "-m", "d2_contrast.train")
TAIL_LINES = 12


@dataclass(frozen=True)
class Slot:
    """Where one run at a time takes place.

    Attributes:
        threads: number of threads of each process.
        processes: number of processes; with GPUs, one for each.
        gpus: value of CUDA_VISIBLE_DEVICES; None leaves it as it is.
    """

    threads: int
    processes: int = 1
    gpus: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Failure:
    """A run that did not end well: what happened, and the end of its log."""

    run: Run
    reason: str
    log: Path
    tail: str


class Claim:
    """The right to train in a folder, held by an open and locked file.

    The training inherits that file, so the claim lasts as long as this process or the training lives, and ends with the
    last of them however they end.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> "Claim | None":
        """Claim a folder and make it if it is missing; None if another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / CLAIM_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()}, process {os.getpid()}\n".encode())
        return cls(descriptor)

    def release(self) -> None:
        os.close(self.descriptor)


def claimed_by(folder: Path) -> str | None:
    """The process that trains in a folder, as "host, process 123"; None if there is none."""
    path = folder / CLAIM_FILE
    if not path.is_file():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None


def command_of(run: Run, folder: Path, train: Sequence[str] = TRAIN, processes: int = 1) -> list[str]:
    """The command that trains a run in a folder, or goes on with it."""
    command = [*train, "--config-file", str(run.row.config), "--resume"]
    if processes > 1:
        command += ["--num-gpus", str(processes), "--dist-url", "auto"]
    return [*command, *run.row.options, "SEED", str(run.seed), "OUTPUT_DIR", str(folder)]


def last_step(folder: Path) -> tuple[int, float] | None:
    """Iterations done and seconds for one, by the last line of a run's metrics.json that has both."""
    try:
        with open(folder / "metrics.json", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
            return record["iteration"] + 1, record["time"]
        except (ValueError, KeyError, TypeError):
            continue
    return None


@dataclass
class _Job:
    run: Run
    slot: Slot
    claim: Claim
    process: subprocess.Popen
    log_start: int
    metrics_size: int
    started: float = field(default_factory=time.monotonic)
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None

    @property
    def progress(self) -> str:
        done = self.last[0] / self.run.row.iterations if self.last else 0.0
        return "testing" if done >= 1 else f"{done:.0%}"

    def look(self, folder: Path) -> None:
        """Read how far the run is. Lines of an earlier attempt do not count."""
        try:
            if (folder / "metrics.json").stat().st_size > self.metrics_size:
                self.last = last_step(folder)
                self.first = self.first or self.last
        except FileNotFoundError:
            pass


class Runner:
    """Trains the runs that are not finished, one in each slot at a time.

    Attributes:
        failures: runs that failed.
        stopped_by: number of the signal that ended it early, or 0.
    """

    def __init__(
        self,
        spec_name: str,
        runs: Sequence[Run],
        store: Store,
        slots: Sequence[Slot],
        progress: Progress,
        train: Sequence[str] = TRAIN,
    ):
        """
        Args:
            spec_name: noted with the results.
            runs: all runs, in the order in which they start.
            store: where they are.
            slots: for runs at the same time.
            progress: where to say what happens.
            train: the command of a training, without its arguments.
        """
        self.spec_name, self.runs, self.store = spec_name, list(runs), store
        self.progress, self.train = progress, list(train)
        self.free = list(slots)
        self.slots = len(slots)
        self.jobs: list[_Job] = []
        self.failures: list[Failure] = []
        self.stopped_by = 0
        self.finished = 0
        self._stopping = False
        self._pending: list[Run] = []
        self._look_again: dict[str, float] = {}  # name of a run that another process has: when to look
        self._started = time.time()
        self._speeds: dict[Row, list[float]] = {}
        self._overheads: list[float] = []  # seconds of a run beside its iterations

    def run(self) -> None:
        """Train until every run is finished or has failed, or until a signal asks to stop."""
        for run in self.runs:
            if (record := self.store.record(self.spec_name, run)) is not None:
                self.finished += 1
                self._note_speed(run, record["seconds_per_iteration"])
            else:
                self._pending.append(run)
        # What is ignored stays so: nohup ignores SIGHUP.
        numbers = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            while (self._pending or self.jobs) and not self.stopped_by:
                self._reap()
                self._start()
                self._show()
                time.sleep(POLL_SECONDS)
        finally:
            if self.jobs:
                self._stop()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.progress.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by:
            for job in self.jobs:
                _kill(job.process)
        self.stopped_by = number

    def _start(self) -> None:
        for run in list(self._pending):
            if not self.free:
                return
            if time.monotonic() < self._look_again.get(run.name, 0.0):
                continue
            folder = self.store.folder(run)
            claim = Claim.take(folder)
            if claim is None:
                if run.name not in self._look_again:
                    self.progress.event(f"{run.name}: left to {claimed_by(folder) or 'another process'}")
                self._look_again[run.name] = time.monotonic() + CLAIM_SECONDS
                continue
            self._pending.remove(run)
            attempt = read_attempt(folder)
            if self.store.record(self.spec_name, run) is not None:  # another process has finished it
                self.finished += 1
            elif attempt.get("outcome") == "failed" and attempt["ended"] > self._started:
                self._fail(run, f"failed under {attempt['by']}", 0)
            else:
                self._launch(run, folder, claim, attempt)
                continue
            claim.release()

    def _launch(self, run: Run, folder: Path, claim: Claim, earlier: dict) -> None:
        slot = self.free.pop(0)
        command = command_of(run, folder.resolve(), self.train, slot.processes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(slot.threads)}
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        number = earlier.get("number", 0) + 1
        attempt = {
            "number": number,
            "outcome": None,
            "by": f"{socket.gethostname()}, process {os.getpid()}",
            "peak_memory_mb": earlier.get("peak_memory_mb"),
            "machine": {
                "cpu": env.processor()[0],
                "threads": slot.threads,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "commit": env.commit(Path(env.__file__).resolve().parents[1]),
            },
        }
        write_json(folder / ATTEMPT_FILE, attempt)
        metrics = folder / "metrics.json"
        with open(folder / LOG_FILE, "a") as log:
            log.write(f"\n==== attempt {number}, {time.ctime()}\n{shlex.join(command)}\n")
            log.flush()
            log_start = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(claim.descriptor,),
                start_new_session=True,  # Ctrl-C reaches it through us alone, once
                preexec_fn=_end_with_parent,
            )
        size = metrics.stat().st_size if metrics.is_file() else 0
        self.jobs.append(_Job(run, slot, claim, process, log_start, size))
        resumed = ", resumed" if (folder / "last_checkpoint").is_file() else ""
        self.progress.event(f"{run.name}: started{resumed}")

    def _reap(self) -> None:
        """Collect the jobs that have ended."""
        for job in list(self.jobs):
            pid, status, usage = os.wait4(job.process.pid, os.WNOHANG)
            if pid:
                job.process.returncode = os.waitstatus_to_exitcode(status)
                self._end(job, usage.ru_maxrss)

    def _end(self, job: _Job, peak_kib: int) -> None:
        self.jobs.remove(job)
        self.free.append(job.slot)
        run, folder, code = job.run, self.store.folder(job.run), job.process.returncode
        attempt = read_attempt(folder)
        attempt["peak_memory_mb"] = max(round(peak_kib * 1024 / 1e6, 1), attempt["peak_memory_mb"] or 0)
        attempt["ended"] = time.time()
        write_json(folder / ATTEMPT_FILE, attempt)  # before the record, which reads it
        record = self.store.record(self.spec_name, run)
        if record is not None:  # even if something failed after the last evaluation
            outcome = "finished"
            self.finished += 1
            wall = time.monotonic() - job.started
            self._note_speed(run, record["seconds_per_iteration"])
            job.look(folder)
            if job.first and record["seconds_per_iteration"]:
                done = run.row.iterations - job.first[0]
                self._overheads.append(max(0.0, wall - done * record["seconds_per_iteration"]))
            scores = [f"mIoU {r['mIoU']:.2f} on {d}" for d, r in record["results"].items() if r.get("mIoU") is not None]
            self.progress.event(f"{run.name}: {', '.join([f'finished in {duration(wall)}', *scores])}")
        elif self._stopping:
            outcome = "stopped"
        else:
            outcome = "failed"
            missing = "ended without the results of its last iteration"
            self._fail(run, missing if code == 0 else _reason(code), job.log_start)
        write_json(folder / ATTEMPT_FILE, {**attempt, "outcome": outcome, "exit_code": code})
        job.claim.release()

    def _fail(self, run: Run, reason: str, log_start: int) -> None:
        log = self.store.folder(run) / LOG_FILE
        with open(log, errors="replace") as file:
            file.seek(log_start)
            tail = "".join(file.readlines()[-TAIL_LINES:])
        self.failures.append(Failure(run, reason, log, tail))
        self.progress.event(f"{run.name}: {reason}")

    def _stop(self) -> None:
        """Ask all jobs to end, and kill those that do not."""
        self._stopping = True
        for job in self.jobs:
            job.process.terminate()
        self.progress.event(f"stopping {counted(len(self.jobs), 'run')}; a second signal kills at once")
        deadline = time.monotonic() + STOP_SECONDS
        while self.jobs:
            if time.monotonic() > deadline:
                for job in self.jobs:
                    _kill(job.process)
            self._reap()
            time.sleep(POLL_SECONDS)

    def _note_speed(self, run: Run, seconds: float | None) -> None:
        if seconds:
            self._speeds.setdefault(run.row, []).append(seconds)

    def _show(self) -> None:
        for job in self.jobs:
            job.look(self.store.folder(job.run))
        self.progress.update(self._state)

    def _state(self) -> str:
        """One line: how much is done, what is running, how much time is left."""
        parts = [f"{self.finished}/{len(self.runs)} finished"]
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if others := sum(run.name in self._look_again for run in self._pending):
            parts.append(f"{others} left to others")
        eta = self._seconds_left()
        parts.append("time left unknown" if eta is None else f"about {duration(eta)} left")
        running = [f"{job.run.row.name}, seed {job.run.seed}: {job.progress}" for job in self.jobs]
        return "; ".join([", ".join(parts), *running])

    def _seconds_left(self) -> float | None:
        """Time until all slots are done, if each takes the next run as soon as it is free."""
        speeds = {row: list(values) for row, values in self._speeds.items()}
        for job in self.jobs:
            if job.last:
                speeds.setdefault(job.run.row, []).append(job.last[1])
        if not speeds:
            return None
        typical = statistics.median([x for values in speeds.values() for x in values])
        overhead = statistics.mean(self._overheads) if self._overheads else 0.0

        def seconds(run: Run, done: int) -> float:
            speed = statistics.median(speeds.get(run.row, [typical]))
            return (run.row.iterations - done) * speed + overhead

        busy = [seconds(job.run, job.last[0] if job.last else 0) for job in self.jobs]
        ends = busy + [0.0] * (self.slots - len(busy))
        heapq.heapify(ends)
        for run in self._pending:
            if run.name not in self._look_again:
                heapq.heapreplace(ends, ends[0] + seconds(run, 0))
        return max(ends)


def _end_with_parent() -> None:
    """In a new process: ask the kernel for SIGTERM when the process that started it ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _reason(code: int) -> str:
    if code > 0:
        return f"failed with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
