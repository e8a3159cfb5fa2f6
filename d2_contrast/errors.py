"""A user's mistake ends in one sentence; a fault of this package keeps its traceback."""

import dis
import errno
import io
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = str(Path(__file__).parent) + os.sep
# Libraries that raise ValueError or KeyError where a setting of the user reaches them.
LIBRARIES = re.compile(r"[/\\](detectron2|fvcore|yacs|timm)[/\\]")
DEBUG = "D2_CONTRAST_DEBUG"
EXIT_CODE = 2
NOBODY_READS = 128 + 13  # of a program that SIGPIPE ended
# What torch puts around an exception in a worker of the data loader.
IN_WORKER = re.compile(r"Caught (?P<type>\w+) in .*worker.*\nOriginal Traceback", re.IGNORECASE)

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# What torch says, on a CPU and on a GPU.
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)

# What gloo says in the processes that are left when one has ended.
PEER_LOST = re.compile("gloo.*(closed|reset) by peer", re.IGNORECASE | re.DOTALL)
PEER_ENDED = "Another process of this job has ended: its message says why"
PEER_SILENT = re.compile("gloo.*Timed out waiting", re.DOTALL)
NO_ANSWER = "Another process of this job did not answer within PROCESS_GROUP_TIMEOUT"


class ElsewhereError(Exception):
    """A bug has shown in another process of the job: the message is its traceback."""


def explain(error: BaseException) -> str | None:
    """Say in a sentence what an exception means to a user, None if it is a bug.

    Such are exceptions raised by a raise statement of this package, values and keys that the libraries below it refuse,
    errors of the operating system about a file, and a lack of memory.
    """
    if isinstance(error, ElsewhereError):
        return None
    if isinstance(error, OSError) and error.filename is not None:
        return _in_one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"stdout: {error.strerror}"  # files are written through d2_contrast.output, which names them
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        reason = " ".join(str(error).split()) or "of the main memory"
        return (
            "There is not enough memory: make SOLVER.IMS_PER_BATCH, INPUT.CROP.SIZE or the channels of the network "
            f"smaller, or predict by TEST.SLIDING_WINDOW ({shorten(reason)})"
        )
    if IN_WORKER.match(str(error)):
        return _explain_worker(str(error))
    if PEER_SILENT.search(str(error)):
        return NO_ANSWER
    if PEER_LOST.search(str(error)):
        return PEER_ENDED
    # Last, since an exception that another process has handed over is raised again by this package.
    return _in_one_line(message_of(error)) if _speaks_to_users(error) else None


def message_of(error: BaseException) -> str:
    """The words of an exception; a KeyError would quote them."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _in_one_line(text: str) -> str:
    """A text with line breaks and other control characters, which names of files may hold, as escape sequences."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.strip())


def shown(value: object) -> str:
    """A value for an error message: as in Python, in one line, cut off where it is long."""
    return shorten(re.sub(r"\s*\n\s*", " ", repr(value)))


def shorten(text: str) -> str:
    """A text for an error message, cut off where it is long."""
    return text if len(text) <= 120 else text[:117] + "..."


def _speaks_to_users(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, Exception):
        return False
    code = trace.tb_frame.f_code
    if dis.opname[code.co_code[trace.tb_lasti]] != "RAISE_VARARGS":
        return False
    by_library = LIBRARIES.search(code.co_filename) and isinstance(error, (ValueError, KeyError))
    return code.co_filename.startswith(PACKAGE) or bool(by_library)


def _explain_worker(text: str) -> str | None:
    """The same for an exception of a worker, which torch hands over as text."""
    frames = re.findall(r'^  File "(.+)", line \d+, in .+\n    (.+)$', text, re.MULTILINE)
    if not frames or not (frames[-1][0].startswith(PACKAGE) and frames[-1][1].startswith("raise ")):
        return None
    return _in_one_line(re.split(r"^[\w.]+: ", text, flags=re.MULTILINE)[-1])


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that has lost its reader. What is left to write to it is dropped."""
    stdout = select.poll()
    stdout.register(1)
    if not any(event & select.POLLERR for _, event in stdout.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # otherwise Python reports the same again when it ends
    os.close(nowhere)
    return True


@contextmanager
def in_plain_words(claim: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """End the process with exit code 2 and one sentence on stderr where :func:`explain` has one.

    With D2_CONTRAST_DEBUG in the environment every exception keeps its traceback. A reader of stdout that has gone, as
    ``head`` has after its lines, ends the process quietly, with the exit code of other programs. What stdout cannot
    encode is written as escape sequences.

    Args:
        claim: returns True to the first of several processes that fail together, which then reports for all.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold any bytes
    try:
        yield
        print(end="", flush=True)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(NOBODY_READS) from None
        sentence = None if os.environ.get(DEBUG) else explain(error)
        if sentence is None:
            raise
        if sentence == PEER_ENDED:
            time.sleep(30)  # its launcher usually ends this process before
        if claim():
            print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
