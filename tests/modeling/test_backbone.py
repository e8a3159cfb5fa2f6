import sys
import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import FPN, SwinTransformer, build_sem_seg_head
from timm.layers import FrozenBatchNormAct2d
from timm.models.vision_transformer import checkpoint_filter_fn
from tiny_models import SMALL, make_batch
from torch import nn

from d2_contrast.config import default_config
from d2_contrast.modeling.backbone import HRNet, SMPBackbone, Swin, TimmBackbone, UPerFPN, ViTPyramid
from d2_contrast.modeling.backbone.timm import ImageSizes, build_body
from d2_contrast.modeling.meta_arch import ContrastiveSegmentor
from d2_contrast.modeling.weights import innermost_backbone, load_backbone

TINY_SWIN = dict(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4])

BACKBONES = {
    "resnet18": (lambda: TimmBackbone(name="resnet18"), [4, 8, 16, 32]),
    "resnet18 dilated 8": (lambda: TimmBackbone(name="resnet18", output_stride=8), [4, 8, 8, 8]),
    "resnet18 dilated 16": (lambda: TimmBackbone(name="resnet18", output_stride=16), [4, 8, 16, 16]),
    "convnext": (lambda: TimmBackbone(name="convnext_atto"), [4, 8, 16, 32]),
    "mobilenet": (lambda: TimmBackbone(name="mobilenetv3_small_100"), [4, 8, 16, 32]),
    "timm hrnet": (lambda: TimmBackbone(name="hrnet_w18_small"), [4, 8, 16, 32]),
    "timm swin, channels last": (lambda: TimmBackbone(name="swin_tiny_patch4_window7_224"), [4, 8, 16, 32]),
    "HRNet": (lambda: HRNet(name="hrnet_w18_small"), [4, 8, 16, 32]),
    "Swin": (lambda: Swin(**TINY_SWIN), [4, 8, 16, 32]),
    "timm swin v2": (lambda: TimmBackbone(name="swinv2_tiny_window8_256"), [4, 8, 16, 32]),
    "pvt v2": (lambda: TimmBackbone(name="pvt_v2_b0"), [4, 8, 16, 32]),
    "SegFormer": (lambda: SMPBackbone(name="mit_b0"), [4, 8, 16, 32]),
    "plain ViT": (lambda: ViTPyramid(name="vit_tiny_patch16_224", out_channels=8), [4, 8, 16, 32]),
    "DINOv2": (lambda: ViTPyramid(name="vit_small_patch14_dinov2", out_channels=8), [4, 8, 16, 32]),
    "DINOv3": (lambda: ViTPyramid(name="vit_tiny_patch16_dinov3_qkvb", out_channels=8), [4, 8, 16, 32]),
    "UPerFPN": (lambda: UPerFPN(bottom_up=Swin(**TINY_SWIN), in_features=["res2", "res4", "res5"]), None),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_are_true(name):
    make, strides = BACKBONES[name]
    backbone = make().eval()
    shapes = backbone.output_shape()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 64, 96))
    assert maps.keys() == shapes.keys()
    for key, shape in shapes.items():
        assert maps[key].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride), key
    assert 32 % max(shape.stride for shape in shapes.values()) == 0 and backbone.size_divisibility == 32
    if strides:
        assert list(shapes) == ["res2", "res3", "res4", "res5"]
        assert [shape.stride for shape in shapes.values()] == strides


def test_published_structures():
    """Channels of the backbones in the paper's tables."""
    with torch.device("meta"):
        assert [s.channels for s in HRNet(name="hrnet_w48").output_shape().values()] == [48, 96, 192, 384]
        resnet = TimmBackbone(name="resnet101", output_stride=8).output_shape()
    assert [s.channels for s in resnet.values()] == [256, 512, 1024, 2048]


def test_timm_maps_are_those_of_timm():
    backbone = TimmBackbone(name="swin_tiny_patch4_window7_224").eval()
    own = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, img_size=448).eval()
    own.load_state_dict(backbone.body.state_dict())
    image = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image).values(), own(image)):
            torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["mit_b0", "mobilenet_v2", "efficientnet-b0"])
def test_smp_maps_are_those_of_smp(name):
    backbone = SMPBackbone(name=name).eval()
    own = smp.encoders.get_encoder(name).eval()
    own.load_state_dict(backbone.body.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        *_, c2, c3, c4, c5 = own(image)
        maps = backbone(image)
    assert all(torch.equal(x, y) for x, y in zip(maps.values(), (c2, c3, c4, c5), strict=True))
    shapes = backbone.output_shape()
    assert [x.shape[1] for x in maps.values()] == [shapes[key].channels for key in maps]
    assert [x.shape[2:] for x in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def mix_transformer_parameters(channels, depths):
    """From the text of the SegFormer paper: reductions 8, 4, 2, 1 of keys, and four times as wide feed-forwards."""
    count, previous = 0, 3
    for c, depth, kernel, reduction in zip(channels, depths, (7, 3, 3, 3), (8, 4, 2, 1)):
        attention = 4 * (c * c + c) + (reduction > 1) * (reduction**2 * c * c + c + 2 * c)
        feed_forward = (4 * c * c + 4 * c) + (9 * 4 * c + 4 * c) + (4 * c * c + c)
        count += previous * c * kernel**2 + c + 2 * c + depth * (attention + feed_forward + 4 * c) + 2 * c
        previous = c
    return count


@pytest.mark.parametrize(
    "name, channels, depths",
    [("mit_b0", (32, 64, 160, 256), (2, 2, 2, 2)), ("mit_b2", (64, 128, 320, 512), (3, 4, 6, 3))],
)
def test_segformers_encoders(name, channels, depths):
    backbone = SMPBackbone(name=name)
    assert tuple(shape.channels for shape in backbone.output_shape().values()) == channels
    assert sum(p.numel() for p in backbone.parameters()) == mix_transformer_parameters(channels, depths)


def test_segformers_drop_path():
    cfg = default_config()
    cfg.merge_from_list(["MODEL.SMP.DROP_PATH", 0.4])
    for backbone, deepest in ((SMPBackbone(cfg, ShapeSpec(channels=3)), 0.4), (SMPBackbone(name="mit_b0"), 0.0)):
        rates = [m.drop_prob for m in backbone.modules() if isinstance(m, timm.layers.DropPath)]
        assert rates == pytest.approx([deepest * i / 7 for i in range(1, 8)])


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
def test_smp_trains_on_a_batch_of_one(norm):
    """Its coarsest map has one position, of which batch norm has no statistics."""
    cfg = default_config()
    cfg.merge_from_list(["MODEL.SMP.NAME", "resnet18", "MODEL.BACKBONE.NORM", norm])
    backbone = SMPBackbone(cfg, ShapeSpec(channels=3))
    norms = {type(m).__name__ for m in backbone.modules() if "Norm" in type(m).__name__}
    assert norms == {{"BN": "BatchNorm2d", "SyncBN": "SyncBatchNorm", "FrozenBN": "FrozenBatchNorm2d"}[norm]}
    if norm == "SyncBN":  # does not run on a CPU
        return
    sum(x.mean() for x in backbone(torch.randn(1, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mit_b6"}, "MODEL.SMP.NAME: .* has no encoder 'mit_b6' of its own; similar: .*'mit_b5'"),
        ({"name": "tu-convnext_atto"}, "no encoder 'tu-convnext_atto' of its own"),
        ({"name": "resnet18", "drop_path": 0.1}, "MODEL.SMP.DROP_PATH is 0.1, but 'resnet18' skips no branches"),
        ({"name": "resnet18", "norm": "GN"}, "MODEL.BACKBONE.NORM is 'GN'"),
    ],
)
def test_errors_of_smp(options, message):
    with pytest.raises(ValueError, match=message):
        SMPBackbone(**options)


def test_vit_maps_are_those_of_timm():
    """Patches of another side and positions of another image are fitted as timm fits them."""
    foreign = timm.create_model("vit_small_patch14_dinov2")
    vit = timm.create_model("vit_small_patch14_dinov2", patch_size=16, dynamic_img_size=True).eval()
    vit.load_state_dict(checkpoint_filter_fn(foreign.state_dict(), vit))
    pyramid = ViTPyramid(name="vit_small_patch14_dinov2", out_channels=8).eval()
    backbone, prefix = innermost_backbone(nn.ModuleDict({"backbone": pyramid}))
    assert backbone is pyramid.net and prefix == "backbone.net."
    load_backbone(backbone, foreign.state_dict(), "a file")
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        tokens = vit.forward_features(image)[:, 1:]
        torch.testing.assert_close(backbone(image)["last"].flatten(2).transpose(1, 2), tokens)
        expected = pyramid.stages[3](tokens.transpose(1, 2).unflatten(2, (4, 6)))
        torch.testing.assert_close(pyramid(image)["res5"], expected)


@pytest.mark.parametrize("name", ["resnet18", "no_such_vit", "vit_tiny_r_s16_p8_224"])
def test_what_is_no_plain_vit(name):
    with pytest.raises(ValueError, match=f"MODEL.TIMM.NAME is '{name}'"):
        ViTPyramid(name=name)


def test_hrnet_fuses_bilinearly():
    """One fusion of timm's, computed by hand."""
    backbone = HRNet(name="hrnet_w18_small").eval()
    module = backbone.body.stage2[0]
    fine, coarse = torch.randn(1, 16, 8, 8), torch.randn(1, 32, 4, 4)
    conv, norm, _ = module.fuse_layers[0][1]
    with torch.no_grad():
        x, y = module.branches[0](fine), module.branches[1](coarse)
        y = nn.functional.interpolate(norm(conv(y)), size=(8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(module([fine, coarse])[0], (x + y).relu())


def test_swin_is_detectron2s():
    ours = Swin(**TINY_SWIN).eval()
    theirs = SwinTransformer(**TINY_SWIN).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 50, 71)
    with torch.no_grad():
        for x, y in zip(ours(image).values(), theirs(image).values()):
            assert torch.equal(x, y)


def test_swin_is_built_without_warnings_about_detectron2s_code(monkeypatch):
    monkeypatch.delitem(sys.modules, "timm.models.layers", raising=False)  # it warns when it is imported
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Swin(**TINY_SWIN)
    finally:
        torch.set_warn_always(False)


def test_swin_checkpointing_changes_memory_only():
    torch.manual_seed(0)
    plain = Swin(**TINY_SWIN)
    checkpointed = Swin(**TINY_SWIN, checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    saved = []
    for model in (plain, checkpointed):
        count = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: count.append(x.numel()) or x, lambda x: x):  # noqa: B023
            loss = sum(x.square().mean() for x in model(image).values())
        loss.backward()
        saved.append(sum(count))
    assert saved[1] < saved[0] / 2
    for x, y in zip(plain.parameters(), checkpointed.parameters()):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])  # the second has activations in its norms
def test_frozen_and_sync_norms_compute_the_same(name):
    image = torch.randn(1, 3, 64, 64)
    plain = TimmBackbone(name=name).eval()
    with torch.no_grad():
        expected = plain(image)
        for norm in ("FrozenBN", "SyncBN"):
            other = TimmBackbone(name=name, norm=norm).eval()
            other.load_state_dict(plain.state_dict(), strict=norm != "FrozenBN")
            for key, x in other(image).items():
                torch.testing.assert_close(x, expected[key])
    frozen = TimmBackbone(name=name, norm="FrozenBN").train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in frozen.modules())
    synced = TimmBackbone(name=name, norm="SyncBN")
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet81"}, "no model 'resnet81'; similar: .*resnet"),
        ({"name": "vit_tiny_patch16_224"}, "gives 3 feature maps, expected four"),
        ({"name": "hrnet_w18_small", "output_stride": 8}, "timm does not build 'hrnet_w18_small' with .*output_stride"),
        ({"name": "hrnet_w18_small", "drop_path": 0.1}, "timm does not build .*drop_path"),
        ({"name": "resnet18", "norm": "GN"}, "MODEL.BACKBONE.NORM is 'GN'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**options)


SIZES = {
    # model: multiple, smallest, largest side, and why
    "resnet18": (32, 32, None),
    "csatv2": (64, 64, None),  # the stride of its coarsest map
    "inception_v3": (32, 96, None),  # convolutions without padding
    "swin_tiny_patch4_window7_224": (32, 32, None),  # by an option of timm's
    "swinv2_cr_tiny_ns_224": (32, 32, None),
    "halonet26t": (256, 256, None),  # blocks of 8 x 8 positions at stride 32
    "coatnet_rmlp_nano_rw_224": (224, 224, 224),  # learned for one size
    "hiera_tiny_224": (224, 224, 224),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_images(name):
    """What is said about a model holds: it runs at such sizes, and others are refused with the sizes that work."""
    multiple, smallest, largest = SIZES[name]
    with torch.device("meta"):
        backbone = TimmBackbone(name=name).eval()
        assert backbone.sizes == ImageSizes(multiple, smallest, largest) and backbone.size_divisibility == multiple
        shapes = backbone.output_shape()
        size = (smallest, largest or smallest + multiple)
        maps = backbone(torch.zeros(1, 3, *size))
        assert all(maps[key].shape[2:] == (size[0] // s.stride, size[1] // s.stride) for key, s in shapes.items())
        for wrong in {smallest - 32, (largest or 32) + 32 if multiple > 64 else 0}:
            if wrong > 0:
                with pytest.raises(
                    ValueError, match=rf"{wrong} x {wrong} pixels .*MODEL.TIMM.NAME '{name}' takes images"
                ):
                    backbone(torch.zeros(1, 3, wrong, wrong))


def config_of(name, *options):
    cfg = default_config()
    cfg.merge_from_list(["MODEL.TIMM.NAME", name, *options])
    return cfg


CROP = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [224, 224]]
WINDOW = ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.SIZE", [200, 224]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "hiera_tiny_224",
            WINDOW,
            r"'hiera_tiny_224' takes images of 224 x 224 .*set INPUT.CROP.ENABLED .*\[224, 224\]",
        ),
        ("hiera_tiny_224", CROP, r"set TEST.SLIDING_WINDOW.ENABLED True and TEST.SLIDING_WINDOW.SIZE \[224, 224\]"),
        ("hiera_tiny_224", [*WINDOW, *CROP[:3], [256, 224]], r"INPUT.CROP.SIZE is \[256, 224\], but .*224 x 224"),
        ("inception_v3", [*CROP[:3], [64, 224]], r"INPUT.CROP.SIZE is \[64, 224\], but .* of 32 pixels, 96 or more"),
    ],
)
def test_sizes_of_a_run_are_refused_before_it(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmBackbone(config_of(name, *options), ShapeSpec(channels=3))


def test_sizes_of_a_run_that_fit(caplog):
    with torch.device("meta"):
        TimmBackbone(config_of("hiera_tiny_224", *CROP, *WINDOW), ShapeSpec(channels=3))
        assert "TEST.SLIDING_WINDOW.SIZE [200, 224] is padded to [224, 224]" in caplog.text
        caplog.clear()
        TimmBackbone(config_of("resnet18", *CROP[:3], [100, 100]), ShapeSpec(channels=3))
        assert not caplog.text


def test_trying_sizes_changes_nothing():
    torch.manual_seed(0)
    alone = timm.create_model("resnet18", features_only=True)
    torch.manual_seed(0)
    body, _ = build_body("resnet18")
    assert body.training
    assert all(torch.equal(a, b) for a, b in zip(body.state_dict().values(), alone.state_dict().values()))


def test_hrnet_refuses_other_models():
    with pytest.raises(ValueError, match="MODEL.TIMM.NAME is 'resnet18': HRNet expects"):
        HRNet(name="resnet18")


def test_uper_refuses_unknown_maps():
    with pytest.raises(ValueError, match="MODEL.UPER.IN_FEATURES .* gives .'res2', 'res3', 'res4', 'res5'.*'res9'"):
        UPerFPN(bottom_up=TimmBackbone(name="resnet18"), in_features=["res2", "res9"])


def test_uper_pads_as_its_backbone_wants():
    class Square(TimmBackbone):
        padding_constraints = {"square_size": 128}

    pyramid = UPerFPN(bottom_up=Square(name="resnet18"), in_features=["res2", "res5"])
    assert pyramid.padding_constraints == {"square_size": 128} and pyramid.size_divisibility == 32


def test_uper_pyramid_by_hand():
    """Levels from their definition, with weights that make each convolution a known map."""
    pyramid = UPerFPN(
        bottom_up=TimmBackbone(name="resnet18"), in_features=["res2", "res5"], out_channels=4, pool_scales=[1], norm=""
    ).eval()
    maps = {"res2": torch.rand(1, 64, 16, 16), "res5": torch.rand(1, 512, 2, 2)}
    pyramid.bottom_up.forward = lambda image: maps
    for module in pyramid.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 4:  # mean over channels, at the centre
            nn.init.zeros_(module.weight)
            module.weight.data[:, :, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1 / module.in_channels
    with torch.no_grad():
        levels = pyramid(torch.zeros(1, 3, 64, 64))
    fine, coarse = maps["res2"].mean(1, keepdim=True), maps["res5"].mean(1, keepdim=True)
    p3 = (512 * coarse + 4 * coarse.mean()) / 516
    p2 = fine + nn.functional.interpolate(p3, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(levels["p3"], p3.expand(1, 4, 2, 2))
    torch.testing.assert_close(levels["p2"], p2.expand(1, 4, 16, 16))
    assert levels["res2"] is maps["res2"]


def test_detectron2_pyramid_over_a_timm_backbone():
    cfg = default_config()
    cfg.merge_from_list([item for pair in SMALL.items() for item in pair])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "MODEL.SEM_SEG_HEAD.NORM", "BN"])
    names = ["res2", "res3", "res4", "res5"]
    fpn = FPN(TimmBackbone(name="resnet18"), names, 16, norm="BN")
    model = ContrastiveSegmentor(
        backbone=fpn,
        sem_seg_head=build_sem_seg_head(cfg, fpn.output_shape()),
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
    )
    losses = model(make_batch((64, 64), (50, 40)))
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()([{"image": make_batch((50, 40))[0]["image"]}])[0]["sem_seg"].shape == (5, 50, 40)


def test_frozen_types_of_timm():
    frozen = TimmBackbone(name="mobilenetv3_small_100", norm="FrozenBN")
    assert any(isinstance(m, FrozenBatchNormAct2d) for m in frozen.modules())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules())  # would drop the activation


def test_from_config():
    cfg = default_config()
    cfg.merge_from_list(
        ["MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.OUTPUT_STRIDE", 16, "MODEL.TIMM.DROP_PATH", 0.5]
        + ["MODEL.BACKBONE.NORM", "FrozenBN"]
    )
    backbone = TimmBackbone(cfg, ShapeSpec(channels=3))
    assert backbone.output_shape()["res5"].stride == 16
    rates = [m.drop_prob for m in backbone.modules() if isinstance(m, timm.layers.DropPath)]
    assert max(rates) == 0.5 and not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    cfg.merge_from_list(["MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.NUM_HEADS", [1, 1, 1, 1], "MODEL.SWIN.DROP_PATH", 0.5])
    swin = Swin(cfg, ShapeSpec(channels=3))
    assert [len(stage.blocks) for stage in swin.layers] == [2, 2, 6, 2]
    assert swin.layers[-1].blocks[-1].drop_path.drop_prob == 0.5
