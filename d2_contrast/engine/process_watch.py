"""Ending a job one of whose processes is stopped, hangs or is lost, with the name of that process."""

import linecache
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from detectron2.utils import comm

from ..arrivals import count_arrivals
from ..errors import EXIT_CODE, PACKAGE

MAX_PERIOD = 10.0  # largest number of seconds between two signs of life
# Seconds for the other processes to save and to end by themselves, once the one that is silent is killed.
PATIENCE = 300.0
END = "end"  # what a process is told that hangs

logger = logging.getLogger(__name__)


class ProcessWatch:
    """While it is entered, in all processes of a job, threads of the first process and of the others exchange signs
    of life: how far each has come (:mod:`~d2_contrast.arrivals`).

    A process that is silent for too long is named, and killed if it is on this machine. One that lives but does not
    come to where the others wait for it is named, with the line of code at which it is, and ends itself. Whoever waits
    for it then finds its connection closed, as after any death, saves and ends. Steps of the training do not wait for
    any of this.
    """

    def __init__(self, address: str, timeout: float):
        """
        Args:
            address: under which all reach the first process.
            timeout: of the process group, seconds. Silence is noticed a little earlier, before operations of the group
                fail without a name.
        """
        self.address = address
        self.period = min(MAX_PERIOD, timeout / 20)
        self.limit = timeout - 3 * self.period
        self._ended = threading.Event()

    def __enter__(self) -> "ProcessWatch":
        secret = os.urandom(16)
        listener = None
        if comm.is_main_process():
            listener = Listener(("0.0.0.0", 0), backlog=comm.get_world_size(), authkey=secret)
        own = socket.gethostname(), os.getpid(), secret, listener.address[1] if listener else 0
        everyone = comm.all_gather(own)
        self._processes = [(host, pid) for host, pid, *_ in everyone]
        if listener:
            self._progress: dict[int, tuple[int, str]] = {}
            self._connections: dict[int, Connection] = {}
            self._start(self._accept, listener)
            self._start(self._judge)
        else:
            self._start(self._connect, everyone[0][3], everyone[0][2])
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def _start(self, function, *args) -> None:
        threading.Thread(target=function, args=args, daemon=True).start()

    def _accept(self, listener: Listener) -> None:
        for _ in self._processes[1:]:
            connection = listener.accept()
            rank = connection.recv()
            self._connections[rank] = connection
            self._start(self._watch, rank, connection)

    def _connect(self, port: int, secret: bytes) -> None:
        try:
            connection = Client((self.address, port), authkey=secret)
            connection.send(comm.get_rank())
        except OSError as error:
            logger.warning("Nobody finds out if this process is stopped: no connection to the first one (%s)", error)
            return
        self._watch(0, connection)

    def _watch(self, rank: int, connection: Connection) -> None:
        """Exchange signs of life with a process; the first one keeps what the others say."""
        heard = time.monotonic()
        with suppress(EOFError, OSError):  # it has ended, which the process group notices
            while not self._ended.wait(self.period):
                connection.send((count_arrivals(), _where()))
                while connection.poll():
                    said = connection.recv()
                    if said == END:
                        _end_here()
                    if comm.is_main_process():
                        self._progress[rank] = said
                    heard = time.monotonic()
                if time.monotonic() - heard > self.limit:
                    self._end_silent(rank)
                    return

    def _judge(self) -> None:
        """Find out, in the first process, for whom all wait."""
        before, since = None, time.monotonic()
        while not self._ended.wait(self.period):
            progress = {**self._progress, 0: (count_arrivals(), _where())}
            arrivals = {rank: count for rank, (count, _) in progress.items()}
            if arrivals != before or len(arrivals) < len(self._processes):
                before, since = arrivals, time.monotonic()
            elif time.monotonic() - since > self.limit and min(arrivals.values()) < max(arrivals.values()):
                behind = sorted(rank for rank, count in arrivals.items() if count == min(arrivals.values()))
                for rank in behind:
                    self._say(f"{self._name(rank)} hangs at {progress[rank][1]}: the others have waited for it for")
                for rank in behind[::-1]:  # the first one last
                    if rank == 0:
                        _end_here()
                    with suppress(OSError):
                        self._connections[rank].send(END)
                return

    def _name(self, rank: int) -> str:
        host, pid = self._processes[rank]
        return f"Process {rank} of {len(self._processes)} (number {pid} on {host})"

    def _say(self, text: str) -> None:
        text = f"{text} {self.limit:.0f} s (PROCESS_GROUP_TIMEOUT): the job ends"
        logger.error(text)
        if not comm.is_main_process():  # the only one whose log is shown
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())

    def _end_silent(self, rank: int) -> None:
        self._say(f"{self._name(rank)} has not answered for")
        host, pid = self._processes[rank]
        if host == socket.gethostname():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not self._ended.wait(PATIENCE):
            os._exit(EXIT_CODE)


def _where() -> str:
    """The line at which the main thread of this process is: the innermost of this package, if any."""
    frame = innermost = sys._current_frames()[threading.main_thread().ident]
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    frame = frame or innermost
    path, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(path).name}:{line} ({linecache.getline(path, line).strip()})"


def _end_here() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(EXIT_CODE)
