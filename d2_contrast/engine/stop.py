"""Ending a run when the system or the user asks for it, without losing what was trained."""

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
import torch.distributed as dist
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..arrivals import arrive

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # preempted, Ctrl-C, terminal closed
# One Ctrl-C can reach a process twice, from the terminal and from its launcher. Signals within this time, seconds, are
# one request.
SAME_REQUEST = 1.0
# A process that waits for a dead one never ends its step. After this time, seconds, it is ended.
PATIENCE = 300.0


class Stopped(SystemExit):
    """All processes of the job end here, because one was asked to; the exit code is 128 + the number of the signal."""


class StopEvaluation(Exception):
    """This process evaluates no further image."""


class StopRequests:
    """Inside the block a signal to end is noted, to end the run where nothing is lost; a second one ends it at once.

    Attributes:
        received: number of the signal that this process got, 0 for none.
    """

    def __init__(self):
        self.received = 0
        self._answered = threading.Event()
        self._before = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread can take signals
        # Python runs handlers in the main thread, which may wait for another process forever. The numbers of signals
        # come out of this pipe at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._pipe_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in heeded_signals()}
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._answered.set()
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._pipe_before)
            self._writer.close()  # the watch ends

    def check(self) -> None:
        """Raise :class:`Stopped` in all processes if any was asked to end; to be called in all."""
        number = self.received
        if comm.get_world_size() > 1:
            arrive()
            number = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(number, dist.ReduceOp.MAX)
        if number:
            self.answer()
            raise Stopped(128 + int(number))

    def answer(self) -> None:
        """Say that the run is ending, so that no time limit applies any more."""
        self._answered.set()

    def _note(self, number: int, _frame) -> None:
        if not self.received:
            self.received = number
            # Workers of the data loader may have got the signal, too: that they end must not disturb the step.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _watch(self) -> None:
        first = 0.0
        while numbers := self._reader.recv(64):
            for number in filter(SIGNALS.__contains__, numbers):
                if not first:
                    first = time.monotonic()
                    self._say(f"{signal.Signals(number).name}: ending after this step; a second signal ends at once")
                    timer = threading.Timer(PATIENCE, self._give_up, [number])
                    timer.daemon = True
                    timer.start()
                elif time.monotonic() - first > SAME_REQUEST:
                    self._say(f"{signal.Signals(number).name} again: ending at once")
                    os._exit(128 + number)
        self._reader.close()

    def _give_up(self, number: int) -> None:
        if not self._answered.is_set():
            self._say(f"no end of the step within {PATIENCE:.0f} s: ending without a checkpoint")
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{text} (process {os.getpid()})\n".encode())


def heeded_signals() -> list[signal.Signals]:
    """SIGNALS, without those that are ignored, for example by nohup: these stay ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


class StoppableEvaluator(DatasetEvaluator):
    """An evaluator that ends with :class:`Stopped` when the run is asked to end, and then computes no results.

    A process that is asked raises :class:`StopEvaluation` at its next image. The caller catches it and
    calls ``requests.check()``, where all processes meet; the others get there at the end of their images.
    """

    def __init__(self, evaluator: DatasetEvaluator, requests: StopRequests):
        self.evaluator, self.requests = evaluator, requests

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        if self.requests.received:
            raise StopEvaluation
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Mapping | None:
        self.requests.check()
        return self.evaluator.evaluate()
