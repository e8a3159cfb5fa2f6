import io
import os
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from d2_contrast.config import load_config
from d2_contrast.data import read_image
from d2_contrast.engine.resume import config_changes
from d2_contrast.errors import DEBUG, PEER_ENDED, explain, in_plain_words


def catch(function, *args) -> Exception:
    with pytest.raises(Exception) as raised:
        function(*args)
    return raised.value


class Images:
    """A dataset whose files are missing, or whose code is wrong."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return read_image(self.path) if self.path else {}["key"]


def test_what_speaks_to_users(tmp_path):
    sentences = {
        explain(catch(load_config, "", ["LAMBDA", "1"])): "command line: Non-existent key: LAMBDA",
        explain(catch(read_image, f"{tmp_path}/a.png")): f"{tmp_path}/a.png: no such image",
        explain(catch(open, f"{tmp_path}/b.txt")): f"{tmp_path}/b.txt: No such file or directory",
        explain(catch(lambda: load_config("").merge_from_list(["SEED", "x"]))): "Type mismatch (<class 'int'> vs. ",
    }
    for sentence, expected in sentences.items():
        assert sentence.startswith(expected) and "\n" not in sentence


def test_control_characters_in_names_are_shown_not_obeyed(tmp_path):
    path, seen = f"{tmp_path}/a\nb\x1b[2J\u2028.png", rf"{tmp_path}/a\nb\x1b[2J\u2028.png"
    assert explain(catch(read_image, path)) == f"{seen}: no such image"
    assert explain(catch(open, path)) == f"{seen}: No such file or directory"
    assert explain(catch(lambda: next(iter(DataLoader(Images(path), num_workers=1))))) == f"{seen}: no such image"


def test_what_is_a_bug():
    """Also where it is of a type that speaks to users elsewhere."""

    def of_the_test():
        raise ValueError("not of the package")

    for function, args in ((of_the_test, ()), (config_changes, ("{}", None)), (int, ("x",)), (lambda: {}["key"], ())):
        assert explain(catch(function, *args)) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_exceptions_of_workers(workers, tmp_path):
    for path, expected in ((f"{tmp_path}/a.png", f"{tmp_path}/a.png: no such image"), ("", None)):
        assert explain(catch(lambda p: next(iter(DataLoader(Images(p), num_workers=workers))), path)) == expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "of the main memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to\nallocate 9"),
            "to allocate",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "CUDA out of memory. Tried"),
    ],
)
def test_a_lack_of_memory(error, reason):
    sentence = explain(error)
    assert sentence.startswith("There is not enough memory: make SOLVER.IMS_PER_BATCH, ")
    assert reason in sentence and "\n" not in sentence
    assert explain(ValueError("out of memory")) is None


def test_a_lost_process():
    text = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4567"
    assert explain(RuntimeError(text)) == PEER_ENDED
    assert explain(RuntimeError("connection closed by peer")) is None


def test_the_process_ends_with_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_net.py"])
    with pytest.raises(SystemExit) as ended, in_plain_words():
        load_config("", ["SEED"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "train_net.py: error: SEED has no value: expected keys and values in turn\n"
    with pytest.raises(KeyError), in_plain_words():
        {}["key"]
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(ValueError, match="SEED has no value"), in_plain_words():
        load_config("", ["SEED"])
    with pytest.raises(SystemExit) as ended, in_plain_words():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_what_stdout_cannot_encode_is_written_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", "strict"))
    with in_plain_words():
        print("gr\udcfcn.jpg: grün")  # bytes of a name that are not UTF-8
    assert sys.stdout.buffer.getvalue().decode() == "gr\\udcfcn.jpg: grün\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_what_is_written(unbuffered):
    """The process fails when it writes, or where it buffers, when it ends."""
    command = [sys.executable, "-m", "d2_contrast.cli", "completion", "bash"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert result.stderr.startswith(b"cli.py: error: stdout: No space left on device\n")
