import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from d2_contrast.output import distinct_names, write_whole


@contextmanager
def file_size_limit(size: int):
    """Let no file of this process grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_zeros(path, count: int = 100_000) -> None:
    with write_whole(path) as file:
        torch.save({"model": torch.zeros(count)}, file)


def test_a_file_is_there_when_it_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    with write_whole(path, "w") as file:
        file.write("first")
        assert not path.exists()
    with write_whole(path, "w") as file:
        file.write("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    with pytest.raises(RuntimeError, match="in between"), write_whole(path, "w") as file:
        file.write("third")
        raise RuntimeError("in between")
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["file.txt"]


def test_several_processes_write_one_file(tmp_path):
    path = tmp_path / "file.txt"
    with write_whole(path, "w") as file:
        file.write("ours, ä")
        other = f"from d2_contrast.output import write_text; write_text({str(path)!r}, 'theirs')"
        subprocess.run([sys.executable, "-c", other], check=True)
        assert path.read_text() == "theirs"
    assert path.read_text("utf-8") == "ours, ä" and os.listdir(tmp_path) == ["file.txt"]


def test_a_limit_leaves_what_was_there(tmp_path):
    path = tmp_path / "model.pth"
    path.write_text("before")
    with (
        file_size_limit(50_000),
        pytest.raises(OSError, match=r"model\.pth: cannot write .* \(File too large\)"),
    ):
        write_zeros(path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["model.pth"]


FULL = """
mount -t tmpfs -o size=256k tmpfs "$1" || exit 77
echo before > "$1/model.pth"
"$2" -c 'import sys, test_output; test_output.write_zeros(sys.argv[1] + "/model.pth")' "$1"
cat "$1/model.pth"; ls "$1"
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a mount namespace to make a small disk")
def test_a_full_disk(tmp_path, pytestconfig):
    environment = {**os.environ, "PYTHONPATH": f"{pytestconfig.rootpath}:{pytestconfig.rootpath / 'tests'}"}
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL, "sh", str(tmp_path), sys.executable]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("no mount namespace here")
    assert result.stderr.strip().endswith(
        f"OSError: {tmp_path}/model.pth: cannot write this file (No space left on device)"
    )
    assert result.stdout.split() == ["before", "model.pth"]


def test_kills_leave_whole_files(tmp_path):
    """A process that writes one file after the other is killed at any moment."""
    path = tmp_path / "model.pth"
    write_zeros(path)
    complete, random_moment = path.stat().st_size, random.Random(0)
    for _ in range(20):
        child = os.fork()
        if not child:
            while True:
                write_zeros(path)
        time.sleep(random_moment.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.stat().st_size == complete
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a.png", "a.jpg.bmp"], ["a.jpg", "a.png", "a.jpg.bmp"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        (["a.0.png", "a.1.png", "a"], ["a.0", "a.1", "a"]),
        ([], []),
    ],
)
def test_names_of_results_differ(paths, names):
    assert distinct_names(list(map(Path, paths))) == names
