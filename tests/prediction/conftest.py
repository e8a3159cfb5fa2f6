import pytest
from known_colors import CLASSES, NearestColor, color_config

from d2_contrast.engine.stripped import save_stripped
from d2_contrast.prediction import Segmentor


@pytest.fixture
def make_segmentor():
    """Make a Segmentor of known predictions, with config keys that have "__" for "."."""

    def make(batch=4, **options):
        cfg = color_config(**options)
        return Segmentor(NearestColor(cfg), cfg, CLASSES, batch)

    return make


@pytest.fixture
def segment(make_segmentor):
    return make_segmentor()


@pytest.fixture(scope="session")
def color_weights(tmp_path_factory):
    """A file of weights of known predictions."""
    path = str(tmp_path_factory.mktemp("weights") / "colors.safetensors")
    cfg = color_config()
    save_stripped(path, NearestColor(cfg), cfg, CLASSES, iteration=5)
    return path
