import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/install_detectron2.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_carrier(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def carrier(tmp_path):
    return write_carrier(
        tmp_path / "carrier.whl",
        {
            "LabGym/__init__.py": "raise RuntimeError('not wanted')",
            "LabGym/detectron2/__init__.py": "from .core import answer\n__version__ = '0.6'\n",
            "LabGym/detectron2/core.py": "import LabGym.detectron2.deep.values as values\nanswer = values.ANSWER\n",
            "LabGym/detectron2/deep/__init__.py": "",
            "LabGym/detectron2/deep/values.py": "ANSWER = 42\nLOGGER = 'LabGym.detectron2.deep'\n",
            "LabGym/detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
        },
    )


def test_repackaged_wheel_installs_and_imports(tool, carrier, tmp_path):
    wheel = tool.repackage(carrier, tmp_path)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(pip, check=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import detectron2, importlib.metadata as metadata\n"
        "from detectron2.deep.values import LOGGER\n"
        "print(detectron2.answer, LOGGER, metadata.version('detectron2'), 'LabGym' in sys.modules)"
    )
    # -I: not the Detectron2 of this environment's search path.
    result = subprocess.run([sys.executable, "-I", "-c", code, target], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["42", "detectron2.deep", tool.VERSION, "False"]
    assert (target / "detectron2/model_zoo/configs/Base.yaml").is_file()
    assert not (target / "LabGym").exists()
    info = target / f"detectron2-{tool.VERSION}.dist-info"
    metadata = (info / "METADATA").read_text()
    assert "Facebook" in metadata and tool.CARRIER in metadata and "Requires-Dist: setuptools<81" in metadata
    assert "Apache License" in (info / "LICENSE").read_text()


def test_repackaging_is_reproducible(tool, carrier, tmp_path):
    first = tool.repackage(carrier, tmp_path).read_bytes()
    assert tool.repackage(carrier, tmp_path).read_bytes() == first


def test_other_wheels_are_refused(tool, tmp_path):
    with pytest.raises(tool.InstallError, match="holds no LabGym/detectron2/"):
        tool.repackage(write_carrier(tmp_path / "a.whl", {"other/__init__.py": ""}), tmp_path)
    files = {"LabGym/detectron2/__init__.py": "import LabGym.gui\n"}
    with pytest.raises(tool.InstallError, match="still refers to LabGym"):
        tool.repackage(write_carrier(tmp_path / "b.whl", files), tmp_path)


def test_hash_is_verified(tool, carrier):
    tool.verify_sha256(carrier, hashlib.sha256(carrier.read_bytes()).hexdigest())
    with pytest.raises(tool.InstallError, match="carrier.whl has sha256 .* expected a2900cff"):
        tool.verify_sha256(carrier, tool.CARRIER_SHA256)


def test_existing_detectron2_is_left_alone():
    import detectron2

    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0
    assert f"Detectron2 {detectron2.__version__} at {detectron2.__path__[0]}" in result.stdout
    assert "nothing to do" in result.stdout


def test_failure_ends_with_one_sentence(tool, monkeypatch, capsys):
    def fail():
        raise tool.InstallError("no disk: free some.")

    monkeypatch.setattr(tool, "find_detectron2", lambda: None)
    monkeypatch.setattr(tool, "install_from_pypi", fail)
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    assert tool.main() == 1
    assert capsys.readouterr().err == "install_detectron2: no disk: free some.\n"


def test_pip_failure_is_one_sentence_with_advice(tool):
    with pytest.raises(tool.InstallError) as raised:
        tool.run_pip("download", "--no-index", "no-such-package-of-ours", advice="look there.")
    message = str(raised.value)
    assert message.endswith("look there.") and "no-such-package-of-ours" in message and "\n" not in message


@pytest.fixture
def old_detectron2(tmp_path):
    """A Detectron2 as it was released in 2021, as far as is looked at."""
    package = tmp_path / "old" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.6'\n")
    (package / "modeling.py").write_text("class Backbone: pass\n")
    (package / "solver.py").write_text("def get_default_optimizer_params(model, base_lr=None): ...\n")
    return package


def test_an_old_detectron2_is_refused(old_detectron2):
    """By what it lacks: it has the same number as a new one."""
    environment = {"PYTHONPATH": f"{old_detectron2.parent}:{SCRIPT.parents[1]}", "PATH": ""}
    install = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    code = [sys.executable, "-c", "import d2_contrast.config"]
    first_import = subprocess.run(code, capture_output=True, text=True, env=environment)
    for result, start in ((install, "install_detectron2: "), (first_import, "ImportError: ")):
        *_, line = result.stderr.strip().splitlines()
        assert result.returncode == 1 and line.startswith(f"{start}The Detectron2 in {old_detectron2} is too old: ")
        for part in ("no SwinTransformer", "padding_constraints", "lr_factor_func", "pip uninstall detectron2"):
            assert part in line
