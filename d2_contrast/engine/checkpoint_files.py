"""Reading files of weights: recognised by their first bytes, checked for damage, no code run without leave."""

import os
import pickle
import re
import zipfile

import torch

ZIP = b"PK\x03\x04"
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

HEAD = 16  # bytes at the start of a file that tell its format


class DamagedFileError(ValueError):
    """A file is empty, cut off or altered."""


def file_kind(filename: str) -> str:
    """Recognise a file by its first bytes: "safetensors", "torch" or "other" (a pickle, if anything)."""
    with open(filename, "rb") as file:
        head = file.read(HEAD)
    if head.startswith((ZIP, LEGACY_TORCH)):
        return "torch"
    # Eight bytes with the length of the header, which is JSON.
    return "safetensors" if head[8:9] == b"{" else "other"


def check_intact(filename: str) -> None:
    """Read a whole file and compare it with the checksums in it, where its format has any.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is empty, cut off or altered.
    """
    if not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename}: no such file of weights")
    size = os.path.getsize(filename)
    if size < HEAD:
        raise DamagedFileError(f"{filename} is damaged: it has {size} bytes")
    with open(filename, "rb") as file:
        begins = file.read(HEAD).startswith(ZIP)
    if not begins and not zipfile.is_zipfile(filename):  # which looks at the end
        return
    try:
        if not begins:
            raise zipfile.BadZipFile("bad magic number at its start")
        with zipfile.ZipFile(filename) as archive:
            altered = archive.testzip()
    except Exception as error:  # a broken directory of contents fails in many ways
        raise DamagedFileError(f"{filename} is damaged: it was cut off or altered ({error})") from error
    if altered:
        raise DamagedFileError(f"{filename} is damaged: its part {altered} does not match its checksum")


def read_torch(filename: str, *, allow_pickle: bool = False) -> object:
    """Read a file of torch.save.

    Args:
        filename: the file.
        allow_pickle: also read what can run code when it is read.

    Raises:
        FileNotFoundError, DamagedFileError: as :func:`check_intact`, or it cannot be read for another reason.
        ValueError: it holds more than tensors and plain values.
    """
    check_intact(filename)
    try:
        with open(filename, "rb") as file:  # from a name, torch guesses the format by its ending
            return torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # torch reports broken files of its older format through many exceptions
        foreign = re.search(r"Unsupported \w+:? (?:GLOBAL )?(\S+)", str(error))
        if not (isinstance(error, pickle.UnpicklingError) and foreign):
            raise DamagedFileError(
                f"{filename} is damaged: it cannot be read ({type(error).__name__}: {error})"
            ) from error
        raise ValueError(
            f"{filename} holds more than tensors ({foreign[1]}). If you trust its source, set "
            "MODEL.WEIGHTS_ALLOW_PICKLE True"
        ) from error
