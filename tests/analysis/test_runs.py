"""Loading runs from their folders, and what they can be compared on."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from tiny_runs import edit_config

from d2_contrast.analysis import analyze_features, check_comparable, common_dataset, load_runs
from d2_contrast.analysis.features import common_maps


def test_networks_have_the_weights_of_their_runs(twins):
    runs = load_runs(list(map(str, twins)))
    assert [run.name for run in runs] == ["baseline", "contrast"]
    for run, folder in zip(runs, twins):
        assert run.weights == folder / "model_final.pth" and not run.model.training
        saved = torch.load(run.weights, weights_only=True)["model"]
        for name, value in run.model.state_dict().items():
            torch.testing.assert_close(value, saved[name])


def test_the_last_checkpoint_counts(twins):
    folder = twins[0]
    last = torch.load(folder / "model_final.pth", weights_only=True)
    last["model"]["sem_seg_head.predictor.weight"] += 1
    torch.save(last, folder / "model_0000009.pth")
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    (run,) = load_runs([str(folder)])
    assert run.weights.name == "model_0000009.pth"
    torch.testing.assert_close(run.model.sem_seg_head.predictor.weight, last["model"]["sem_seg_head.predictor.weight"])
    (folder / "model_0000009.pth").unlink()
    assert load_runs([str(folder)])[0].weights.name == "model_final.pth"


def test_averaged_weights_are_taken(twins):
    folder = twins[0]
    edit_config(folder, lambda config: config["SOLVER"]["EMA"].update(ENABLED=True))
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    average = {f"module.{name}": value + 1 for name, value in checkpoint["model"].items()}
    average = {name: value for name, value in average.items() if "pixel_" not in name}
    checkpoint["average"] = {**average, "n_averaged": torch.tensor(5)}
    torch.save(checkpoint, folder / "model_final.pth")
    (run,) = load_runs([str(folder)])
    name = "sem_seg_head.predictor.weight"
    torch.testing.assert_close(run.model.state_dict()[name], checkpoint["model"][name] + 1)


def test_names_tell_runs_apart(twins, tmp_path):
    other = shutil.copytree(twins[0], tmp_path / "again" / "baseline")
    runs = load_runs([str(twins[0]), str(other)])
    assert [run.name for run in runs] == [f"{tmp_path.name}/baseline", "again/baseline"]
    with pytest.raises(ValueError, match="is named twice"):
        load_runs([str(other), f"{other}/../baseline"])


def test_runs_are_called_as_one_likes(twins):
    names = ["cross entropy", "with/the losses"]
    assert [run.name for run in load_runs(list(map(str, twins)), names)] == names
    for wrong in (names[:1], [names[0]] * 2):
        with pytest.raises(ValueError, match="names of 2 runs are .*: expected one for each, all differ"):
            load_runs(list(map(str, twins)), wrong)


def test_a_folder_without_a_run(tmp_path, twins):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml: expected a folder that train_net\.py"):
        load_runs([str(tmp_path / "nothing")])
    for path in [*twins[0].glob("model_*"), twins[0] / "last_checkpoint"]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"baseline holds no weights: expected model_final\.pth"):
        load_runs([str(twins[0])])


def test_weights_of_another_network(twins):
    baseline, contrast = twins
    shutil.copy(baseline / "model_final.pth", contrast / "model_final.pth")
    with pytest.raises(ValueError, match=r"contrast/model_final\.pth holds no weights for \d+ tensors"):
        load_runs([str(contrast)])


def test_a_dataset_described_in_two_ways(twins):
    def swap(config):
        config["DATASETS"]["FOLDERS"][0]["classes"].reverse()

    edit_config(twins[1], swap)
    with pytest.raises(ValueError, match=r"contrast/config\.yaml: .*there is another dataset named"):
        load_runs(list(map(str, twins)))


class TestCommonDataset:
    def test_the_first_test_dataset(self, twins):
        runs = load_runs(list(map(str, twins)))
        name, dicts = common_dataset(runs)
        assert name == runs[0].cfg.DATASETS.TEST[0] and len(dicts) == 6

    def test_different_datasets_need_a_choice(self, twins):
        edit_config(twins[1], lambda config: config["DATASETS"].update(TEST=["shapes_val"]))
        runs = load_runs(list(map(str, twins)))
        with pytest.raises(
            ValueError, match=r"baseline was tested on tiny_runs_\w+ and contrast on shapes_val: .*--dataset"
        ):
            common_dataset(runs)
        assert len(common_dataset(runs, runs[0].cfg.DATASETS.TEST[0])[1]) == 6

    def test_different_sizes_of_images(self, twins):
        edit_config(twins[1], lambda config: config["INPUT"].update(MIN_SIZE_TEST=64))
        with pytest.raises(ValueError, match=r"baseline and contrast see images in different sizes.*; choose") as error:
            common_dataset(load_runs(list(map(str, twins))))
        advice = str(error.value).partition("--opts ")[2].split()
        common_dataset(load_runs(list(map(str, twins)), overrides=advice))

    def test_unknown_and_unlabelled_datasets(self, twins, tmp_path):
        runs = load_runs([str(twins[0])])
        with pytest.raises(ValueError, match="dataset 'shape_val' is not registered; similar names: shapes_val"):
            common_dataset(runs, "shape_val")
        name = f"unlabelled_{tmp_path.name}"
        DatasetCatalog.register(name, lambda: [{"file_name": "a.png"}])
        try:
            with pytest.raises(ValueError, match="has no images with labels"):
                common_dataset(runs, name)
        finally:
            DatasetCatalog.remove(name)


class TestComparable:
    def test_other_views_are_refused(self, twins):
        edit_config(twins[1], lambda config: config["TEST"]["AUG"].update(ENABLED=True, SCALES=[1.0], FLIP=True))
        runs = load_runs(list(map(str, twins)))
        with pytest.raises(ValueError, match=r"in different ways, TEST\.AUG is off and \[\[1\.0\], True\]: .*--opts"):
            check_comparable(*runs, runs[0].cfg.DATASETS.TEST[0])
        runs = load_runs(list(map(str, twins)), overrides=["TEST.AUG.ENABLED", "False"])
        check_comparable(*runs, runs[0].cfg.DATASETS.TEST[0])

    def test_settings_of_views_that_are_off_do_not_matter(self, twins):
        edit_config(twins[1], lambda config: config["TEST"]["SLIDING_WINDOW"].update(SIZE=[9, 9]))
        runs = load_runs(list(map(str, twins)))
        check_comparable(*runs, runs[0].cfg.DATASETS.TEST[0])

    def test_the_dataset_of_the_training_need_not_be_known_here(self, twins):
        edit_config(twins[1], lambda config: config["DATASETS"].update(TRAIN=["known_elsewhere"]))
        runs = load_runs(list(map(str, twins)))
        check_comparable(*runs, runs[0].cfg.DATASETS.TEST[0])
        with pytest.raises(ValueError, match=r"contrast cannot be evaluated on camvid_11_val: .*\b11 classes"):
            check_comparable(runs[1], runs[1], "camvid_11_val")

    def test_classes_of_other_names_are_refused(self, twins):
        def rename(config):
            (folders,) = config["DATASETS"]["FOLDERS"]
            folders["name"] += "_renamed"
            folders["classes"][3] = "spots"
            config["DATASETS"].update(TRAIN=[folders["name"]], TEST=[folders["name"]])

        edit_config(twins[1], rename)
        runs = load_runs(list(map(str, twins)))
        with pytest.raises(ValueError, match="contrast cannot be evaluated on .*: class 3 is 'dots'.* and 'spots'"):
            check_comparable(*runs, runs[0].cfg.DATASETS.TEST[0])

    def test_other_classes_are_refused(self, twins):
        runs = load_runs(list(map(str, twins)))
        with pytest.raises(ValueError, match=r"baseline cannot be evaluated on camvid_11_val: .*\b11 classes"):
            check_comparable(*runs, "camvid_11_val")


class TestCommonMaps:
    def run(self, name, maps, enabled=False, stride=4):
        shapes = {m: SimpleNamespace(channels=8, stride=stride) for m in maps}
        cfg = SimpleNamespace(
            MODEL=SimpleNamespace(
                CONTRAST=SimpleNamespace(ENABLED=enabled, IN_FEATURES=[m for m in maps if m != "res1"]),
                SEM_SEG_HEAD=SimpleNamespace(IN_FEATURES=maps[-1:]),
            )
        )
        model = SimpleNamespace(backbone=SimpleNamespace(output_shape=lambda: shapes))
        return SimpleNamespace(name=name, cfg=cfg, model=model)

    def test_those_of_contrastive_runs_that_all_have(self):
        baseline = self.run("baseline", ["res1", "res2", "res3", "res5"])
        one, other = self.run("one", ["res2", "p2"], enabled=True), self.run("other", ["res1", "res3"], enabled=True)
        one.model.backbone.output_shape()["res3"] = other.model.backbone.output_shape()["res3"]
        other.model.backbone.output_shape()["res2"] = one.model.backbone.output_shape()["res2"]
        assert common_maps([baseline, one, other]) == {"res2": 4, "res3": 4}

    def test_fine_to_coarse_whatever_their_order(self):
        run = self.run("a", ["res5", "res2", "res1"])
        for name, stride in (("res5", 32), ("res2", 4), ("res1", 4)):
            run.model.backbone.output_shape()[name] = SimpleNamespace(channels=8, stride=stride)
        assert list(common_maps([run], ["res5", "res2"]).items()) == [("res2", 4), ("res5", 32)]
        assert list(common_maps([run], ["res5", "res2", "res1"])) == ["res2", "res1", "res5"]

    def test_concatenated_maps_have_the_stride_of_the_first(self):
        baseline, run = self.run("baseline", ["res2", "res3"]), self.run("a", ["res2", "res3", "res5"], enabled=True)
        run.cfg.MODEL.CONTRAST.IN_FEATURES = ["res2+res3", "res3+res5"]
        for each in (baseline, run):
            each.model.backbone.output_shape()["res3"] = SimpleNamespace(channels=8, stride=8)
        assert common_maps([baseline, run]) == {"res2+res3": 4}
        assert common_maps([run], ["res3+res5"]) == {"res3+res5": 8}
        with pytest.raises(ValueError, match="baseline has no feature map 'res5': it has res2, res3"):
            common_maps([baseline, run], ["res2", "res3+res5"])

    def test_what_does_not_fit_is_named(self):
        a, b = self.run("a", ["res2", "res3"]), self.run("b", ["p2"])
        with pytest.raises(ValueError, match=r"no feature map in common .*a: res2 \(stride 4\), res3 .*; b: p2 \(st"):
            analyze_features([a, b], "shapes_val", [])
        with pytest.raises(ValueError, match="b has no feature map 'res2': it has p2"):
            common_maps([a, b], ["res2"])
        with pytest.raises(ValueError, match="feature map res2 has stride 4 in a and 8 in c"):
            common_maps([a, self.run("c", ["res2"], stride=8)], ["res2"])

    def test_maps_of_different_strides_are_left_out(self):
        a, b = self.run("a", ["res2", "res3", "res4"]), self.run("b", ["res2", "res3", "res4"], stride=8)
        b.model.backbone.output_shape()["res3"] = SimpleNamespace(channels=8, stride=4)
        assert common_maps([a, b]) == {"res3": 4}
        assert common_maps([self.run("a", ["res2"]), self.run("b", ["res2"], stride=8)]) == {}
