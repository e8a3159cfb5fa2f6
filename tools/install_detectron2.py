"""Install Detectron2, which has no package of its own on PyPI.

    python tools/install_detectron2.py                    # same as --from pypi
    python tools/install_detectron2.py --from pypi        # no compiler, no GitHub needed
    python tools/install_detectron2.py --from git [REF]   # upstream's sources, compiled here

If a Detectron2 that has what this project needs can be imported already, nothing is done. ``--from pypi`` takes the
complete, pure-Python Detectron2 0.6 (Apache-2.0) that the wheel ``labgym`` on PyPI carries as ``LabGym/detectron2``,
undoes the renaming of its imports and installs the result as a regular ``detectron2`` wheel. Nothing else of that wheel
is used. The copy has no compiled operators (deformable convolution, rotated boxes); semantic segmentation does not need
them.
"""

import argparse
import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CARRIER = "labgym==3.1.2"
CARRIER_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
CARRIED_FOLDER = "LabGym/detectron2/"
VERSION = "0.6+purepython"
UPSTREAM = "https://github.com/facebookresearch/detectron2"
CLONE = Path(__file__).resolve().parents[1]
LICENSE = CLONE / "LICENSE"

# Upstream's own requirements. Its model_zoo imports pkg_resources, which setuptools 81 removed.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<=0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
    "setuptools<81",
)

METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: {VERSION}
Summary: Detectron2 0.6 without its compiled operators
Home-page: {UPSTREAM}
Author: FAIR
License: Apache-2.0
License-File: LICENSE
License-File: NOTICE
Requires-Python: >=3.7
{chr(10).join(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS)}

Copyright (c) Facebook, Inc. and its affiliates. Licensed under the Apache License 2.0.

Repackaged by d2_contrast (tools/install_detectron2.py) from the folder `{CARRIED_FOLDER}` of the PyPI wheel {CARRIER}
(sha256 {CARRIER_SHA256}). The only change: imports of `LabGym.detectron2` read `detectron2` again, as in {UPSTREAM}.
"""

NOTICE = f"""\
Detectron2, {UPSTREAM}
Copyright (c) Facebook, Inc. and its affiliates. Licensed under the Apache License, Version 2.0 (see LICENSE).
detectron2/modeling/backbone/swin.py: Copyright (c) 2021 Microsoft, MIT License, by Ze Liu, Yutong Lin and Yixuan Wei.
"""


class InstallError(Exception):
    """The installation cannot go on; the message says what is wrong and what to do."""


def find_detectron2() -> str | None:
    """Return "version at folder" of the Detectron2 that this interpreter imports, None if it has none.

    Raises:
        InstallError: Detectron2 or torch is there but cannot be imported, or lacks what this project needs.
    """
    # A subprocess, since a module that failed to import leaves traces in the one that tried.
    code = (
        "import sys, detectron2; sys.path.append(sys.argv[1]); import d2_contrast._detectron2; "
        "print(detectron2.__version__, 'at', detectron2.__path__[0])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(CLONE)], capture_output=True, text=True)
    if result.returncode == 0:
        return result.stdout.strip()
    reason = result.stderr.strip().splitlines()[-1]
    if reason == "ModuleNotFoundError: No module named 'detectron2'":
        return None
    if "is too old" in reason:
        raise InstallError(reason.removeprefix("ImportError: "))
    raise InstallError(f"Detectron2 of {sys.executable} does not import ({reason}): repair or uninstall it first.")


def verify_sha256(path: Path, expected: str) -> None:
    """Raise :class:`InstallError` unless the file at ``path`` has the SHA-256 digest ``expected``."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise InstallError(f"{path.name} has sha256 {digest}, expected {expected}: do not use it, download it again.")


def repackage(carrier: Path, folder: Path) -> Path:
    """Write the Detectron2 that the wheel ``carrier`` holds into ``folder`` as a wheel of its own.

    Returns:
        Path of the new wheel. Equal input gives an equal file.

    Raises:
        InstallError: ``carrier`` holds no Detectron2, or a reference to the carrying package survives the renaming.
    """
    with zipfile.ZipFile(carrier) as archive:
        files = {
            name.removeprefix("LabGym/"): archive.read(name)
            for name in sorted(archive.namelist())
            if name.startswith(CARRIED_FOLDER) and not name.endswith("/")
        }
    if "detectron2/__init__.py" not in files:
        raise InstallError(f"{carrier.name} holds no {CARRIED_FOLDER}: expected the wheel of {CARRIER}.")
    for name, content in files.items():
        if name.endswith(".py"):
            files[name] = content = content.replace(b"LabGym.detectron2", b"detectron2")
            if b"LabGym" in content:
                raise InstallError(f"{name} still refers to LabGym after renaming: expected the wheel of {CARRIER}.")

    info = f"detectron2-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = METADATA.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: d2_contrast\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/LICENSE"] = LICENSE.read_bytes()
    files[f"{info}/NOTICE"] = NOTICE.encode()
    record = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}\n")
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()

    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return wheel


def run_pip(*args: str, advice: str) -> None:
    """Run pip of this interpreter; raise :class:`InstallError` with its last complaint and ``advice`` if it fails."""
    result = subprocess.run([sys.executable, "-m", "pip", *args], capture_output=True, text=True)
    if result.returncode != 0:
        errors = [line for line in result.stderr.strip().splitlines() if line.strip()]
        reason = next((line for line in errors if line.startswith("ERROR")), errors[-1] if errors else "no message")
        raise InstallError(f"`pip {' '.join(args)}` failed ({reason}): {advice}")


def install_from_pypi() -> None:
    """Download the carrying wheel, verify it, repackage its Detectron2 and install that."""
    with tempfile.TemporaryDirectory() as folder:
        # Its metadata asks for Python < 3.11, which holds for the carrying program, not for Detectron2.
        options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10", "--dest", folder]
        run_pip("download", "--quiet", *options, CARRIER, advice="check the connection to PyPI, or use --from git.")
        carrier = next(Path(folder).glob("*.whl"))
        verify_sha256(carrier, CARRIER_SHA256)
        wheel = repackage(carrier, Path(folder))
        run_pip("install", "--quiet", str(wheel), advice="check the connection to PyPI and the disk space.")


def install_from_git(ref: str) -> None:
    """Compile and install upstream's ``ref`` as upstream's instructions say."""
    target = f"git+{UPSTREAM}.git@{ref}"
    advice = "this needs torch, git, GitHub, gcc and g++ (with CUDA: a matching nvcc); --from pypi needs none of them."
    # Its build imports torch, hence no isolation.
    run_pip("install", "--no-build-isolation", target, advice=advice)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", choices=["pypi", "git"], default="pypi", help="default: pypi")
    parser.add_argument("ref", nargs="?", metavar="REF", help="branch, tag or commit for --from git; default: main")
    args = parser.parse_args()
    if args.ref and args.source != "git":
        parser.error(f"REF {args.ref!r} goes with --from git only")
    try:
        found = find_detectron2()
        if found is None:
            if args.source == "git":
                install_from_git(args.ref or "main")
            else:
                install_from_pypi()
            found = find_detectron2()
            if found is None:
                raise InstallError("pip succeeded but Detectron2 is still not importable: check `pip show detectron2`.")
            print(f"Installed Detectron2 {found}")
        else:
            print(f"Detectron2 {found} is importable already: nothing to do")
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
