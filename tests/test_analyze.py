import re

import pytest
import torch
from detectron2.modeling import build_model
from tiny_models import CONFIGS, SMALL, STRUCTURES, small_config, small_model
from torch import nn

from d2_contrast.analyze import main
from d2_contrast.modeling import cost

UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"


def arguments(name, *extra):
    values = [str(item) for pair in (SMALL | STRUCTURES[name]).items() for item in pair]
    return ["--config-file", str(CONFIGS / name), "--size", "50", "90", *values, *extra]


def rows(text):
    """{part: (parameters in millions, multiply-adds in billions)}"""
    pattern = r"^\s*([\w.]+)\s+([\d.]+)\s+([\d.]+)%\s+([\d.]+)\s+([\d.]+)%$"
    return {m[1]: (float(m[2]), float(m[4])) for m in re.finditer(pattern, text, re.M)}


def test_count_by_hand():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1, bias=False))
    counts = cost.count(module, torch.zeros(1, 3, 16, 20))
    assert counts["0"] == (3 * 8 * 9 + 8, 3 * 8 * 9 * 320)
    assert counts["1"] == (40, 40 * 320)
    assert counts[""] == (264, (216 + 40) * 320)


@pytest.mark.parametrize("name", [UPER, "cityscapes/hrnet_w48_contrast_bs12_120k.yaml", "shapes/fpn_r18_contrast.yaml"])
def test_table(name, capsys):
    assert main(arguments(name)) == 0
    text = capsys.readouterr().out
    table = rows(text)
    model = small_model(name)

    def millions(*modules):
        return round(sum(p.numel() for module in modules for p in module.parameters()) / 1e6, 3)

    assert text.startswith("One image of 64 x 96 pixels.")
    assert table["inference"][0] == millions(model.backbone, model.sem_seg_head)
    assert table["training"][0] == millions(model)
    assert table["projectors"][0] == millions(model.contrast)
    assert ("aux_head" in table) == (model.aux_head is not None)
    assert table["inference"][1] == pytest.approx(table["backbone"][1] + table["sem_seg_head"][1], abs=2e-3)
    extra = table["projectors"][1] + table.get("aux_head", (0, 0))[1]
    assert table["training"][1] == pytest.approx(table["inference"][1] + extra, abs=2e-3)
    parameters, operations = table["inference"]
    assert f"inference takes {parameters:.3f} M parameters and {operations:.3f} G multiply-adds" in text
    assert "the branch costs nothing there." in text


@pytest.mark.parametrize(
    "maps",
    [
        {"res2": (64, 4), "res3": (128, 8), "res4": (256, 16), "res5": (512, 32)},
        {"res2+res3": (64 + 128, 4), "res5": (512, 32)},
    ],
)
def test_operations_of_projectors_by_hand(maps):
    """Two layers of each projector are followed by norms, which fvcore counts with one to five operations a value."""
    contrast = {"IN_FEATURES": list(maps), "SCALE_WEIGHTS": [1.0] * len(maps)}
    contrast |= {"CROSS_SCALE_PAIRS": [], "CROSS_SCALE_WEIGHTS": []}
    model = build_model(small_config(UPER, **{f"MODEL__CONTRAST__{key}": value for key, value in contrast.items()}))
    counts = cost.count(cost.Training(model), torch.zeros(1, 3, 64, 96))
    products = norms = 0
    for channels, stride in maps.values():
        positions = 64 * 96 // stride**2
        products += positions * (channels**2 + channels * 8 + 8 * 8)
        norms += positions * (channels + 8)
    assert products + norms <= counts["projectors"][1] <= products + 5 * norms


def test_all_that_a_head_runs_in_training_is_counted():
    """A loss on each map, of which inference computes the first alone. fvcore counts up to five operations a norm."""
    maps = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    head = {"NAME": "DeepSupervisionHead", "IN_FEATURES": list(maps), "CONVS_DIM": 8}
    keys = {f"MODEL__AUX_HEAD__{key}": value for key, value in head.items()}
    model = small_model(UPER, MODEL__CONTRAST__ENABLED=False, **keys)
    counts = cost.count(cost.Training(model), torch.zeros(1, 3, 64, 96))
    positions = sum(64 * 96 // stride**2 for stride in maps.values())
    products, norms = positions * (16 * 16 + 16 * 8 + 8 * 8 + 8 * 5), positions * (16 + 8)
    resizing = 4 * len(maps) * 5 * 64 * 96
    assert products + norms <= counts["aux_head"][1] - resizing <= products + 5 * norms
    assert counts["aux_head"][0] == sum(p.numel() for p in model.aux_head.parameters())
    main_head = cost.count(cost.Inference(model), torch.zeros(1, 3, 64, 96))["sem_seg_head"]
    assert counts["sem_seg_head"] == main_head


def test_detectron2s_own_segmentor(capsys):
    options = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.CONTRAST.ENABLED", "False"]
    name = "shapes/fpn_r18_contrast.yaml"
    assert main(arguments(name, *options)) == 0
    detectron2s = rows(capsys.readouterr().out)
    assert main(arguments(name)) == 0
    ours = rows(capsys.readouterr().out)
    assert detectron2s["training"] == detectron2s["inference"] == ours["inference"]


def test_baseline_has_no_branch(capsys):
    assert main(arguments(UPER, "MODEL.CONTRAST.ENABLED", "False", "MODEL.AUX_HEAD.NAME", "")) == 0
    text = capsys.readouterr().out
    assert rows(text)["training"] == rows(text)["inference"] and "projectors" not in text
    assert "contrastive branch" not in text


def test_a_branch_that_runs_at_inference_would_show(capsys, monkeypatch):
    class Wasteful(cost.Inference):
        def __init__(self, model):
            super().__init__(model)
            self.projectors = model.contrast.projectors if model.contrast is not None else nn.ModuleDict()

        def forward(self, image):
            features = self.backbone(image)
            for name, projector in self.projectors.items():
                projector(features[name])
            return self.sem_seg_head(features)[0]

    monkeypatch.setitem(cost.__dict__, "Inference", Wasteful)
    main(arguments(UPER))
    assert "the branch has a cost there!" in capsys.readouterr().out
