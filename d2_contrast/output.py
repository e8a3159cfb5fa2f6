"""Writing files whole or not at all, under names that differ."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PARTIAL = ".partial"  # ends the name of a file that is being written


def numbered(name: str) -> Iterator[str]:
    """``name``, ``name-2``, ``name-3`` and so on, to choose from where some are taken."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


@contextmanager
def write_whole(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file that takes its place under ``path`` only when it is complete and on the disk.

    If writing fails or the process is killed, the old file stays as it was. Several processes may write
    the same file: the last one has it.

    Args:
        path: of the file, in a folder that exists.
        mode: "wb" or "w", which is UTF-8 but for other bytes in names of files, which stay as they are.

    Raises:
        OSError: it cannot be written; the message names the file and says why.
    """
    path = os.fspath(path)
    partial = f"{path}.{os.getpid()}{PARTIAL}"
    try:
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "surrogateescape")
        with open(partial, mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(os.path.dirname(path))
    except BaseException as error:
        with suppress(OSError):
            os.remove(partial)
        reason = _system_error(error)
        if reason is None:
            raise
        raise OSError(f"{path}: cannot write this file ({reason.strerror})") from error


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Name the file in errors of the operating system while lines are added to it; of a full disk it names none.

    Raises:
        OSError: it cannot be written; the message names the file and says why.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{os.fspath(path)}: cannot write this file ({error.strerror})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text by :func:`write_whole`, into a folder that is made if need be."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with write_whole(path, "w") as file:
        file.write(text)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names for what is made from some files, without suffix: those that would differ in it alone keep it.

    Args:
        paths: all different.
    """
    stems = [path.with_suffix("") for path in paths]
    count = Counter(stems)
    names = [str(path if count[stem] > 1 else stem) for path, stem in zip(paths, stems)]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _sync_folder(folder: str) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind another: torch.save hides a full disk behind an error of its own."""
    while error is not None and not (isinstance(error, OSError) and error.strerror):
        error = error.__context__
    return error


def to_look_at(files: Iterable[str | os.PathLike]) -> str:
    """The files that a command has written, a line each, as its last words."""
    return "\n".join(["To look at:", *(f"  {os.fspath(file)}" for file in files)])
