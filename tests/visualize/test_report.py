"""All pictures of a run: which are drawn, and that they are pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import SemanticSegmentor
from matplotlib.figure import Figure
from PIL import Image

from d2_contrast.visualize import report, write_report

CONFUSION = np.array([[5, 1, 0], [0, 9, 2], [0, 0, 7]])


def check(paths, names):
    assert [Path(p).name for p in paths] == names
    for path in paths:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
        assert 300 < width < 4000 and 300 < height < 4000
        assert np.asarray(image.convert("L")).std() > 5, "an empty picture"


def write_metrics(cfg):
    Path(cfg.OUTPUT_DIR).mkdir()
    records = [{"iteration": i, "total_loss": 3 - i / 10, "lr": 0.1} for i in range(10)]
    Path(cfg.OUTPUT_DIR, "metrics.json").write_text("\n".join(map(json.dumps, records)))


@pytest.mark.parametrize("contrast", [True, False])
def test_a_labelled_dataset_gives_all_pictures(contrast, make_model, picture_dataset):
    cfg = picture_dataset()
    write_metrics(cfg)
    model = make_model(contrast).train()
    paths = write_report(cfg, model, CONFUSION)
    check(paths, ["predictions.png", "tsne.png", "confusion.png", "curves.png"])
    assert model.training


def test_one_class_alone(make_model, picture_dataset):
    paths = write_report(picture_dataset(labels=[1]), make_model(True), np.diag([0, 3, 0]))
    check(paths, ["predictions.png", "tsne.png", "confusion.png"])


def test_labels_that_are_all_ignored(make_model, picture_dataset):
    paths = write_report(picture_dataset(labels=[255]), make_model(True), np.zeros((3, 3), int))
    check(paths, ["predictions.png", "tsne.png", "confusion.png"])


def test_the_worst_image_comes_first(make_model, picture_dataset, monkeypatch):
    """Images whose predictions are right in a share of the pixels that the test sets; one has no labelled pixel."""
    shares = iter([0.75, None, 0.25, 0.5])

    def predict(segment, mapper, dataset_dict, metadata):
        label, share = np.zeros((4, 5), np.uint8), next(shares)
        prediction = np.arange(20).reshape(4, 5) >= 20 * (share or 0)
        return report.Sample(str(share), np.zeros((4, 5, 3), np.uint8), {"": prediction}, label + 255 * (share is None))

    drawn = []
    monkeypatch.setattr(report, "_predict", predict)
    monkeypatch.setattr(report, "draw_predictions", lambda samples, *_: drawn.extend(s.name for s in samples))
    cfg = picture_dataset()
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    report._draw_predictions(cfg, make_model(True), None, [{}] * 4, metadata)
    assert drawn == ["0.25", "0.5", "0.75", "None"]


def test_images_without_labels(make_model, picture_dataset):
    check(write_report(picture_dataset(labelled=False), make_model(True)), ["predictions.png"])


def test_pictures_can_be_turned_off(make_model, picture_dataset):
    cfg = picture_dataset()
    cfg.VISUALIZE.NUM_IMAGES = cfg.VISUALIZE.TSNE_POINTS = 0
    assert write_report(cfg, make_model(True)) == []


def test_a_resized_image_is_labelled_where_it_should_be(make_model, picture_dataset):
    cfg = picture_dataset()
    cfg.INPUT.MIN_SIZE_TEST = 64
    check(write_report(cfg, make_model(True)), ["predictions.png", "tsne.png"])


def test_a_network_and_its_twin_show_the_same_maps(make_model, picture_dataset, monkeypatch):
    """Not embeddings on one side and features on the other: equal backbones give equal pictures."""
    drawn = []
    monkeypatch.setattr(report, "draw_embeddings", lambda columns, *rest: drawn.append(columns) or Figure())
    for contrast in (True, False):
        cfg = picture_dataset()
        cfg.VISUALIZE.NUM_IMAGES = 0
        cfg.MODEL.CONTRAST.ENABLED = contrast
        write_report(cfg, make_model(contrast))
    with_losses, without = (maps for ((_, maps),) in (columns.items() for columns in drawn))
    assert list(with_losses) == list(without) == ["fine (stride 4)", "coarse (stride 8)"]
    for name in with_losses:
        np.testing.assert_array_equal(with_losses[name].vectors, without[name].vectors)


def test_detectron2s_own_segmentor(make_model, picture_dataset):
    model = make_model(False)
    plain = SemanticSegmentor(
        backbone=model.backbone, sem_seg_head=model.sem_seg_head, pixel_mean=[127.0] * 3, pixel_std=[50.0] * 3
    )
    check(write_report(picture_dataset(), plain, CONFUSION), ["predictions.png", "tsne.png", "confusion.png"])


def test_names_are_text(make_model, picture_dataset):
    """Names that are broken formulas, hidden or not even text elsewhere."""
    cfg = picture_dataset()
    names = [r"$\frac{$", "_a_b\n\0", "x" * 500 + "\udce9"]
    MetadataCatalog.get(cfg.DATASETS.TEST[0]).__dict__["stuff_classes"] = names
    Path(cfg.OUTPUT_DIR).mkdir()
    record = {"iteration": 1, "total_loss": 1.0, "sem_seg/mIoU-$a_{$": 3.0}
    Path(cfg.OUTPUT_DIR, "metrics.json").write_text(json.dumps(record))
    paths = write_report(cfg, make_model(True), CONFUSION)
    check(paths, ["predictions.png", "tsne.png", "confusion.png", "curves.png"])


def test_a_picture_that_fails_is_left_out(make_model, picture_dataset, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no such picture")

    monkeypatch.setattr("d2_contrast.visualize.embedding.project", fail)
    paths = write_report(picture_dataset(), make_model(True), CONFUSION)
    check(paths, ["predictions.png", "confusion.png"])
    assert "tsne.png could not be drawn (RuntimeError: no such picture)" in caplog.text
    assert not (Path(paths[0]).parent / "tsne.png").exists()
