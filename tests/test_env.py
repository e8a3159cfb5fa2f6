import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import d2_contrast
from d2_contrast.env import describe_environment


def test_tells_what_is_there(pytestconfig, monkeypatch, tmp_path):
    (tmp_path / "ADEChallengeData2016").mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    lines = dict(describe_environment())
    assert lines["d2_contrast"] == f"{d2_contrast.__version__} in {pytestconfig.rootpath / 'd2_contrast'}"
    assert lines["python"].startswith(platform.python_version())
    for name, package in (("torch", "torch"), ("timm", "timm"), ("numpy", "numpy"), ("torchvision", "torchvision")):
        assert lines[name].split(" in ")[0].partition("+")[0] == metadata.version(package).partition("+")[0]
    assert f"scipy {metadata.version('scipy')}" in lines["other packages"]
    assert lines["DETECTRON2_DATASETS"] == f"{tmp_path} (holds ADEChallengeData2016)"


def test_commit_of_a_clone(pytestconfig):
    command = ["git", "-C", pytestconfig.rootpath, "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    commit = dict(describe_environment())["commit"]
    if result.returncode == 0:
        assert result.stdout.startswith(re.sub("-dirty$", "", commit)) and len(commit) >= 12
    else:
        assert commit == "not a clone"


def test_a_package_that_is_missing_or_broken_does_not_hide_the_rest(tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    lines = dict(describe_environment())
    assert lines["cv2"] == "does not import: libGL.so.1: cannot open shared object file"
    assert lines["timm"] == "not installed"
    assert lines["DETECTRON2_DATASETS"].endswith("nowhere (no such folder)")
    assert lines["torch"].startswith(metadata.version("torch").partition("+")[0])


def test_processor_flags():
    lines = dict(describe_environment())
    text = Path("/proc/cpuinfo").read_text()
    for flag in ("avx2", "avx512_bf16", "amx_bf16"):
        assert (flag in lines["processor flags"].split()) == bool(re.search(rf"\b{flag}\b", text))
    assert lines["processor"] in text or lines["processor"] == platform.machine()
