"""The pictures that docs/figures draws are those of the documentation."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
MODULES = sorted((DOCS / "figures").glob("[!_]*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_figure_is_current(module, tmp_path):
    picture = tmp_path / "drawn.png"
    runpy.run_path(str(module))["draw"]().savefig(picture, dpi=80)
    drawn, kept = (Image.open(path).convert("RGB") for path in (picture, DOCS / f"{module.stem}.png"))
    assert drawn.size == kept.size
    # Other versions of Matplotlib smooth edges otherwise.
    difference = np.abs(np.asarray(drawn, dtype=float) - np.asarray(kept, dtype=float))
    assert (difference > 64).mean() < 0.01
    assert f"({module.stem}.png)" in (DOCS / "method.md").read_text()


def test_figures_are_found():
    assert len(MODULES) >= 2
