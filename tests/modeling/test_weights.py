import logging
import pickle

import cv2
import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SwinTransformer, build_resnet_backbone
from safetensors.torch import save_file
from tiny_models import make_batch, small_model
from torch import nn

from d2_contrast.modeling.backbone import HRNet, Swin, TimmBackbone, UPerFPN
from d2_contrast.modeling.weights import ContrastCheckpointer, file_kind, load_backbone, load_pretrained

SWIN = dict(embed_dim=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4])
UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"


def randomise(model: nn.Module) -> nn.Module:
    """Fill all weights and statistics with what is neither 0 nor 1, so that a tensor left out shows."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            scale = 0.5 if tensor.ndim < 2 or "bias_table" in name else (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.abs_().add_(0.5)
    return model.eval()


def timm_swin(window=7, **options):
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        window_size=window,
        always_partition=True,
        strict_img_size=False,
        **SWIN,
        **options,
    )


def detectron2_resnet(depth=18) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth == 18:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def torchvision_maps(model: nn.Module, image):
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        maps.append(x := layer(x))
    return maps


def official_swin_state(model: SwinTransformer) -> dict:
    """A checkpoint for classification as the authors publish it: no norms of the outputs, but a head and buffers."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("norm")}
    state |= {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64), "head.weight": torch.ones(10, 64)}
    return state | {"head.bias": torch.ones(10), "layers.0.blocks.1.attn_mask": torch.ones(4, 49, 49)}


def plain_norms(swin: nn.Module) -> nn.Module:
    """Take out the norms of the outputs, which other implementations do not have."""
    for i in range(4):
        setattr(swin, f"norm{i}", nn.Identity())
    return swin


def assert_equal_maps(ours, theirs):
    assert len(ours) == len(theirs) == 4
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    "make", [lambda d: TimmBackbone(name=f"resnet{d}"), detectron2_resnet], ids=["timm", "detectron2"]
)
def test_torchvision_resnet(make, depth):
    theirs = randomise(getattr(torchvision.models, f"resnet{depth}")())
    ours = make(f"{depth}" if make is not detectron2_resnet else depth).eval()
    load_backbone(ours, theirs.state_dict(), "file")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal_maps(list(ours(image).values()), torchvision_maps(theirs, image))


def test_detectron2_resnet():
    theirs = randomise(detectron2_resnet())
    ours = TimmBackbone(name="resnet18").eval()
    load_backbone(ours, theirs.state_dict(), "file")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal_maps(list(ours(image).values()), list(theirs(image).values()))


def test_timm_resnet_into_detectron2s():
    theirs = randomise(TimmBackbone(name="resnet18"))
    ours = detectron2_resnet().eval()
    load_backbone(ours, timm_state := theirs.body.state_dict(), "file")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal_maps(list(ours(image).values()), list(theirs(image).values()))
    assert "layer1.0.conv1.weight" in timm_state


@pytest.mark.parametrize("wrapper", ["", "model.", "module.", "backbone."])
def test_hrnet(wrapper):
    """timm's classification network has the names of the authors' checkpoints."""
    theirs = randomise(timm.create_model("hrnet_w18_small"))
    ours = HRNet(name="hrnet_w18_small").eval()
    load_backbone(ours, {wrapper + k: v for k, v in theirs.state_dict().items()}, "file")
    for module in theirs.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.act1(theirs.bn1(theirs.conv1(image)))
        maps = theirs.stages(theirs.act2(theirs.bn2(theirs.conv2(x))))
        assert_equal_maps(list(ours(image).values()), maps)


def test_timm_swin():
    """At a size that is a multiple of the window everywhere, where timm pads like the authors."""
    theirs = randomise(timm_swin())
    ours = Swin(**SWIN).eval()
    load_backbone(ours, theirs.state_dict(), "file")
    features = timm_swin(features_only=True).eval()
    load_backbone(features, theirs.state_dict(), "file")
    image = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        maps = [x.permute(0, 3, 1, 2) for x in features(image)]
        assert_equal_maps(list(plain_norms(ours)(image).values()), maps)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_official_swin(kind):
    theirs = randomise(SwinTransformer(**SWIN))
    if kind == "classification":
        state = official_swin_state(theirs)
    else:
        state = {f"backbone.{k}": v for k, v in theirs.state_dict().items()} | {
            "decode_head.conv.weight": torch.ones(2)
        }
    ours = Swin(**SWIN).eval()
    load_backbone(ours, state, "file")
    if kind == "classification":
        plain_norms(ours), plain_norms(theirs)
    image = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        assert_equal_maps(list(ours(image).values()), list(theirs(image).values()))


def test_official_swin_into_timms():
    theirs = randomise(SwinTransformer(**SWIN))
    ours = timm_swin(features_only=True).eval()
    load_backbone(ours, official_swin_state(theirs), "file")
    image = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        maps = [x.permute(0, 3, 1, 2) for x in ours(image)]
        assert_equal_maps(maps, list(plain_norms(theirs)(image).values()))


def test_convnext():
    theirs = randomise(timm.create_model("convnext_atto"))
    ours = TimmBackbone(name="convnext_atto").eval()
    load_backbone(ours, theirs.state_dict(), "file")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal_maps(list(ours(image).values()), theirs.forward_intermediates(image, intermediates_only=True))


def test_tables_of_another_window():
    """Bicubic, as the authors resize them; against OpenCV."""
    theirs = randomise(Swin(**SWIN, window_size=12))
    ours = Swin(**SWIN, window_size=7)
    load_backbone(ours, theirs.state_dict(), "file")
    for stage, block in ((0, 0), (2, 1)):
        ours_table, table = (
            model.layers[stage].blocks[block].attn.relative_position_bias_table.detach().numpy()
            for model in (ours, theirs)
        )
        for head in range(table.shape[1]):
            expected = cv2.resize(table[:, head].reshape(23, 23), (13, 13), interpolation=cv2.INTER_CUBIC)
            np.testing.assert_allclose(ours_table[:, head].reshape(13, 13), expected, rtol=1e-4, atol=1e-5)
    same = ours.layers[2].blocks[0].mlp.fc1.weight
    assert torch.equal(same, theirs.layers[2].blocks[0].mlp.fc1.weight)


def test_pyramids_load_the_backbone_below(tmp_path):
    theirs = randomise(torchvision.models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = small_model(UPER)
    assert isinstance(model.backbone, UPerFPN)
    head = {k: v.clone() for k, v in model.state_dict().items() if "bottom_up" not in k}
    ContrastCheckpointer(model).load(str(tmp_path / "resnet.pth"))
    assert torch.equal(model.backbone.bottom_up.body.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in head.items())


# Files


FORMATS = {
    "weights.pth": lambda state, path: torch.save(state, path),
    "wrong.safetensors": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "mmseg.pth": lambda state, path: torch.save({"state_dict": state, "meta": {"a": 1}}, path),
    "legacy.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "no_suffix": lambda state, path: save_file(state, path),
    "model.safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_recognised_by_content(name, tmp_path, caplog):
    theirs = randomise(torchvision.models.resnet18())
    path = str(tmp_path / name)
    FORMATS[name](theirs.state_dict(), path)
    model = small_model(UPER)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(model).load(path)
    assert torch.equal(model.backbone.bottom_up.body.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    (summary,) = [r.getMessage() for r in caplog.records if r.name.startswith("d2_contrast")]
    assert summary == (
        f"{path}: a ResNet; 100 of the backbone's 100 tensors loaded; missing: none; "
        "unused: fc.bias, fc.weight; of another shape: none"
    )


def test_pickles_need_a_flag(tmp_path):
    theirs = randomise(detectron2_resnet())
    state = {k: v.numpy() for k, v in theirs.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "torchvision", "matching_heuristics": True}))
    model = small_model(UPER)
    with pytest.raises(ValueError, match="R-18.pkl is a pickle file .*MODEL.WEIGHTS_ALLOW_PICKLE True"):
        ContrastCheckpointer(model).load(str(path))
    ContrastCheckpointer(model, allow_pickle=True).load(str(path))
    torch.testing.assert_close(
        model.backbone.bottom_up.body.layer4[0].downsample[0].weight, theirs.res5[0].shortcut.weight
    )


class Payload:
    """Creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("use_zip", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, use_zip):
    path, trace = str(tmp_path / "model.pth"), tmp_path / "trace"
    torch.save({"model": {"a": torch.ones(1)}, "x": Payload(str(trace))}, path, _use_new_zipfile_serialization=use_zip)
    with pytest.raises(ValueError, match="model.pth is damaged or holds more than tensors"):
        ContrastCheckpointer(small_model(UPER)).load(path)
    assert not trace.exists()


def test_caffe2_weights_need_detectron2s_resnet(tmp_path):
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": torch.ones(2).numpy()}))
    with pytest.raises(ValueError, match="weights of Caffe2 .*build_resnet_backbone"):
        ContrastCheckpointer(small_model(UPER), allow_pickle=True).load(str(path))


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)], {"model": "x"}])
def test_files_without_weights(tmp_path, content):
    path = str(tmp_path / "model.pth")
    torch.save(content, path)
    with pytest.raises(ValueError, match="model.pth holds no weights: expected tensors by name"):
        ContrastCheckpointer(small_model(UPER)).load(path)


def test_file_kinds(tmp_path):
    for content, kind in ((b"", "other"), (b"hello, this is text", "other"), (pickle.dumps({"a": 1}), "other")):
        (tmp_path / "file").write_bytes(content)
        assert file_kind(str(tmp_path / "file")) == kind


# Too few matches


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: torchvision.models.resnet50(), "a ResNet; 77 of the backbone's 100"),
        (lambda: timm_swin(), r"this backbone \(a ResNet\). file: a Swin Transformer; 0 of the backbone's 100"),
        (lambda: timm.create_model("hrnet_w18_small"), "an HRNet; "),
        (lambda: nn.Linear(2, 2), "an unknown network .bias, weight.; 0 of"),
    ],
)
def test_other_networks_are_refused(weights, message):
    backbone = TimmBackbone(name="resnet18")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone(backbone, weights().state_dict(), "file")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_checkpoint_of_another_model_is_refused(tmp_path):
    other = small_model("cityscapes/uper_swin_t_contrast_bs8_160k.yaml")
    DetectionCheckpointer(other, str(tmp_path)).save("other")
    with pytest.raises(ValueError, match="not the weights of this model's backbone.*0 of|whole model; "):
        ContrastCheckpointer(small_model(UPER)).load(str(tmp_path / "other.pth"))


# Our own checkpoints


def test_own_checkpoints_go_through_unchanged(tmp_path, caplog):
    model, reference = small_model(UPER), small_model(UPER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(model(make_batch((64, 64), (64, 64))).values()).backward()
    optimizer.step()
    ContrastCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000001", iteration=1)
    other = torch.optim.AdamW(reference.parameters(), lr=1.0)
    checkpointer = ContrastCheckpointer(reference, str(tmp_path), optimizer=other)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 1 and other.param_groups[0]["lr"] == 1e-3
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in reference.state_dict().items())
    moments = zip(optimizer.state_dict()["state"].values(), other.state_dict()["state"].values())
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in moments)
    total = sum(not k.endswith("num_batches_tracked") for k in expected)
    assert f"{total} of the model's {total} tensors loaded; missing: none; unused: none" in caplog.text


def test_baseline_into_contrastive_model_and_back(tmp_path, caplog):
    """The projectors are missing or unused; so is a classifier for other classes."""
    baseline = small_model(UPER, MODEL__CONTRAST__ENABLED=False, MODEL__SEM_SEG_HEAD__NUM_CLASSES=4)
    ContrastCheckpointer(baseline, str(tmp_path)).save("baseline")
    model = small_model(UPER)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(model).load(str(tmp_path / "baseline.pth"))
    assert "missing: aux_head (2), projectors (48), sem_seg_head (2); unused: none" in caplog.text
    assert "of another shape: aux_head.predictor.bias, aux_head.predictor.weight, sem_seg" in caplog.text
    assert torch.equal(model.sem_seg_head.fuse.weight, baseline.sem_seg_head.fuse.weight)
    caplog.clear()
    ContrastCheckpointer(model, str(tmp_path)).save("contrast")
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(baseline).load(str(tmp_path / "contrast.pth"))
    assert "unused: projectors (" in caplog.text


# Downloads


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", ["resnet18.tv_in1k", "swin_tiny_patch4_window7_224.ms_in1k"])
def test_no_network(offline, name):
    backbone = TimmBackbone(name="resnet18")
    with pytest.raises(RuntimeError, match=f"MODEL.BACKBONE.PRETRAINED is True, .*'{name}' cannot be .*MODEL.WEIGHTS"):
        load_pretrained(backbone, name)


def test_weights_of_the_config_replace_downloads(offline):
    with pytest.raises(RuntimeError, match="MODEL.BACKBONE.PRETRAINED"):
        small_model(UPER, MODEL__BACKBONE__PRETRAINED=True)
    small_model(UPER, MODEL__BACKBONE__PRETRAINED=True, MODEL__WEIGHTS="x.pth")


def test_downloads_by_name_and_tag(monkeypatch):
    """What timm gives for the name ends up in the backbone."""
    theirs = randomise(timm.create_model("resnet18"))
    asked = []
    create = timm.create_model

    def fake(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return theirs if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", fake)
    model = small_model(UPER, MODEL__BACKBONE__PRETRAINED=True, MODEL__TIMM__NAME="resnet18.a1_in1k")
    assert asked[-1] == ("resnet18.a1_in1k", True)
    assert torch.equal(model.backbone.bottom_up.body.layer2[0].conv1.weight, theirs.layer2[0].conv1.weight)
