"""Predictions against a network whose answers are known, and against the evaluation's way of calling a network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from known_colors import CLASSES, COLORS, NearestColor, color_config, quarters
from PIL import Image

import d2_contrast
from d2_contrast import Segmentor
from d2_contrast.data import Classes
from d2_contrast.engine.stripped import save_stripped
from d2_contrast.evaluation import MultiViewInference

RGB, LABEL = quarters()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def probabilities_of(image):
    """What NearestColor means, computed apart from it."""
    distances = np.abs(image[None].astype(float) - np.array(COLORS)[:, None, None, :]).sum(-1)
    scores = np.exp(-0.05 * distances)
    return scores / scores.sum(0)


class TestCall:
    def test_an_image(self, segment):
        result = segment(RGB)
        np.testing.assert_array_equal(result.label_map, LABEL)
        assert result.label_map.dtype == np.uint8 and result.classes is CLASSES
        np.testing.assert_array_equal(result.image, RGB)

    def test_probabilities(self, segment):
        image = noise(17, 23)
        result = segment(image)
        np.testing.assert_allclose(result.probabilities, probabilities_of(image), atol=1e-5)
        assert result.probabilities.dtype == np.float32
        np.testing.assert_array_equal(result.label_map, result.probabilities.argmax(0))
        assert segment(image, probabilities=False).probabilities is None

    def test_all_forms_give_the_same(self, segment, tmp_path):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        forms = [str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(RGB), torch.tensor(RGB).permute(2, 0, 1)]
        for form in forms:
            np.testing.assert_array_equal(segment(form).label_map, LABEL)

    def test_files_as_large_as_training_takes(self, segment, tmp_path, monkeypatch):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        np.testing.assert_array_equal(segment(tmp_path / "a.png").label_map, LABEL)
        assert Image.MAX_IMAGE_PIXELS == 100

    def test_a_list_gives_a_list(self, make_segmentor):
        segment = make_segmentor(batch=2)
        images = [noise(8, 9, 0), noise(8, 9, 1), noise(8, 9, 2), noise(5, 7, 3), noise(8, 9, 4)]
        results = segment(images)
        assert segment.model.batches == [2, 1, 1, 1]
        for image, result in zip(images, results, strict=True):
            np.testing.assert_array_equal(result.label_map, probabilities_of(image).argmax(0))
            np.testing.assert_allclose(result.probabilities, probabilities_of(image), atol=1e-5)
        assert segment([]) == []
        assert isinstance(segment((RGB,)), list)

    def test_the_order_of_channels_is_that_of_the_network(self, make_segmentor):
        np.testing.assert_array_equal(make_segmentor(INPUT__FORMAT="BGR")(RGB).label_map, LABEL)

    def test_the_result_has_the_size_of_the_image(self, make_segmentor):
        segment = make_segmentor(INPUT__MIN_SIZE_TEST=80, INPUT__MAX_SIZE_TEST=1000)
        seen = []
        segment.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"].shape))
        result = segment(RGB)
        assert seen == [(3, 80, 120)] and result.probabilities.shape == (4, 40, 60)
        assert (result.label_map != LABEL).mean() < 0.06  # at the borders of the quarters

    def test_small_images(self, segment):
        assert segment(RGB[:1, :1]).label_map.tolist() == [[0]]

    def test_many_classes_take_16_bits(self, make_segmentor):
        segment = make_segmentor()
        segment.classes = Classes.numbered(300)
        assert segment(RGB, probabilities=False).label_map.dtype == np.uint16


WINDOWS = dict(
    TEST__SLIDING_WINDOW__ENABLED=True, TEST__SLIDING_WINDOW__SIZE=[16, 24], TEST__SLIDING_WINDOW__STRIDE=[11, 16]
)
VIEWS = dict(TEST__AUG__ENABLED=True, TEST__AUG__SCALES=[0.75, 1.0, 1.5], TEST__AUG__FLIP=True)
SMALL_VIEWS = dict(TEST__AUG__ENABLED=True, TEST__AUG__SCALES=[0.2, 1.0], TEST__AUG__FLIP=False)  # one is no window


@pytest.mark.parametrize(
    "options", [WINDOWS, VIEWS, WINDOWS | VIEWS, WINDOWS | SMALL_VIEWS], ids=["windows", "views", "both", "mixed"]
)
@pytest.mark.parametrize("test_size", [0, 50])
def test_predictions_are_those_of_an_evaluation(make_segmentor, options, test_size):
    """In bands, but as MultiViewInference.forward gives them, which tests of its own compare with the definition."""
    segment = make_segmentor(**options, INPUT__MIN_SIZE_TEST=test_size)
    image = noise(45, 67)
    result = segment(image)
    (output,) = segment._inference([segment._to_input(image)])
    scores = output["sem_seg"] if "TEST__AUG__ENABLED" in options else output["sem_seg"].softmax(0)
    np.testing.assert_allclose(result.probabilities, scores.numpy(), atol=1e-6)
    np.testing.assert_array_equal(result.label_map, scores.argmax(0).numpy())


def test_with_windows_the_scores_of_the_whole_image_are_never_there(make_segmentor, monkeypatch):
    segment = make_segmentor(**WINDOWS, **VIEWS)
    monkeypatch.setattr(MultiViewInference, "_allocate", None)
    largest = []
    keep = segment._keep
    monkeypatch.setattr(
        segment, "_keep", lambda first, band, *rest: (largest.append(band.shape[1]), keep(first, band, *rest))
    )
    segment(noise(300, 40), probabilities=False)
    assert sum(largest) == 300 and max(largest) <= 32


def test_progress_is_told_as_far_as_it_went(make_segmentor):
    told = []
    segment = make_segmentor(**WINDOWS)
    segment.segment_arrays([noise(300, 40), noise(30, 40)], advance=told.append)
    assert sum(told) == pytest.approx(2) and len(told) > 10 and max(told) <= 1


class TestLoad:
    def test_stripped_weights(self, color_weights):
        segment = Segmentor.load(color_weights)
        assert segment.classes == CLASSES and not segment.model.training
        np.testing.assert_array_equal(segment(RGB).label_map, LABEL)
        assert repr(segment) == f"Segmentor({color_weights}, 4 classes, on cpu)"

    def test_overrides_and_config_file(self, color_weights, tmp_path):
        assert Segmentor.load(color_weights, overrides=["TEST.AUG.ENABLED", "True"]).cfg.TEST.AUG.ENABLED
        other = tmp_path / "other.yaml"
        other.write_text(color_config(INPUT__MIN_SIZE_TEST=33).dump())
        assert Segmentor.load(color_weights, str(other)).cfg.INPUT.MIN_SIZE_TEST == 33
        shutil.copy(color_weights, tmp_path / "here.safetensors")
        other.rename(tmp_path / "config.yaml")
        assert Segmentor.load(tmp_path / "here.safetensors").cfg.INPUT.MIN_SIZE_TEST == 33

    def test_a_device_that_is_not_there(self, color_weights):
        for device in ("cuda:7", "gpu"):
            with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
                Segmentor.load(color_weights, device=device)

    def test_what_is_missing(self, tmp_path, color_weights):
        with pytest.raises(FileNotFoundError, match="nothing.pth: no such file of weights, nor folder of a run"):
            Segmentor.load(tmp_path / "nothing.pth")
        with pytest.raises(FileNotFoundError, match="holds no weights: expected model_final.pth"):
            Segmentor.load(tmp_path)
        bare = tmp_path / "bare.pth"
        torch.save({"model": {"colors": torch.zeros(4, 3)}}, bare)
        with pytest.raises(
            ValueError, match=r"bare.pth has no config: expected .*config.yaml, or name .*--config-file"
        ):
            Segmentor.load(bare)

    def test_numbers_stand_for_names_that_are_not_known(self, tmp_path, caplog):
        cfg = color_config()
        torch.save({"model": NearestColor(cfg).state_dict(), "config": cfg.dump()}, tmp_path / "a.pth")
        segment = Segmentor.load(tmp_path / "a.pth")
        assert segment.classes.names == ("class 0", "class 1", "class 2", "class 3")

    def test_batches_are_positive(self, color_weights):
        with pytest.raises(ValueError, match="batch is 0: expected 1 or more"):
            Segmentor.load(color_weights, batch=0)


def test_a_run(trained_twins, tmp_path):
    """A real run: folder, checkpoint and stripped weights say the same, and Detectron2's own predictor, too."""
    folder = trained_twins[1]
    image = noise(60, 90)
    segment = Segmentor.load(folder)
    assert segment.classes.names[0] == segment.classes.names[0].lower() and len(segment.classes) == 12
    expected = segment(image)
    with torch.no_grad():
        model = build_model(segment.cfg).eval()
        model.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True)["model"])
        (output,) = model([{"image": torch.from_numpy(image).permute(2, 0, 1)}])
    np.testing.assert_allclose(expected.probabilities, output["sem_seg"].softmax(0).numpy(), atol=1e-5)

    shutil.copy(folder / "model_final.pth", tmp_path)
    shutil.copy(folder / "model_best.safetensors", tmp_path)
    for path in (folder / "model_final.pth", folder / "model_best.safetensors", *tmp_path.iterdir(), tmp_path):
        again = Segmentor.load(path)
        np.testing.assert_allclose(again(image).probabilities, expected.probabilities, atol=1e-5)
        assert again.classes == segment.classes

    predictor = DefaultPredictor(segment.cfg)
    scores = predictor(image[:, :, ::-1])["sem_seg"]
    np.testing.assert_allclose(scores.softmax(0).numpy(), expected.probabilities, atol=1e-4)


def test_the_folder_of_a_run_may_hold_stripped_weights_alone(color_weights, tmp_path):
    shutil.copy(color_weights, tmp_path / "model_best.safetensors")
    np.testing.assert_array_equal(Segmentor.load(tmp_path)(RGB).label_map, LABEL)


def test_weights_of_other_classes_are_refused(tmp_path):
    cfg = color_config()
    save_stripped(str(tmp_path / "a.safetensors"), NearestColor(cfg), cfg, Classes.numbered(5))
    with pytest.raises(ValueError, match="names 5 classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES .* is 4"):
        Segmentor.load(tmp_path / "a.safetensors")


def test_names_of_the_package():
    assert set(d2_contrast.__all__) <= set(dir(d2_contrast))
    for name in d2_contrast.__all__:
        assert getattr(d2_contrast, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Segmenter'"):
        d2_contrast.Segmenter  # noqa: B018
    assert Path(d2_contrast.__file__).parent.name == "d2_contrast"
