import textwrap
from pathlib import Path

import pytest

from d2_contrast.ablation import Store

CONFIG = Path(__file__).parents[2] / "configs/shapes/uper_r18.yaml"


@pytest.fixture
def write_spec(tmp_path):
    """Write a spec and return its path; {config} is a config of the embedded dataset."""

    def write(text: str, name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).replace("{config}", str(CONFIG)))
        return path

    return write


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "output", tmp_path / "results")
