import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from detectron2.modeling import SwinTransformer
from foreign_models import detectron2_resnet, randomise
from tiny_models import small_model
from torch import nn

from d2_contrast.modeling.backbone import HRNet, SMPBackbone, Swin, TimmBackbone
from d2_contrast.modeling.weights import load_backbone, load_pretrained

SWIN = dict(embed_dim=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4])
UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"


def timm_swin(window=7, **options):
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        window_size=window,
        always_partition=True,
        strict_img_size=False,
        **SWIN,
        **options,
    )


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


@pytest.mark.parametrize(
    "name",
    [
        "resnetv2_18",  # stem_conv, stages_0
        "botnet26t_256",  # stem_conv1
        "efficientvit_b0",  # stem_in_conv
        "efficientvit_m0",  # patch_embed_conv1
        "densenet121",  # features_denseblock1
        "tresnet_m",  # body_conv1
        "shvit_s1",  # patch_embed_0
        "regnety_002",  # no joined name
        "convnext_atto",  # stem_0
    ],
)
def test_timm_models_from_their_own_weights(name):
    """timm makes equal weights of equal seeds, whether or not it takes the network apart for its maps."""

    def make(seed, **options):
        torch.manual_seed(seed)
        return timm.create_model(name, **options)

    ours = nn.ModuleDict({"body": make(2, features_only=True)})
    assert load_backbone(ours, make(1).state_dict(), "file") == []
    expected, own = make(1, features_only=True).state_dict(), ours["body"].state_dict()
    assert all(torch.equal(own[key], x) for key, x in expected.items())


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


# Too few matches


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: torchvision.models.resnet50(), "a ResNet; 77 of the backbone's 100"),
        (lambda: timm_swin(), r"this backbone \(a ResNet\). file: a Swin Transformer; 0 of the backbone's 100"),
        (lambda: timm.create_model("hrnet_w18_small"), "an HRNet; "),
        (lambda: nn.Linear(2, 2), "an unknown network .bias, weight.; 0 of"),
        # Deeper, with another stem, with more in each block.
        (lambda: torchvision.models.resnet34(), r"100 of the .*without weights: none; more than .*: layer1 \(10\), la"),
        (lambda: detectron2_resnet(34), r"without weights: none; more than .*: res2 \(10\), "),
        (lambda: timm.create_model("resnet18d"), "without weights: body.conv1.weight"),
        (lambda: timm.create_model("seresnet18"), r"100 of the .*more than its modules have: layer1 \(8\)"),
    ],
)
def test_other_networks_are_refused(weights, message):
    backbone = TimmBackbone(name="resnet18")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone(backbone, weights().state_dict(), "file")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("joined", [False, True], ids=["layers.2", "layers_2"])
@pytest.mark.parametrize("make", [lambda: Swin(**SWIN), lambda: timm_swin(features_only=True)], ids=["ours", "timm's"])
def test_a_deeper_swin_is_refused(make, joined):
    deeper = official_swin_state(SwinTransformer(**SWIN | {"depths": [2, 1, 3, 1]}))
    if joined:
        deeper = {name.replace("layers.", "layers_", 1): tensor for name, tensor in deeper.items()}
    with pytest.raises(ValueError, match=r"more than its modules have: layers(_2)? \(13\)"):
        load_backbone(make(), deeper, "file")


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


def test_no_network_for_smp(offline):
    with pytest.raises(RuntimeError, match="segmentation_models_pytorch's 'mit_b0' cannot be .*smp-hub.*MODEL.WEIGHTS"):
        SMPBackbone(name="mit_b0", pretrained=True)


def test_smp_downloads_by_name(monkeypatch):
    """What SMP gives for the name, and for ImageNet, ends up in the backbone."""
    create = smp.encoders.get_encoder
    theirs = randomise(create("mit_b0"))
    monkeypatch.setattr(
        smp.encoders, "get_encoder", lambda name, weights=None: theirs if weights == "imagenet" else create(name)
    )
    model = small_model(UPER, MODEL__BACKBONE__PRETRAINED=True, MODEL__UPER__BOTTOM_UP="SMPBackbone")
    own = model.backbone.bottom_up.body.state_dict()
    assert all(torch.equal(own[key], x) for key, x in theirs.state_dict().items())


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
