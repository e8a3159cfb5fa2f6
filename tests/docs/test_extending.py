"""Every example of docs/extending.md, as it stands there.

Lightning, Transformers, MONAI and kornia are large: where one is not installed, a stand-in has the interface that the
example uses.
"""

import importlib
import importlib.util
import itertools
import json
import math
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import detectron2
import numpy as np
import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from snippets import code_blocks
from tiny_models import make_batch
from torch.utils.data import DataLoader, TensorDataset

import d2_contrast
import d2_contrast.modeling
from d2_contrast.config import load_config
from d2_contrast.data import build_train_loader
from d2_contrast.evaluation import build_evaluator

EXAMPLES = code_blocks(Path(__file__).parents[2] / "docs" / "extending.md")
TINY = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet10t", "MODEL.UPER.OUT_CHANNELS", 8]


IN_ANOTHER_TRAINER = "The losses in another trainer"


def start(section, folder):
    """Run the example of a section and read its config, if it has one."""
    (folder / "my_parts.py").write_text(EXAMPLES[section].get("python", ""))
    names = runpy.run_path("my_parts.py")
    (folder / "my.yaml").write_text(EXAMPLES[section].get("yaml", ""))
    return names, load_config("my.yaml", TINY)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(DatasetCatalog)
    yield tmp_path
    for name in ("my_parts", "my_contrast"):
        sys.modules.pop(name, None)
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module with some attributes in the place of a package that is not installed."""

    def put(name, **attributes):
        if importlib.util.find_spec(name) is None:
            module = ModuleType(name)
            vars(module).update(attributes)
            monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def garden(folder):
    """Images and labels with the values 0, 10, 20 and 30 in quarters."""
    label = np.kron([[0, 10], [20, 30]], np.ones((32, 32))).astype(np.uint8)
    for split in ("train", "val"):
        (folder / "garden" / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.stack([label * 8] * 3, axis=-1)).save(folder / f"garden/{split}/{i}.jpg")
            Image.fromarray(label).save(folder / f"garden/{split}/{i}.png")


def test_the_page_has_these_examples():
    assert list(EXAMPLES) == [
        "Extending",
        "A dataset",
        "An augmentation",
        "A model of timm",
        "Your own class",
        "A head",
        "A pixel loss",
        *LIBRARY_LOSSES,
        "An evaluator",
        IN_ANOTHER_TRAINER,
        "PyTorch",
        "Lightning",
        "A model of SMP",
        "A model of Transformers",
        "Another meta-architecture of Detectron2",
    ]


def test_dataset(folder, garden):
    _, cfg = start("A dataset", folder)
    cfg.merge_from_list(["INPUT.CROP.ENABLED", False, "INPUT.SCALE_RANGE", [1.0, 1.0], "DATALOADER.NUM_WORKERS", 0])
    batch = next(iter(build_train_loader(cfg)))
    for sample in batch:
        assert sorted(sample["sem_seg"].unique().tolist()) == [0, 1, 2, 255]
        lightest = sample["image"].float().mean(0)[sample["sem_seg"] == 2].mean()
        assert lightest == pytest.approx(240, abs=2)


def test_augmentation(folder, garden):
    (folder / "my_dataset.py").write_text(EXAMPLES["A dataset"]["python"])
    runpy.run_path("my_dataset.py")
    _, cfg = start("An augmentation", folder)
    cfg.merge_from_list(["DATASETS.TRAIN", ["garden_train"], "DATALOADER.NUM_WORKERS", 0, "SEED", 3])
    cfg.merge_from_list(["INPUT.CROP.ENABLED", False, "INPUT.COLOR_JITTER.ENABLED", False])
    samples = [sample for batch in itertools.islice(build_train_loader(cfg), 3) for sample in batch]
    again = [sample for batch in itertools.islice(build_train_loader(cfg), 3) for sample in batch]
    for sample, same in zip(samples, again):
        assert torch.equal(sample["image"], same["image"]) and torch.equal(sample["sem_seg"], same["sem_seg"])
    labels = [sample["sem_seg"] for sample in samples]
    assert set(torch.cat([x.flatten() for x in labels]).tolist()) == {0, 1, 2, 255}
    # In the files each quarter has one label, so every column has two at most but where the picture was turned.
    assert any(len(column.unique()) == 3 for x in labels for column in x.T)


def test_training_with_own_parts(folder, garden, monkeypatch):
    (folder / "my_parts.py").write_text(EXAMPLES["A dataset"]["python"])
    (folder / "my.yaml").write_text(EXAMPLES["A dataset"]["yaml"])
    (folder / "my_train.py").write_text(EXAMPLES["Extending"]["python"])
    options = [*TINY, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    options += ["INPUT.CROP.SIZE", "[64, 64]", "VISUALIZE.NUM_IMAGES", 0, "VISUALIZE.TSNE_POINTS", 0]
    monkeypatch.setattr(sys, "argv", ["my_train.py", "--config-file", "my.yaml", *map(str, options)])
    runpy.run_path("my_train.py", run_name="__main__")
    results = json.loads((folder / "output/garden/inference/garden_val/sem_seg_results.json").read_text())
    assert {"IoU-lawn", "IoU-path", "IoU-bed"} <= set(results)


@pytest.mark.parametrize(("section", "part"), [("Your own class", "backbone.bottom_up"), ("A head", "sem_seg_head")])
def test_parts_of_a_network_are_trained(folder, section, part):
    names, cfg = start(section, folder)
    torch.manual_seed(0)
    model = build_model(cfg)
    own = model.get_submodule(part)
    assert type(own).__name__ in names
    losses = model(make_batch((64, 96), (64, 64), num_classes=12))
    assert {"loss_sem_seg", "loss_contrast_p2", "loss_contrast_p2_p5"} <= set(losses)
    sum(losses.values()).backward()
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.eval()
    (output,) = model(make_batch((50, 70)))
    assert output["sem_seg"].shape == (12, 50, 70)


def test_a_model_of_timm_by_its_name(folder):
    start("A model of timm", folder)
    cfg = load_config(
        "my.yaml", ["MODEL.DEVICE", "cpu", "MODEL.UPER.OUT_CHANNELS", 8, "MODEL.BACKBONE.PRETRAINED", False]
    )
    model = build_model(cfg)
    expected = timm.create_model(cfg.MODEL.TIMM.NAME, features_only=True).feature_info
    shapes = model.backbone.bottom_up.output_shape()
    assert [shapes[f"res{i}"].channels for i in range(2, 6)] == expected.channels()
    assert [shapes[f"res{i}"].stride for i in range(2, 6)] == expected.reduction()
    losses = model(make_batch((64, 96), num_classes=12))
    assert {"loss_sem_seg", "loss_contrast_p2"} <= set(losses)


def test_pixel_loss(folder):
    _, cfg = start("A pixel loss", folder)
    loss = d2_contrast.modeling.build_pixel_loss(cfg)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)
    targets = torch.randint(0, 3, (2, 4, 5), generator=generator)
    targets[0, :2] = 255
    terms = []
    for n, i, j in (targets != 255).nonzero().tolist():
        p = logits[n, :, i, j].softmax(0)[targets[n, i, j]].item()
        terms.append(-((1 - p) ** 2) * math.log(p))
    value = loss(logits, targets)
    assert value.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    value.backward()
    ignored = loss(logits, torch.full_like(targets, 255))
    assert ignored.item() == 0


def dice(p, y):
    return 2 * (p * y).sum(0) / (p.sum(0) + y.sum(0))


def tversky(p, y):
    hits, false, missed = (p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0)
    return hits / (hits + 0.3 * false + 0.7 * missed)


class StandInLoss(torch.nn.Module):
    """A loss of MONAI or kornia, as far as the page needs it, for where they are not installed."""

    def __init__(self, overlap, target_channel):
        super().__init__()
        self.overlap, self.target_channel = overlap, target_channel

    def forward(self, logits, targets):
        assert logits.ndim == 4
        if self.target_channel:
            assert targets.shape[1] == 1
            targets = targets[:, 0]
        terms = []
        for x, y in zip(logits.softmax(1), torch.nn.functional.one_hot(targets, logits.shape[1])):
            terms.append(1 - self.overlap(x.flatten(1).T, y.flatten(0, 1).double()).mean())
        return torch.stack(terms).mean()


def stand_in_dice(softmax, to_onehot_y):
    assert softmax and to_onehot_y
    return StandInLoss(dice, target_channel=True)


def stand_in_tversky(alpha, beta):
    assert (alpha, beta) == (0.3, 0.7)
    return StandInLoss(tversky, target_channel=False)


LIBRARY_LOSSES = {
    "A loss of another library": dice,
    "A loss that knows no ignore label": dice,
    "A loss of kornia": tversky,
}


@pytest.mark.parametrize("section", LIBRARY_LOSSES)
def test_losses_of_other_libraries(folder, section, stand_in):
    """Each is 1 - the mean over the classes of an overlap, of the pixels that are not ignored."""
    stand_in("monai", losses=SimpleNamespace(DiceLoss=stand_in_dice))
    stand_in("kornia", losses=SimpleNamespace(TverskyLoss=stand_in_tversky))
    _, cfg = start(section, folder)
    loss = d2_contrast.modeling.build_pixel_loss(cfg)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 3, (2, 8, 10), generator=generator)
    targets[0, :4] = 255
    counts = targets != 255
    p, y = logits.softmax(1).movedim(1, 3)[counts], torch.eye(3, dtype=torch.float64)[targets[counts]]
    value = loss(logits.float(), targets)
    assert value.item() == pytest.approx(1 - LIBRARY_LOSSES[section](p, y).mean().item(), abs=1e-5)
    value.backward()
    assert (logits.grad.movedim(1, 3)[~counts] == 0).all() and logits.grad.abs().sum() > 0
    nothing = loss(logits.float(), torch.full_like(targets, 255))
    assert nothing.item() == 0


def test_evaluator(folder):
    start("An evaluator", folder)
    DatasetCatalog.register("plots_val", lambda: [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}])
    MetadataCatalog.get("plots_val").set(stuff_classes=["lawn", "path", "bed"], evaluator_type="KappaEvaluator")
    evaluator = build_evaluator(None, "plots_val", str(folder))
    evaluator.reset()
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (20, 30))
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 3, label.shape))
    Image.fromarray(label.astype(np.uint8)).save("a.png")
    evaluator.process([{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}], [{"sem_seg": torch.tensor(prediction)}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["kappa"] == pytest.approx(100 * cohen_kappa_score(label.ravel(), prediction.ravel()))
    assert "mIoU" in results


@pytest.fixture
def in_another_trainer(folder):
    """Run an example that uses my_contrast.py, and return its names."""
    (folder / "my_contrast.py").write_text(EXAMPLES[IN_ANOTHER_TRAINER]["python"])

    def run(section):
        torch.manual_seed(0)
        return start(section, folder)[0]

    return run


def images_and_labels():
    batch = make_batch((128, 192), (128, 192), num_classes=3)  # so that the coarsest maps have enough positions
    return torch.stack([x["image"] for x in batch]) / 255, torch.stack([x["sem_seg"] for x in batch])


def check_gradients(*modules):
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_in_pytorch(in_another_trainer):
    names = in_another_trainer("PyTorch")
    images, labels = images_and_labels()
    first, *_, last = [names["train_step"](images, labels) for _ in range(6)]
    assert list(last) == ["cross_entropy", "loss_contrast_c2", "loss_contrast_c3", "loss_contrast_c5"] + [
        "loss_contrast_c2_c5"
    ]
    check_gradients(names["contrast"], names["head"])
    assert sum(last.values()) < 0.9 * sum(first.values())
    assert last["loss_contrast_c2"] < first["loss_contrast_c2"]


class StandInLightningModule(torch.nn.Module):
    global_step = 0

    def log_dict(self, metrics):
        self.logged = {name: value.item() for name, value in metrics.items()}


class StandInTrainer:
    """Lightning's loop over optimizer steps."""

    def __init__(self, max_steps, **_):
        self.max_steps = max_steps

    def fit(self, model, batches):
        optimizer = model.configure_optimizers()
        for i, batch in enumerate(itertools.islice(itertools.cycle(batches), self.max_steps)):
            optimizer.zero_grad()
            model.training_step(batch, i).backward()
            optimizer.step()
            model.global_step += 1
        self.callback_metrics = model.logged


class TwoMaps(torch.nn.Module):
    """A network with two feature maps, for a trainer of one's own."""

    def __init__(self):
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.coarse = torch.nn.Conv2d(8, 8, 2, stride=2)
        self.head = torch.nn.Conv2d(8, 3, 1)

    def forward(self, images):
        fine = self.fine(images).relu()
        coarse = self.coarse(fine).relu()
        logits = torch.nn.functional.interpolate(self.head(coarse), images.shape[-2:], mode="bilinear")
        return logits, {"fine": fine, "coarse": coarse}


def test_in_lightning(in_another_trainer, stand_in):
    stand_in("lightning", LightningModule=StandInLightningModule, Trainer=StandInTrainer)
    model = in_another_trainer("Lightning")["Segmentation"](TwoMaps(), {"fine": 8, "coarse": 8})
    before = {name: x.clone() for name, x in model.named_parameters()}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = importlib.import_module("lightning").Trainer(max_steps=2, accelerator="cpu", **quiet)
    trainer.fit(model, DataLoader(TensorDataset(*images_and_labels()), batch_size=2))
    assert model.global_step == 2
    for name, x in model.named_parameters():
        assert not torch.equal(x, before[name]), name
    assert set(trainer.callback_metrics) == {"cross_entropy", "loss_contrast_fine", "loss_contrast_coarse"} | {
        "loss_contrast_fine_coarse"
    }


def test_on_a_model_of_smp(in_another_trainer):
    model = in_another_trainer("A model of SMP")["ContrastiveUnet"]("resnet18", encoder_weights=None, classes=3)
    images, labels = images_and_labels()
    losses = model.losses(images, labels)
    plain = torch.nn.functional.cross_entropy(model(images), labels, ignore_index=255)
    torch.testing.assert_close(losses["cross_entropy"], plain)
    assert {"loss_contrast_c2", "loss_contrast_c5", "loss_contrast_c2_c5"} <= set(losses)
    sum(losses.values()).backward()
    check_gradients(model)


class StandInSegformer(torch.nn.Module):
    """Like SegformerForSemanticSegmentation: config in, loss, logits and hidden states out."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [3, *config.hidden_sizes]
        strides = [4, 2, 2, 2]
        self.stages = torch.nn.ModuleList(torch.nn.Conv2d(a, b, s, s) for a, b, s in zip(widths, widths[1:], strides))
        self.head = torch.nn.Conv2d(widths[1], config.num_labels, 1)

    def forward(self, pixel_values, labels=None, output_hidden_states=None):
        maps, x = [], pixel_values
        for stage in self.stages:
            maps.append(x := stage(x).relu())
        logits, loss = self.head(maps[0]), None
        if labels is not None:
            full = torch.nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = torch.nn.functional.cross_entropy(full, labels, ignore_index=255)
        return SimpleNamespace(loss=loss, logits=logits, hidden_states=tuple(maps) if output_hidden_states else None)


def test_on_a_model_of_transformers(in_another_trainer, stand_in):
    stand_in("transformers", SegformerForSemanticSegmentation=StandInSegformer, SegformerConfig=SimpleNamespace)
    transformers = importlib.import_module("transformers")
    names = in_another_trainer("A model of Transformers")
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 4], "num_labels": 3}
    config = transformers.SegformerConfig(**sizes)
    config.drop_path_rate = config.classifier_dropout_prob = 0.0
    segformer = transformers.SegformerForSemanticSegmentation(config)
    model = names["ContrastiveSegformer"](segformer)
    images, labels = images_and_labels()
    trained = model(images, labels)
    full = torch.nn.functional.interpolate(trained.logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    plain = torch.nn.functional.cross_entropy(full, labels, ignore_index=255)
    maps = {f"c{i}": x for i, x in enumerate(trained.hidden_states, start=2)}
    assert [x.shape[-1] for x in maps.values()] == [48, 24, 12, 6]
    added = trained.loss - plain
    assert 0.1 < added < 10  # each term is up to the logarithm of the number of negatives, times 0.1
    trained.loss.backward()
    check_gradients(model.contrast)
    model.eval()
    output = model(images, labels)
    torch.testing.assert_close(output.loss, segformer(images, labels=labels).loss)
    assert output.hidden_states is None and model(images).loss is None


def test_in_panoptic_fpn(folder):
    (folder / "my_parts.py").write_text(EXAMPLES["Another meta-architecture of Detectron2"]["python"])
    runpy.run_path("my_parts.py")
    (folder / "my.yaml").write_text(EXAMPLES["Another meta-architecture of Detectron2"]["yaml"])
    cfg = get_cfg()
    d2_contrast.add_contrast_config(cfg)
    zoo = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    cfg.merge_from_file(str(zoo / "COCO-PanopticSegmentation" / "panoptic_fpn_R_50_1x.yaml"))
    cfg.merge_from_file("my.yaml")
    tiny = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
    cfg.merge_from_list([*tiny, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16])
    cfg.MODEL.CONTRAST.DECAY_ITERS = 100  # which asks for the iteration
    torch.manual_seed(0)
    model = build_model(cfg)
    assert type(model).__name__ == "PanopticFPN"
    batch = make_batch((128, 192), (128, 160), num_classes=3)
    for sample in batch:
        height, width = sample["sem_seg"].shape
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, 8:40, 8:50] = True
        boxes = Boxes(torch.tensor([[8.0, 8.0, 50.0, 40.0]]))
        sample["instances"] = Instances(
            (height, width), gt_boxes=boxes, gt_classes=torch.tensor([0]), gt_masks=BitMasks(mask)
        )
    with EventStorage():  # in which Detectron2's heads count
        losses = model(batch)
    assert {"loss_sem_seg", "loss_mask", "loss_contrast_p2", "loss_contrast_p5", "loss_contrast_p2_p5"} <= set(losses)
    sum(losses.values()).backward()
    check_gradients(model.sem_seg_head.contrast)
    model.eval()
    panoptic, segments = model(batch[:1])[0]["panoptic_seg"]
    assert panoptic.shape == (128, 192)
