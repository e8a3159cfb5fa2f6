import textwrap
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs/shapes/uper_r18.yaml"


@pytest.fixture
def write_spec(tmp_path):
    """Write a spec and return its path; {config} is a config of the embedded dataset."""

    def write(text: str, name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).replace("{config}", str(CONFIG)))
        return path

    return write
