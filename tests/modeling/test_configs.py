"""Every config: that its network can be built, and that its values are those of the recipes."""

import re

import pytest
import torch
from configs_on_meta import build_on_meta
from detectron2.data import MetadataCatalog
from tiny_models import CONFIGS

import d2_contrast.data  # noqa: F401, registers the datasets
from d2_contrast.config import load_config
from d2_contrast.engine import Trainer, build_optimizer

FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("models", "ablations") and not path.name.startswith("Base")
)
CAMVID = [name for name in FILES if name.startswith("camvid/")]
PAPER = [name for name in FILES if not name.startswith(("shapes/", "camvid/"))]

SGD = dict(optimizer="SGD", momentum=0.9, power=0.9, warmup=0)
SWIN = dict(optimizer="AdamW", lr=6e-5, weight_decay=0.01, norm_decay=0.0, power=1.0, warmup=1500)
ADAM = dict(optimizer="AdamW", lr=1e-4, weight_decay=0.0, norm_decay=0.0, batch=8)
CITYSCAPES = dict(lr=0.01, weight_decay=5e-4, norm_decay=5e-4, batch=12, iterations=120_000, crop=[512, 1024])
ADE20K = dict(lr=0.01, weight_decay=5e-4, norm_decay=5e-4, batch=16, iterations=160_000, crop=[512, 512])
CONTEXT = dict(lr=0.001, weight_decay=1e-4, norm_decay=1e-4, batch=16, iterations=62_000, crop=[512, 512])
# The settings of the paper's rows, by the start of the config's name.
RECIPES = {
    "cityscapes/hrnet_w48_bs12_120k": SGD | CITYSCAPES,
    "cityscapes/hrnet_w48_contrast_bs12_120k": SGD | CITYSCAPES,
    "cityscapes/hrnet_w48_contrast_average_memory": SGD | CITYSCAPES,
    "cityscapes/hrnet_w48_trainval": SGD | CITYSCAPES | dict(lr=0.001),
    "cityscapes/hrnet_w48_contrast_trainval": SGD | CITYSCAPES | dict(lr=0.001),
    "cityscapes/hrnet_w48": SGD | CITYSCAPES | dict(batch=8, iterations=40_000),
    "cityscapes/ocrnet_hrnet_w48": SGD | CITYSCAPES,
    "cityscapes/deeplabv3_r101": SGD | CITYSCAPES,
    "cityscapes/uper_r101": SGD | CITYSCAPES,
    "cityscapes/uper_swin": CITYSCAPES | SWIN | dict(batch=8, iterations=160_000),
    "ade20k/ocrnet_hrnet_w48": SGD | ADE20K | dict(lr=0.02, weight_decay=1e-4, norm_decay=1e-4),
    "ade20k/uper_swin": ADE20K | SWIN,
    "ade20k/uper_r101": SGD | ADE20K,
    "ade20k/deeplabv3_r101": SGD | ADE20K,
    "pascal_context/hrnet_w48": SGD | CONTEXT,
    "pascal_context/ocrnet_hrnet_w48": SGD | CONTEXT,
    "cadis/ocrnet_r50_task2": ADAM | dict(iterations=26_400),
    "cadis/ocrnet_r50_task3": ADAM | dict(iterations=31_300),
}


@pytest.mark.parametrize("name", FILES)
def test_builds(monkeypatch, name):
    model = build_on_meta(monkeypatch, CONFIGS / name)
    cfg = load_config(str(CONFIGS / name))
    assert (model.contrast is not None) == cfg.MODEL.CONTRAST.ENABLED == ("contrast" in name)
    assert cfg.OUTPUT_DIR == "output/" + name.removesuffix(".yaml")


@pytest.mark.parametrize("name", FILES)
def test_fits_its_datasets(name):
    cfg = load_config(str(CONFIGS / name))
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(MetadataCatalog.get(dataset).stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize("name", PAPER)
def test_recipe(name):
    recipe = next(recipe for start, recipe in RECIPES.items() if name.startswith(start))
    cfg = load_config(str(CONFIGS / name))
    solver = cfg.SOLVER
    assert solver.OPTIMIZER == recipe["optimizer"]
    assert solver.BASE_LR == recipe["lr"]
    assert solver.WEIGHT_DECAY == recipe["weight_decay"]
    assert solver.WEIGHT_DECAY_NORM == recipe["norm_decay"] and solver.WEIGHT_DECAY_BIAS is None
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (recipe["batch"], recipe["iterations"])
    assert cfg.MODEL.BACKBONE.PRETRAINED and cfg.MODEL.BACKBONE.NORM == "SyncBN" == cfg.MODEL.SEM_SEG_HEAD.NORM
    assert cfg.INPUT.FORMAT == "RGB" and cfg.INPUT.COLOR_JITTER.ENABLED
    if "cadis" in name:
        assert solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.GAMMA == 0.98 and solver.WARMUP_ITERS == 0
        epoch = solver.MAX_ITER // 50
        assert list(solver.STEPS) == [epoch * i for i in range(1, 50)]
        assert not cfg.INPUT.CROP.ENABLED and cfg.INPUT.SCALE_RANGE == [1.0, 1.0]
        assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
        assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.15
    else:
        assert solver.LR_SCHEDULER_NAME == "WarmupPolyLR" and solver.POLY_LR_POWER == recipe["power"]
        assert solver.WARMUP_ITERS == recipe["warmup"]
        assert cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.SIZE == recipe["crop"]
        assert cfg.INPUT.SCALE_RANGE == [0.5, 2.0] and cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 0.75
    assert bool(cfg.MODEL.PIXEL_LOSS.CLASS_WEIGHTS) == ("cityscapes" in name)


def test_model_zoo_lists_every_config():
    text = (CONFIGS.parent / "docs" / "model_zoo.md").read_text()
    listed = set(re.findall(r"\(\.\./configs/(.+?\.yaml)\)", text))
    assert listed == {name for name in FILES if not name.startswith("shapes/")}


@pytest.mark.parametrize("name", [name for name in PAPER if "contrast" in name and "memory" not in name])
def test_losses_of_the_paper(name):
    contrast = load_config(str(CONFIGS / name)).MODEL.CONTRAST
    assert contrast.TEMPERATURE == 0.1 and contrast.EMBEDDING_DIM == 256 and contrast.SAMPLER == "class"
    assert contrast.LOSS_WEIGHT_MULTI_SCALE == contrast.LOSS_WEIGHT_CROSS_SCALE == 0.1
    if "one_scale" in name:
        expected = ["res2"], [1.0], []
    elif "deeplab" in name or "r50" in name:
        expected = ["res2", "res3", "res5"], [1.0, 0.7, 0.7], [["res2", "res5"], ["res2", "res3"]]
    else:
        kind = "p" if "ade20k/uper" in name else "res"
        names = [f"{kind}{i}" for i in range(2, 6)]
        expected = names, [1.0, 0.7, 0.4, 0.1], [[names[0], names[3]], [names[0], names[2]]]
    pairs = [] if "multi_scale" in name else expected[2][:1] if "one_pair" in name else expected[2]
    assert (contrast.IN_FEATURES, contrast.SCALE_WEIGHTS, contrast.CROSS_SCALE_PAIRS) == (*expected[:2], pairs)
    assert contrast.CROSS_SCALE_WEIGHTS == [1.0] * len(pairs)


# Method, vectors of each class (10 and 1 for each of 2975 images), weight, temperature and layers of the projector.
MEMORIES = {
    "pixel_memory_bs8_40k": ("pixels", 29750, None, 1.0, 0.1, 1),
    "region_pixel_memory_bs8_40k": ("pixels+regions", 29750, 2975, 1.0, 0.1, 1),
    "average_memory_bs12_120k": ("averages", None, 2975, 0.1, 0.2, 0),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_memories_of_the_papers(name):
    contrast = load_config(str(CONFIGS / f"cityscapes/hrnet_w48_contrast_{name}.yaml")).MODEL.CONTRAST
    method, pixels, regions, weight, temperature, layers = MEMORIES[name]
    memory = contrast.MEMORY
    assert memory.METHOD == method and memory.PIXELS == (pixels or 10000) and memory.REGIONS == (regions or 1000)
    assert (contrast.LOSS_WEIGHT_MULTI_SCALE, contrast.TEMPERATURE) == (weight, temperature)
    assert (contrast.PROJECTOR_LAYERS, contrast.EMBEDDING_DIM) == (layers, 256)
    assert contrast.IN_FEATURES == ["res2+res3+res4+res5"] and not contrast.CROSS_SCALE_PAIRS
    if weight == 1.0:
        assert contrast.WARMUP_ITERS == 5000 and contrast.MIN_PER_GROUP == contrast.MAX_PER_GROUP == 25


@pytest.mark.parametrize("name", [name for name in (*PAPER, *CAMVID) if "contrast" in name])
def test_twin_differs_in_the_contrastive_losses_alone(name):
    twin = next(
        twin
        for part in (
            "_contrast_one_pair",
            "_contrast_two_pairs",
            "_contrast_multi_scale",
            "_contrast_one_scale",
            "_contrast_pixel_memory",
            "_contrast_region_pixel_memory",
            "_contrast_average_memory",
            "_contrast",
        )
        if (twin := name.replace(part, "")) != name
    )
    ours, baseline = load_config(str(CONFIGS / name)), load_config(str(CONFIGS / twin))
    for cfg in (ours, baseline):
        cfg.MODEL.CONTRAST = None
        if "average" in name:  # whose method has an auxiliary loss
            cfg.MODEL.AUX_HEAD.NAME = ""
        cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
    assert ours == baseline


def test_optimizer_of_swin(monkeypatch):
    """No decay for norms and tables of relative positions, as the recipe says."""
    name = "ade20k/uper_swin_t_contrast_bs16_160k.yaml"
    model = build_on_meta(monkeypatch, CONFIGS / name)
    optimizer = build_optimizer(load_config(str(CONFIGS / name)), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        if key.startswith("backbone.bottom_up"):
            spared = "norm" in key or "relative_position_bias_table" in key
            assert decay[id(parameter)] == (0.0 if spared else 0.01), key


def test_optimizer_of_pascal_context(monkeypatch):
    """Ten times the rate for what does not start from pretrained weights."""
    name = "pascal_context/ocrnet_hrnet_w48_contrast_bs16_62k.yaml"
    model = build_on_meta(monkeypatch, CONFIGS / name)
    optimizer = build_optimizer(load_config(str(CONFIGS / name)), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.001 if key.startswith("backbone.") else 0.01), key


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        # factor on the rate at an iteration, from the recipes: linear warm-up times poly, poly, 0.98 an epoch
        ("ade20k/uper_swin_t_bs16_160k.yaml", {0: 1e-6, 750: 0.5 * (1 - 750 / 160_000), 1500: 1 - 1500 / 160_000}),
        ("cityscapes/hrnet_w48_bs12_120k.yaml", {0: 1.0, 60_000: 0.5**0.9, 119_999: (1 / 120_000) ** 0.9}),
        ("cadis/ocrnet_r50_task2_bs8_50e.yaml", {0: 1.0, 527: 1.0, 528: 0.98, 1056: 0.98**2, 26_399: 0.98**49}),
    ],
)
def test_schedule(name, factors):
    cfg = load_config(str(CONFIGS / name))
    parameter = torch.nn.Parameter(torch.zeros(1))
    for iteration, factor in factors.items():
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
        scheduler.last_epoch = iteration - 1
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(factor, rel=1e-3), iteration
