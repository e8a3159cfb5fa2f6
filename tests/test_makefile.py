import os
import subprocess

import pytest


@pytest.mark.parametrize(
    ("variables", "index"),
    [([], ""), (["TORCH=cpu"], "--index-url https://download.pytorch.org/whl/cpu ")],
    ids=["default", "cpu"],
)
def test_torch_comes_from_the_index_that_is_asked_for(pytestconfig, variables, index):
    # -n: print the commands; -W: as if the description of the environment had changed.
    command = ["make", "-n", "-W", "pyproject.toml", "install", *variables]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "TORCH"))}
    result = subprocess.run(
        command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, check=True
    )
    installs = [line.split("-m pip install --quiet ")[1] for line in result.stdout.splitlines() if "-m pip" in line]
    assert installs[1].split() == [*index.split(), "torch==2.14.1", "torchvision==0.29.1"]
    # Nothing else comes from there.
    assert len(installs) == 3 and "index-url" not in installs[0] + installs[2]
