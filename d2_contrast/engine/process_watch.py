"""Ending a job one of whose processes is stopped or lost, with the name of that process."""

import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener

from detectron2.utils import comm

from ..errors import EXIT_CODE

MAX_PERIOD = 10.0  # largest number of seconds between two signs of life
# Seconds for the other processes to save and to end by themselves, once the one that is silent is killed.
PATIENCE = 300.0

logger = logging.getLogger(__name__)


class ProcessWatch:
    """While it is entered, in all processes of a job, threads of the first process and of the others exchange signs
    of life.

    A process that is silent for too long is named, and killed if it is on this machine: whoever waits for it then finds
    its connection closed, as after any death, saves and ends. Steps of the training do not wait for any of this.
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
            self._start(self._accept, listener)
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
            self._start(self._watch, connection.recv(), connection)

    def _connect(self, port: int, secret: bytes) -> None:
        try:
            connection = Client((self.address, port), authkey=secret)
            connection.send(comm.get_rank())
        except OSError as error:
            logger.warning("Nobody finds out if this process is stopped: no connection to the first one (%s)", error)
            return
        self._watch(0, connection)

    def _watch(self, rank: int, connection: Connection) -> None:
        heard = time.monotonic()
        with suppress(EOFError, OSError):  # it has ended, which the process group notices
            while not self._ended.wait(self.period):
                connection.send_bytes(b".")
                while connection.poll():
                    connection.recv_bytes()
                    heard = time.monotonic()
                if time.monotonic() - heard > self.limit:
                    self._end(rank)
                    return

    def _end(self, rank: int) -> None:
        host, pid = self._processes[rank]
        text = (
            f"Process {rank} of {len(self._processes)} (number {pid} on {host}) has not answered for {self.limit:.0f} s"
            " (PROCESS_GROUP_TIMEOUT): the job ends"
        )
        logger.error(text)
        if not comm.is_main_process():  # the only one whose log is shown
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())
        if host == socket.gethostname():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not self._ended.wait(PATIENCE):
            os._exit(EXIT_CODE)
