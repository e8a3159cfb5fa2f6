import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from tiny_models import make_batch, small_config, small_model

from d2_contrast.modeling import ContrastiveSegmentor, build_contrast
from d2_contrast.modeling.features import extract_features

UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"


def test_loss_names_and_weights():
    losses = small_model(UPER)(make_batch((64, 96), (64, 96)))
    scales = [f"loss_contrast_res{i}" for i in range(2, 6)]
    pairs = ["loss_contrast_res2_res5", "loss_contrast_res2_res4"]
    assert list(losses) == ["loss_sem_seg", "loss_aux_sem_seg", *scales, *pairs]
    doubled = small_model(UPER, MODEL__CONTRAST__SCALE_WEIGHTS=[2.0, 1.4, 0.4, 0.1])(make_batch((64, 96), (64, 96)))
    for name, factor in zip(scales + pairs, [2, 2, 1, 1, 1, 1]):
        torch.testing.assert_close(doubled[name], factor * losses[name])


def test_without_contrast_and_auxiliary_head():
    model = small_model(UPER, MODEL__CONTRAST__ENABLED=False, MODEL__AUX_HEAD__NAME="")
    assert list(model(make_batch((64, 64), (64, 64)))) == ["loss_sem_seg"]
    assert not any(name.startswith(("contrast", "aux_head")) for name in model.state_dict())
    assert model.embed(extract_features(model.eval(), make_batch((64, 64)))) == {}


def test_a_backbone_that_asks_for_no_padding():
    """Detectron2's ResNet: in training its strides have to divide images and labels alike."""
    model = small_model(
        "shapes/deeplabv3plus_r18_contrast.yaml",
        MODEL__BACKBONE__NAME="build_resnet_backbone",
        MODEL__RESNETS__DEPTH=18,
        MODEL__RESNETS__RES2_OUT_CHANNELS=64,
        MODEL__RESNETS__OUT_FEATURES=["res2", "res5"],
        MODEL__CONTRAST__ENABLED=False,
    )
    (image,) = make_batch((40, 33))
    padded = {"image": torch.zeros(3, 64, 64), "sem_seg": torch.full((64, 64), 255)}
    padded["image"] += model.pixel_mean
    for key, value in image.items():
        padded[key][..., :40, :33] = value
    losses = []
    for batch in ([image, image], [padded, padded]):
        torch.manual_seed(0)  # of dropout
        losses.append(model(batch))
    torch.testing.assert_close(*losses)


def test_auxiliary_loss_has_its_weight():
    batch = make_batch((64, 64), (64, 64))
    losses = small_model(UPER, MODEL__AUX_HEAD__DROPOUT=0.0)(batch)
    heavier = small_model(UPER, MODEL__AUX_HEAD__DROPOUT=0.0, MODEL__AUX_HEAD__LOSS_WEIGHT=0.8)(batch)
    torch.testing.assert_close(heavier["loss_aux_sem_seg"], 2 * losses["loss_aux_sem_seg"])


def test_auxiliary_loss_of_a_name_that_the_head_has():
    """Both count: the first prediction of OCRNet is an auxiliary one, too."""
    ocr = "cadis/ocrnet_r50_task2_contrast_bs8_50e.yaml"
    options = {"MODEL__CONTRAST__ENABLED": False, "MODEL__SEM_SEG_HEAD__DROPOUT": 0.0, "MODEL__AUX_HEAD__DROPOUT": 0.0}
    batch = make_batch((64, 64), (64, 64))
    model = small_model(ocr, **options, MODEL__AUX_HEAD__NAME="FCNHead")
    losses = model(batch)
    head, aux = model.sem_seg_head, model.aux_head
    model.sem_seg_head.aux_loss_weight = 0.0
    alone = model(batch)["loss_aux_sem_seg"]
    head.aux_loss_weight, aux.loss_weight = 0.4, 0.0
    first = model(batch)["loss_aux_sem_seg"]
    assert alone > 0 and first > 0
    torch.testing.assert_close(losses["loss_aux_sem_seg"], alone + first)


def test_training_parts_do_not_run_at_inference():
    model = small_model(UPER).eval()

    def fail(*args):
        raise AssertionError("ran at inference")

    for module in (*model.contrast.modules(), model.aux_head):
        module.register_forward_pre_hook(fail)
    assert model(make_batch((64, 64)))[0]["sem_seg"].shape == (5, 64, 64)
    model.train()
    with pytest.raises(AssertionError, match="ran at inference"):
        model(make_batch((64, 64), (64, 64)))


def test_inference_is_detectron2s():
    """As SemanticSegmentor on backbone and head alone."""
    from detectron2.modeling import SemanticSegmentor

    model = small_model(UPER).eval()
    plain = SemanticSegmentor(
        backbone=model.backbone,
        sem_seg_head=model.sem_seg_head,
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()
    batch = make_batch((40, 56), (64, 40))
    with torch.no_grad():
        for ours, theirs in zip(model(batch), plain(batch)):
            assert torch.equal(ours["sem_seg"], theirs["sem_seg"])


def test_features_and_embeddings():
    model = small_model(UPER).eval()
    features = extract_features(model, make_batch((60, 90)))
    assert {name: tuple(x.shape[2:]) for name, x in features.items()} == {
        f"{kind}{level}": (64 // 2**level, 96 // 2**level) for kind in ("res", "p") for level in range(2, 6)
    }
    embeddings = model.embed(features)
    assert list(embeddings) == ["res2", "res3", "res4", "res5"]
    for x in embeddings.values():
        assert x.shape[1] == 8 and not x.requires_grad
        torch.testing.assert_close(x.norm(dim=1), torch.ones_like(x[:, 0]))


def test_statistics_are_logged_at_their_period():
    model = small_model(UPER, MODEL__CONTRAST__LOG_PERIOD=2)
    logged = {}
    with EventStorage() as storage:
        for _ in range(3):
            model(make_batch((64, 64), (64, 64)))
            names = {name for name, (_, i) in storage.latest().items() if i == storage.iter}
            logged[storage.iter] = {name for name in names if name.startswith("contrast/")}
            storage.step()
    assert "contrast/res2/num_anchors" in logged[0] and logged[0] == logged[2] and not logged[1]


def test_losses_without_anchors_are_said_once(caplog):
    model = small_model(UPER, MODEL__CONTRAST__LOG_PERIOD=1, MODEL__CONTRAST__MIN_PER_GROUP=10**6)
    with EventStorage(3):
        for _ in range(2):
            losses = model(make_batch((64, 64), (64, 64)))
            assert losses["loss_contrast_res2"] == 0
    assert [record.getMessage()[:22] for record in caplog.records] == ["Iteration 3: no class "]


def test_warmup_follows_the_iteration():
    model = small_model(UPER, MODEL__CONTRAST__WARMUP_ITERS=10)
    batch = make_batch((64, 64), (64, 64))
    with EventStorage(5):
        torch.manual_seed(1)
        half = model(batch)["loss_contrast_res2"]
    with EventStorage(10):
        torch.manual_seed(1)
        full = model(batch)["loss_contrast_res2"]
    torch.testing.assert_close(2 * half, full)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEM_SEG_HEAD__IN_FEATURES", ["p2", "p7"], "MODEL.SEM_SEG_HEAD.IN_FEATURES .*'res5', 'p2'.*not .'p7'"),
        ("AUX_HEAD__IN_FEATURES", ["c4"], "MODEL.AUX_HEAD.IN_FEATURES .*'res5', 'p2'.*not .'c4'"),
        ("CONTRAST__IN_FEATURES", ["res2", "x", "res4", "res5"], "MODEL.CONTRAST.IN_FEATURES .*'p5'.*not .'x'"),
        ("UPER__IN_FEATURES", ["res2", "stem"], "MODEL.UPER.IN_FEATURES .*'res2', 'res3', 'res4', 'res5'.*'stem'"),
    ],
)
def test_contradictory_configs(key, value, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveSegmentor(small_config(UPER, **{f"MODEL__{key}": value}))


METHODS = ["pixels", "regions", "pixels+regions", "averages"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [UPER, "cadis/ocrnet_r50_task2_contrast_bs8_50e.yaml"])
def test_memories(name, method):
    """The first batch fills them, the second is contrasted with it; what is logged changes nothing."""
    scales = load_names(name)
    losses = []
    for period in (0, 1):
        model = small_model(name, MODEL__CONTRAST__MEMORY__METHOD=method, MODEL__CONTRAST__LOG_PERIOD=period)
        torch.manual_seed(0)
        with EventStorage():
            first, second = (model(make_batch((64, 64), (64, 96), seed=seed)) for seed in (0, 1))
        losses.append(second)
        assert all(first[f"loss_contrast_{scale}"] == 0 < second[f"loss_contrast_{scale}"] for scale in scales)
        sum(second.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert losses[0] == losses[1]
    assert all(key.startswith("contrast.") for key in model.state_dict() if ".rings." in key)


def load_names(name):
    return small_config(name).MODEL.CONTRAST.IN_FEATURES


def test_a_memory_looks_at_what_the_head_predicts():
    """Logits of the training pass, at the stride of the head; none are needed without a memory."""
    model = small_model(UPER, MODEL__CONTRAST__MEMORY__METHOD="averages")
    seen = {}
    model.contrast.register_forward_pre_hook(lambda module, args: seen.update(logits=args[3]))
    model.sem_seg_head.predictor.register_forward_hook(lambda module, args, output: seen.update(expected=output))
    model(make_batch((64, 96), (64, 96)))
    assert torch.equal(seen["logits"], seen["expected"]) and seen["logits"].shape == (2, 5, 16, 24)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("METHOD", "queue", r"MODEL.CONTRAST.MEMORY.METHOD is 'queue': expected '', 'pixels', .* or 'averages'"),
        ("PIXELS", 0, "MODEL.CONTRAST.MEMORY.PIXELS is 0: expected a whole number of at least 1"),
        ("REGIONS", -1, "MODEL.CONTRAST.MEMORY.REGIONS is -1: expected a whole number of at least 1"),
    ],
)
def test_contradictory_memories(key, value, message):
    options = {"METHOD": "pixels+regions", key: value}
    with pytest.raises(ValueError, match=message):
        small_model(UPER, **{f"MODEL__CONTRAST__MEMORY__{k}": v for k, v in options.items()})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CROSS_SCALE_PAIRS", [["res2", f"res{i}"] for i in (3, 4, 5)], "CROSS_SCALE_WEIGHTS is .* for each of"),
        ("IN_FEATURES", ["res2", "res2", "res4", "res5"], "IN_FEATURES is .*expected"),
        ("SCALE_WEIGHTS", [-1.0, 1.0, 1.0, 1.0], "SCALE_WEIGHTS is .*expected"),
        ("LOSS_WEIGHT_CROSS_SCALE", -1.0, "LOSS_WEIGHT_CROSS_SCALE is -1.0: expected"),
        ("PROJECTOR_LAYERS", -1, "PROJECTOR_LAYERS is -1: expected"),
    ],
)
def test_programs_of_others_do_not_check_their_config(key, value, message):
    """They add our keys to theirs and build the losses."""
    cfg = small_config(UPER)
    cfg.MODEL.CONTRAST[key] = value
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    with pytest.raises(ValueError, match=f"MODEL.CONTRAST.{message}"):
        build_contrast(cfg, shapes)


def test_what_a_memory_does_not_go_with():
    with pytest.raises(ValueError, match="CONTRAST.GATHER is True: expected False with .*MEMORY.METHOD 'pixels'"):
        small_model(UPER, MODEL__CONTRAST__MEMORY__METHOD="pixels", MODEL__CONTRAST__GATHER=True)
    with pytest.raises(ValueError, match="CONTRAST.PROJECT is 'anchors': expected 'dense' with .*MEMORY.METHOD"):
        small_model(UPER, MODEL__CONTRAST__MEMORY__METHOD="pixels", MODEL__CONTRAST__PROJECT="anchors")
    with pytest.raises(ValueError, match="MEMORY.METHOD looks at predictions, .*SemSegFPNHead does not give"):
        small_model("shapes/fpn_r18_contrast.yaml", MODEL__CONTRAST__MEMORY__METHOD="pixels")


PYRAMID = "ade20k/uper_swin_t_contrast_bs16_160k.yaml"


def gradients_of(iteration=0, **options):
    """Gradients of the backbone and of all else, for the same batch and draws."""
    model = small_model(PYRAMID, MODEL__SEM_SEG_HEAD__DROPOUT=0.0, MODEL__AUX_HEAD__DROPOUT=0.0, **options)
    torch.manual_seed(0)
    with EventStorage(iteration):
        losses = model(make_batch((64, 64), (64, 96)))
        sum(losses.values()).backward()
    parts = {True: {}, False: {}}
    for name, p in model.named_parameters():
        parts[name.startswith("backbone.")][name] = p.grad
    return parts[True], parts[False]


@pytest.mark.parametrize("project", ["dense", "anchors"])
def test_balance_without_a_rule_changes_nothing(project):
    """Bit for bit; anchors alone are tapped without it, which adds the same numbers in another order."""
    options = {"MODEL__CONTRAST__PROJECT": project}
    for ours, plain in zip(gradients_of(MODEL__CONTRAST__BALANCE__LOG_PERIOD=1, **options), gradients_of(**options)):
        assert ours.keys() == plain.keys()
        if project == "dense":
            assert all(torch.equal(ours[name], plain[name]) for name in plain)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_weights_of_zero_change_nothing():
    """Bit for bit: a branch without weight is no branch. What it draws is gone in the next step, which seeds anew."""
    weights = {"MODEL__CONTRAST__LOSS_WEIGHT_MULTI_SCALE": 0.0, "MODEL__CONTRAST__LOSS_WEIGHT_CROSS_SCALE": 0.0}
    for ours, plain in zip(gradients_of(**weights), gradients_of(MODEL__CONTRAST__ENABLED=False)):
        assert plain and all(torch.equal(ours[name], plain[name]) for name in plain)


def test_balance_sets_the_share_of_the_contrastive_losses():
    """Their weights do not matter for the backbone, warm-up and decay do; nothing changes behind the maps."""
    rule = {"MODEL__CONTRAST__BALANCE__SHARE": 0.5}
    weights = {"MODEL__CONTRAST__LOSS_WEIGHT_MULTI_SCALE": 10.0, "MODEL__CONTRAST__LOSS_WEIGHT_CROSS_SCALE": 10.0}
    backbone, rest = gradients_of(**rule)
    torch.testing.assert_close(gradients_of(**rule, **weights)[0], backbone, rtol=1e-3, atol=1e-5)
    plain_backbone, plain_rest = gradients_of()
    torch.testing.assert_close(rest, plain_rest)
    assert not torch.allclose(*(torch.cat([g.flatten() for g in part.values()]) for part in (backbone, plain_backbone)))
    alone = gradients_of(MODEL__CONTRAST__ENABLED=False)[0]
    for schedule, iteration in ((dict(MODEL__CONTRAST__WARMUP_ITERS=9), 0), (dict(MODEL__CONTRAST__DECAY_ITERS=9), 9)):
        torch.testing.assert_close(gradients_of(iteration, **rule, **schedule)[0], alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("called", [True, False])
def test_gradients_are_logged_at_their_period(called):
    """In the step itself, or by the next one where a trainer of others does not call for it."""
    model = small_model(PYRAMID, MODEL__CONTRAST__BALANCE__LOG_PERIOD=2)
    batch, logged = make_batch((64, 64), (64, 64)), []
    with EventStorage() as storage:
        for _ in range(4):
            sum(model(batch).values()).backward()
            if called:
                model.log_gradients()
            names = {name for name, (_, i) in storage.latest().items() if i == storage.iter}
            logged.append({name.removeprefix("gradient/") for name in names if name.startswith("gradient/")})
            storage.step()
    all_of_them = {"segmentation_norm", "contrast_norm", "ratio", "cosine"}
    assert logged == ([all_of_them, set()] * 2 if called else [set(), all_of_them] * 2)


def test_balances_that_are_refused():
    with pytest.raises(ValueError, match=r"MODEL.CONTRAST.BALANCE compares .*IN_FEATURES has none of \['p2', 'p3'"):
        small_model(UPER, MODEL__CONTRAST__BALANCE__SHARE=0.1)
    with pytest.raises(ValueError, match="MODEL.CONTRAST.BALANCE.SHARE is -1.0: expected a number of at least 0"):
        small_model(PYRAMID, MODEL__CONTRAST__BALANCE__SHARE=-1.0)


def test_concatenated_maps():
    """As one scale, with the channels of all and the size of the first."""
    one = {
        "MODEL__CONTRAST__IN_FEATURES": ["res3+res2+res5"],
        "MODEL__CONTRAST__SCALE_WEIGHTS": [1.0],
        "MODEL__CONTRAST__CROSS_SCALE_PAIRS": [],
        "MODEL__CONTRAST__CROSS_SCALE_WEIGHTS": [],
    }
    model = small_model(UPER, **one)
    assert "loss_contrast_res3+res2+res5" in model(make_batch((64, 96), (64, 96)))
    features = extract_features(model.eval(), make_batch((64, 96)))
    parts = [torch.nn.functional.interpolate(features[f"res{i}"], (8, 12), mode="bilinear") for i in (3, 2, 5)]
    expected = torch.nn.functional.normalize(model.contrast.projectors["res3+res2+res5"](torch.cat(parts, 1)))
    torch.testing.assert_close(model.embed(features), {"res3+res2+res5": expected.detach()})
    with pytest.raises(ValueError, match="MODEL.CONTRAST.IN_FEATURES is .*'res3', 'res9'.*the backbone gives"):
        small_model(UPER, **one | {"MODEL__CONTRAST__IN_FEATURES": ["res3+res9"]})


@pytest.mark.parametrize("name", ["shapes/fpn_r18_contrast.yaml", "shapes/deeplabv3plus_r18_contrast.yaml"])
def test_unknown_feature_of_detectron2s_heads(name):
    """They pass over unknown names themselves."""
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.IN_FEATURES .*not .'res9'"):
        ContrastiveSegmentor(small_config(name, MODEL__SEM_SEG_HEAD__IN_FEATURES=["res9"]))


def test_statistics_cost_no_other_draw():
    """A step that logs has the losses of one that does not."""
    batch = make_batch((64, 64), (64, 64))
    results = []
    for period in (0, 1):
        model = small_model(UPER, MODEL__CONTRAST__LOG_PERIOD=period, MODEL__SEM_SEG_HEAD__DROPOUT=0.0)
        torch.manual_seed(0)
        with EventStorage():
            results.append(model(batch))
    assert results[0] == results[1]


@pytest.mark.parametrize("project", ["dense", "anchors"])
def test_compiled_training_forward_changes_no_values(project):
    options = {"MODEL__SEM_SEG_HEAD__DROPOUT": 0.0, "MODEL__AUX_HEAD__DROPOUT": 0.0}
    model = small_model(UPER, MODEL__CONTRAST__PROJECT=project, **options)
    batch = make_batch((64, 64), (64, 64))
    results = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        torch.manual_seed(0)
        losses = forward(batch)
        results.append((losses, torch.autograd.grad(sum(losses.values()), [*model.parameters()])))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
