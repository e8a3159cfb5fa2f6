"""Virtual environments that hold packages of the running one by links, so that nothing is downloaded."""

import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def required_by(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions here that requirements ask for, directly or by way of others; without extras."""
    names, queue = set(), [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        name = requirement.name.lower().replace("_", "-")
        if name not in names and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            names.add(name)
            queue += map(Requirement, metadata.requires(name) or ())
    return names


def top_level(distribution: metadata.Distribution) -> set[str]:
    """What a distribution has put into site-packages, files and folders."""
    # Not distribution.files, which looks for each of a hundred thousand files on the disk.
    record = distribution.read_text("RECORD").splitlines()
    return {line.split(",")[0].split("/")[0] for line in record} - {"..", "__pycache__"}


def make_environment(folder: Path, wheel: Path, packages: Iterable[str] = (), own_requirements: bool = False) -> Path:
    """Make an environment with a wheel in it and return its interpreter.

    Args:
        folder: where; it must not exist.
        wheel: is installed by pip.
        packages: distributions of this environment to link, with all that they require.
        own_requirements: link what the wheel requires, too, without its extras.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True)
    wanted = list(packages)
    if own_requirements:
        (installed,) = metadata.distributions(path=[str(site)])
        wanted += [text for text in installed.requires or () if "extra ==" not in text]
    for name in required_by(wanted):
        distribution = metadata.distribution(name)
        for entry in top_level(distribution):
            link = site / entry
            if not link.exists():  # several packages share a folder such as nvidia
                link.symlink_to(distribution.locate_file(entry))
    return folder / "bin" / "python"
