"""The folder of a run: it holds one run, which no other overwrites."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from datetime import datetime
from itertools import count
from pathlib import Path

from ..output import PARTIAL
from .checkpoint import TAG, own_checkpoints
from .metrics_writer import read_lines
from .stripped import BEST

LOCK = "run.lock"
METRICS = "metrics.json"

# Seconds between two signs of life of a run, and without one after which a run on another machine counts as dead.
HEARTBEAT = 30
DEAD_AFTER = 300


class FolderInUseError(OSError):
    """A folder cannot be used for a run because it holds another one."""


def find_run(folder: str) -> str:
    """Path of something that a run has left in a folder, "" if there is nothing."""
    candidates = [os.path.join(folder, TAG), os.path.join(folder, METRICS), *own_checkpoints(folder)]
    return next((path for path in candidates if os.path.isfile(path) and os.path.getsize(path)), "")


def prepare_folder(folder: str, *, resume: bool, overwrite: bool) -> str:
    """Make sure that a training run can start in a folder; called before anything is written there.

    Args:
        folder: of the run; need not exist.
        resume: the run goes on with what it finds there.
        overwrite: a run that is there is moved aside, to a folder beside it.

    Returns:
        The folder that an earlier run was moved to, "" if there was none to move.

    Raises:
        FolderInUseError: a run is going on there, or there is one and neither ``resume`` nor ``overwrite`` is set.
    """
    if not os.path.isdir(folder):
        return ""
    with RunLock(folder):
        if not overwrite:
            check_free(folder, resume=resume)
        if not overwrite or not find_run(folder):
            return ""
        base = os.path.abspath(folder)
        if os.path.commonpath([os.path.realpath(base), os.path.realpath(os.getcwd())]) == os.path.realpath(base):
            raise FolderInUseError(f"OUTPUT_DIR {folder} is the working folder or holds it: start from another folder")
        target = next(path for i in count(1) if not os.path.lexists(path := f"{base}.old-{i}"))
        try:
            os.rename(base, target)
        except OSError as error:
            raise FolderInUseError(f"{base} cannot be moved aside to {target} ({error.strerror})") from error
        return target


def check_free(folder: str, *, resume: bool) -> None:
    """Raise :class:`FolderInUseError` if a folder holds a run that the new one does not go on with."""
    if not resume and (trace := find_run(folder)):
        raise FolderInUseError(
            f"OUTPUT_DIR {folder} holds a run already ({os.path.basename(trace)}): go on with it by --resume, move it "
            "aside by --overwrite, or name another OUTPUT_DIR"
        )


def check_nothing_lost(folder: str, checkpoint_period: int) -> None:
    """Check that a folder without a checkpoint holds no more than a run that was killed before its first one.

    Raises:
        FolderInUseError: it does; a run that starts anew would write over it.
    """
    metrics = os.path.join(folder, METRICS)
    lines = read_lines(metrics) if os.path.isfile(metrics) else []
    has_trained = max((line["iteration"] + 1 for line in lines), default=0)
    has_best = os.path.isfile(os.path.join(folder, BEST))
    if has_best or has_trained >= checkpoint_period:
        trace = BEST if has_best else f"{METRICS} up to iteration {has_trained}"
        raise FolderInUseError(
            f"OUTPUT_DIR {folder} holds a run ({trace}) but no checkpoint to go on from: put one back, move the run "
            "aside by --overwrite, or name another OUTPUT_DIR"
        )


class RunLock:
    """Keeps a folder for one run while it is entered; to be used in the main process.

    The operating system lets go of the lock when the process ends, however it does. What the file says, host, process
    and its start, tells who holds it, and stands in for the lock on file systems that have none or do not share it
    between machines.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.path = os.path.join(folder, LOCK)

    def __enter__(self) -> "RunLock":
        os.makedirs(self.folder, exist_ok=True)
        while True:
            self._file = open(self.path, "a+")
            try:
                self._take()
            except BaseException:
                self._file.close()
                raise
            try:
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                    break
            except FileNotFoundError:
                pass
            self._file.close()  # its last holder has removed it meanwhile
        self._file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}
        self._file.write(json.dumps({**owner, "since": datetime.now().isoformat(" ", "seconds")}))
        self._file.flush()
        for path in Path(self.folder).glob("*" + PARTIAL):
            path.unlink()  # what a killed run was writing
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        try:
            os.remove(self.path)
        except OSError:  # moved with its folder
            self._file.truncate(0)
        self._file.close()

    def _take(self) -> None:
        """Take the lock of the file or raise FolderInUseError."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            taken = error.errno not in (errno.EACCES, errno.EAGAIN)
        self._file.seek(0)
        try:
            owner = json.loads(self._file.read())
        except ValueError:
            owner = {}
        if taken and not self._is_alive(owner):
            return
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "another process"
        raise FolderInUseError(
            f"OUTPUT_DIR {self.folder} is in use by a run that goes on ({who}): wait for its end, or name another "
            "OUTPUT_DIR"
        )

    def _is_alive(self, owner: dict) -> bool:
        if not {"host", "pid", "started", "since"} <= owner.keys() or owner["pid"] == os.getpid():
            return False
        if owner["host"] != socket.gethostname():
            return time.time() - os.fstat(self._file.fileno()).st_mtime < DEAD_AFTER
        return bool(owner["started"]) and process_start(owner["pid"]) == owner["started"]

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self._file.fileno())
            except (OSError, ValueError):  # let go meanwhile
                return


def process_start(pid: int) -> str:
    """When a process of this machine started, as text that no other process with this number has.

    "" if it has ended, though it may still be listed because nobody asked for its exit code, or if that is unknown.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else f"{boot} {fields[18]}"
    except (OSError, IndexError):
        return ""
