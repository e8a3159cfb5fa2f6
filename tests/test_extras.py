import logging
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from scipy.io import savemat
from tiny_models import small_model

from d2_contrast.config import default_config
from d2_contrast.data.albumentations_pipeline import AlbumentationsPipeline
from d2_contrast.data.files import read_raw_label
from d2_contrast.engine.export import export_network
from d2_contrast.engine.pictures import PictureHook
from d2_contrast.evaluation import CityscapesEvaluator, ConfusionEvaluator, build_evaluator
from d2_contrast.extras import MissingExtraError, import_extra
from d2_contrast.modeling.backbone import SMPBackbone


class Uninstalled:
    """An import finder for which a package does not exist."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def uninstall(monkeypatch):
    """Make a package look as if it were not installed; ``users``, modules that import it, are imported anew."""

    def remove(package, users=()):
        for name in list(sys.modules):
            if name.partition(".")[0] == package:
                monkeypatch.delitem(sys.modules, name)
        for name in sorted(users, reverse=True):  # a package after its modules
            parent, _, child = name.rpartition(".")
            monkeypatch.delattr(sys.modules[parent], child, raising=False)
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Uninstalled(package), *sys.meta_path])

    return remove


def test_an_installed_package_is_imported():
    assert import_extra("json.decoder", "any") is sys.modules["json.decoder"]


def test_the_error_names_the_extra(uninstall):
    uninstall("scipy")
    with pytest.raises(MissingExtraError, match=r'scipy is not installed: run `pip install "d2_contrast\[matlab\]"`'):
        import_extra("scipy.io", "matlab")


def test_other_errors_of_an_import_pass_through(tmp_path, monkeypatch):
    """A package that is there but lacks another one is not called missing."""
    (tmp_path / "half_there.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all") as raised:
        import_extra("half_there", "any")
    assert not isinstance(raised.value, MissingExtraError)


def test_matlab_files_need_an_extra(tmp_path, uninstall):
    path = str(tmp_path / "label.mat")
    savemat(path, {"LabelMap": np.ones((2, 3), np.uint16)})
    assert read_raw_label(path).shape == (2, 3)
    uninstall("scipy")
    with pytest.raises(MissingExtraError, match=r"d2_contrast\[matlab\]"):
        read_raw_label(path)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "scipy", "sklearn"])
@pytest.mark.parametrize("user", ["ablation", "analysis", "evaluation.features", "visualize"])
def test_pictures_and_measures_need_an_extra(uninstall, package, user):
    names = ("d2_contrast._visualize", f"d2_contrast.{user}")
    uninstall(package, users=[name for name in sys.modules if name.startswith(names)])
    with pytest.raises(MissingExtraError, match=rf"^{package} .*d2_contrast\[visualize\]"):
        import_module(f"d2_contrast.{user}")


def test_training_goes_on_without_pictures(uninstall, caplog):
    names = ("d2_contrast._visualize", "d2_contrast.visualize")
    uninstall("sklearn", users=[name for name in sys.modules if name.startswith(names)])
    cfg = default_config()
    cfg.VIS_PERIOD = 1
    logging.getLogger("d2_contrast").propagate = True
    with caplog.at_level(logging.WARNING):
        hook = PictureHook(cfg)
    assert "No pictures are drawn: sklearn is not installed" in caplog.text
    hook.trainer = SimpleNamespace(iter=0)  # of which a picture would ask for more
    hook.after_step()


def test_albumentations_needs_an_extra(uninstall):
    uninstall("albumentations")
    with pytest.raises(MissingExtraError, match=r"^albumentations .*d2_contrast\[albumentations\]"):
        AlbumentationsPipeline("any.yaml")


def test_smp_needs_an_extra(uninstall):
    uninstall("segmentation_models_pytorch")
    with pytest.raises(MissingExtraError, match=r"^segmentation_models_pytorch .*d2_contrast\[smp\]"):
        SMPBackbone()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_onnx_needs_an_extra(uninstall, package, tmp_path):
    uninstall(package)
    model = small_model("cityscapes/deeplabv3_r101_contrast_bs12_120k.yaml").eval()
    with pytest.raises(MissingExtraError, match=rf"^{package} .*d2_contrast\[export\]"):
        export_network(None, model, tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_cityscapes_is_evaluated_by_iou_without_its_extra(tmp_path, uninstall, caplog):
    name = "streets_without_scripts"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.png", "sem_seg_file_name": "a_label.png"}])
    MetadataCatalog.get(name).set(stuff_classes=["road", "sky"], ignore_label=255, evaluator_type="cityscapes_sem_seg")
    try:
        uninstall("cityscapesscripts")
        with pytest.raises(MissingExtraError, match=r"d2_contrast\[cityscapes\]"):
            CityscapesEvaluator(name)
        logging.getLogger("d2_contrast").propagate = True
        with caplog.at_level(logging.WARNING):
            evaluator = build_evaluator(None, name, str(tmp_path))
        assert type(evaluator) is ConfusionEvaluator
        assert "d2_contrast[cityscapes]" in caplog.text and name in caplog.text
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
