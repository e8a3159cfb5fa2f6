"""The reference of config keys."""

import runpy
from pathlib import Path

import pytest

from d2_contrast.config import default_config, flatten

reference = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "config_reference.py"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "page.md"
    reference["write_reference"](path)
    return path.read_text()


def test_every_key_of_this_project_has_its_default(page):
    from detectron2.config import get_cfg
    from detectron2.projects.deeplab import add_deeplab_config

    theirs = get_cfg()
    add_deeplab_config(theirs)
    theirs, ours = flatten(theirs), flatten(default_config())
    added = [key for key in ours if key not in theirs]
    assert len(added) > 50
    for key in added:
        assert f"**`{key}`**: `{ours[key]!r}`" in page


def test_meaning_of_a_key(page):
    assert "**`MODEL.OCR.KEY_CHANNELS`**: `256`\n: Width in which pixels and object regions are compared.\n" in page
