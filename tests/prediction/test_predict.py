"""The verb predict on files, folders, globs and videos, with a network whose answers are known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from known_colors import CLASSES, NearestColor, quarters
from PIL import Image

from d2_contrast import predict
from d2_contrast.prediction.video import VideoReader, VideoWriter

RGB, LABEL = quarters()


@pytest.fixture
def run(color_weights, tmp_path, monkeypatch, capsys):
    """Run predict in a folder of its own; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, output="out"):
        try:
            code = predict.main(["--weights", color_weights, "--output", output, *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def save(path, image=RGB):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def read(path):
    return np.asarray(Image.open(path))


def files(folder="out"):
    found = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    assert "predict.json" in found
    return [name for name in found if name != "predict.json"]


class TestResults:
    def test_by_default_label_map_and_overlay(self, run):
        save("street.png")
        code, out, _ = run("--input", "street.png")
        assert code == 0 and out == "out: results of 1 of 1 inputs\n"
        assert files() == ["labels/street.png", "overlay/street.jpg"]
        labels = Image.open("out/labels/street.png")
        assert labels.mode == "L"
        np.testing.assert_array_equal(np.asarray(labels), LABEL)

    def test_all_kinds(self, run):
        save("street.png")
        assert run("--input", "street.png", "--save", "color", "overlay", "probabilities")[0] == 0
        assert files() == ["color/street.png", "overlay/street.jpg", "probabilities/street.npy"]
        np.testing.assert_array_equal(read("out/color/street.png"), CLASSES.palette[LABEL])
        overlay = read("out/overlay/street.jpg")
        blended = (RGB.astype(float) + CLASSES.palette[LABEL]) / 2
        assert np.abs(overlay[2:9, 2:18] - blended[2:9, 2:18]).max() < 12
        probabilities = np.load("out/probabilities/street.npy")
        assert probabilities.shape == (4, 40, 60) and probabilities.dtype == np.float16
        np.testing.assert_array_equal(probabilities.argmax(0), LABEL)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=2e-3)

    def test_ids_of_the_dataset(self, run):
        save("street.png")
        assert run("--input", "street.png", "--ids", "dataset", "--save", "labels")[0] == 0
        labels = cv2.imread("out/labels/street.png", cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, np.array([7, 11, 30, 300])[LABEL])
        classes = json.loads(Path("out/predict.json").read_text())["classes"]
        assert [(c["id"], c["name"]) for c in classes] == [(7, "red"), (11, "green"), (30, "blue"), (300, "white")]

    def test_the_record_says_what_ids_mean(self, run, color_weights):
        save("street.png")
        run("--input", "street.png", "--window", "16")
        record = json.loads(Path("out/predict.json").read_text())
        assert record["classes"][1] == {"id": 1, "name": "green", "color": [0, 128, 0]}
        assert record["weights"] == color_weights and record["window"] == [16]

    def test_options_reach_the_network(self, run, monkeypatch):
        save("street.png")
        seen = []
        original = predict._load
        monkeypatch.setattr(predict, "_load", lambda args: seen.append(original(args)) or seen[-1])
        for window, size, stride in ((["16"], [16, 16], [11, 11]), (["16", "30"], [16, 30], [11, 20])):
            code, _, err = run("--overwrite", "--input", "street.png", "--window", *window, "--amp", "--batch", "3")
            test = seen[-1].cfg.TEST
            assert code == 0 and test.AMP.ENABLED and test.SLIDING_WINDOW.ENABLED
            assert (test.SLIDING_WINDOW.SIZE, test.SLIDING_WINDOW.STRIDE) == (size, stride)
            assert max(seen[-1].model.batches) <= 3
            np.testing.assert_array_equal(read("out/labels/street.png"), LABEL)
        code, *_ = run("--overwrite", "--input", "street.png", "--save", "labels", "--", "TEST.AUG.ENABLED", "True")
        assert code == 0 and seen[-1].cfg.TEST.AUG.ENABLED

    def test_orientation_of_a_photograph(self, run):
        """The label map fits the picture as viewers show it."""
        stored = Image.fromarray(RGB).transpose(Image.ROTATE_90)
        stored.getexif()[0x0112] = 6
        stored.save("photo.png", exif=stored.getexif())
        assert Image.open("photo.png").size == (40, 60)
        assert run("--input", "photo.png")[0] == 0
        np.testing.assert_array_equal(read("out/labels/photo.png"), LABEL)

    def test_batches_of_several_sizes(self, run):
        for i, size in enumerate([(40, 60), (40, 60), (20, 30), (40, 60)]):
            save(f"in/{i}.png", quarters(*size)[0])
        assert run("--input", "in", "--batch", "3")[0] == 0
        for i, size in enumerate([(40, 60), (40, 60), (20, 30), (40, 60)]):
            np.testing.assert_array_equal(read(f"out/labels/{i}.png"), quarters(*size)[1])


class TestInputs:
    def test_a_name_that_is_too_long_for_results(self, run):
        save("in/a.png")
        save(f"in/{'x' * 240}.png")
        save("in/z.png")
        code, _, err = run("--input", "in", "--save", "labels")
        assert code == 1 and files() == ["labels/a.png", "labels/z.png"]
        assert "xx.png: expected a name of at most 230 bytes" in err

    def test_results_of_other_predictions_are_no_images(self, run):
        save("in/a.png")
        for output in ("in/first", "in/second"):
            assert run("--input", "in", output=output)[0] == 0
            assert files(output) == ["labels/a.png", "overlay/a.jpg"]
        assert run("--input", "in/first/overlay")[0] == 0  # named itself

    def test_an_empty_output(self, run):
        save("a.png")
        code, _, err = run("--input", "a.png", output="")
        assert code == 2 and "--output: expected a path, found empty text" in err and os.listdir() == ["a.png"]

    def test_what_is_left_out_of_a_folder_is_said(self, run):
        save("in/a.png")
        save("in/more/b.gif")
        Path("in/notes.TXT").write_text("hello")
        code, _, err = run("--input", "in")
        assert code == 0 and files() == ["labels/a.png", "overlay/a.jpg"]
        assert "in: left out what is no image (1 .gif, 1 .txt)" in err

    def test_subfolders_are_kept(self, run):
        for name in ("a.png", "x/a.png", "x/y/b.jpg", ".hidden/c.png"):
            save(f"in/{name}")
        Path("in/notes.txt").write_text("no image")
        assert run("--input", "in", "--save", "labels")[0] == 0
        assert files() == ["labels/a.png", "labels/x/a.png", "labels/x/y/b.png"]

    @pytest.mark.parametrize(
        ("names", "inputs", "labels"),
        [
            (["a.jpg", "a.png"], ["."], ["a.jpg", "a.png"]),
            (["a.jpg", "a.png", "a.jpg.bmp"], ["."], ["a.jpg", "a.jpg.bmp", "a.png"]),
            (["p/a.png", "q/a.png"], ["p/a.png", "q/a.png"], ["p/a", "q/a"]),
            (["p/a.png", "q/a.png"], ["p", "q"], ["p/a", "q/a"]),
            (["p/a.png", "p/b.png"], ["p", "p/b.png", "p/*.png"], ["a", "b"]),
            (["p/1/a.png", "p/2/a.png", "p/2/b.txt.png"], ["p/**/a.*"], ["1/a", "2/a"]),
            (["p/1/a.png", "p/2/a.png"], ["p/*/a.png"], ["1/a", "2/a"]),
            (["p/[1].png", "p/1.png"], ["p/[1].png"], ["[1]"]),
            (["x.0.png", "x.1.png"], ["."], ["x.0", "x.1"]),
            (["a.PNG", "b.JPeG"], ["*"], ["a", "b"]),
        ],
    )
    def test_no_result_replaces_another(self, run, names, inputs, labels):
        for name in names:
            save(f"here/{name}")
        os.chdir("here")
        code, out, _ = run("--input", *inputs, "--save", "labels", output="../out")
        assert code == 0
        assert files("../out") == sorted(f"labels/{label}.png" for label in labels)

    def test_results_are_no_input(self, run):
        save("a.png")
        for _ in range(2):
            code, out, _ = run("--input", ".", "--overwrite")
            assert code == 0 and out == "out: results of 1 of 1 inputs\n"
        assert run("--input", "out/labels", "--overwrite")[2].count("all images are results of predictions")

    def test_results_of_other_predictions_are_no_input_unless_they_are_named(self, run):
        save("in/a.png")
        assert run("--input", "in", output="in/earlier")[0] == 0
        for i, inputs in enumerate(["in", "in/**/*.png", "in/**/*"]):
            assert run("--input", inputs, output=f"other{i}")[1] == f"other{i}: results of 1 of 1 inputs\n"
        assert "all images are results" in run("--input", "in/earlier", output="other")[2]
        for i, inputs in enumerate(["in/earlier/labels", "in/earlier/labels/*", "in/earlier/labels/a.png"]):
            assert run("--input", inputs, output=f"named{i}")[1] == f"named{i}: results of 1 of 1 inputs\n"

    def test_what_cannot_be_read_is_named_and_the_others_go_on(self, run):
        save("in/a.png")
        save("in/z.png")
        Path("in/empty.png").write_bytes(b"")
        Path("in/cut.png").write_bytes(save("whole.png").read_bytes()[:120])
        Image.fromarray(np.zeros((4, 4), np.float32)).save("in/floats.tif")
        code, out, err = run("--input", "in", "--save", "labels", "--batch", "2")
        assert code == 1 and out == "out: results of 2 of 5 inputs\n"
        assert files() == ["labels/a.png", "labels/z.png"]
        lines = [line for line in err.splitlines() if "in/" in line]
        assert len(lines) == 3 and "3 of 5 inputs could not be predicted" in err
        assert "Traceback" not in err
        for name in ("empty.png: cannot read", "cut.png: cannot read", "floats.tif: the pixels"):
            assert sum(name in line for line in lines) == 1

    def test_out_of_memory(self, run, monkeypatch):
        for i in range(3):
            save(f"in/{i}.png")

        def forward(self, batched_inputs):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        monkeypatch.setattr("known_colors.NearestColor.forward", forward)
        code, _, err = run("--input", "in", "--batch", "2", "--save", "labels", "probabilities")
        assert code == 1 and files() == []
        assert err.count("40 x 60 pixels: there is not enough memory for it at once: give --window 512") == 3

    def test_images_that_the_network_refuses(self, run, monkeypatch):
        """Networks that take some sizes alone; a video of such a size, too."""
        for i, size in enumerate([(40, 60), (40, 50), (40, 60)]):
            save(f"in/{i}.png", quarters(*size)[0])
        write_video("in.avi", "MJPG", frames=2)
        forward = NearestColor.forward

        def forward_some(self, batched_inputs):
            if (size := tuple(batched_inputs[0]["image"].shape[1:])) != (40, 60):
                raise ValueError(f"an image has {size[0]} x {size[1]} pixels, expected 40 x 60")
            return forward(self, batched_inputs)

        monkeypatch.setattr(NearestColor, "forward", forward_some)
        code, out, err = run("--input", "in", "in.avi", "--save", "labels")
        assert code == 1 and out == "out: results of 2 of 4 inputs\n" and "Traceback" not in err
        assert files() == ["labels/in/0.png", "labels/in/2.png"]
        assert "in/1.png, 40 x 50 pixels: an image has 40 x 50 pixels, expected 40 x 60" in err
        assert "in.avi: an image has 48 x 64 pixels, expected 40 x 60" in err

    def test_the_limit_of_pixels_is_a_key(self, run):
        save("street.png")
        code, _, err = run("--input", "street.png", "--", "INPUT.MAX_PIXELS", "2399")
        assert code == 1 and "street.png: this image is too large (60 x 40 pixels" in err and "INPUT.MAX_PIXELS" in err
        assert run("--overwrite", "--input", "street.png", "--", "INPUT.MAX_PIXELS", "2400")[0] == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--input", "nothing.png"], "nothing.png: no such image, video or folder"),
            (["--input", "*.jpg"], "*.jpg: of 0 files that match none is an image or a video"),
            (["--input", "empty"], "empty is empty: expected a folder of images"),
            (["--input", "0", "a.png"], "camera 0 is one of 2 inputs: expected it alone"),
            (["--input", "a.png", "--window", "1", "2", "3"], "--window is [1, 2, 3]: expected a height, or"),
            (["--input", "a.png", "--window", "0"], "--window is [0]: expected a height, or height and width, of 1"),
            (["--input", "a.png", "--batch", "0"], "batch is 0: expected 1 or more"),
            (["--input", "a.png", "--device", "cuda:9"], "device 'cuda:9' cannot be used"),
            (
                ["--input", "a.png", "--save", "labels", "--", "TEST.AUGG", "1"],
                "Non-existent key: TEST.AUGG; similar keys",
            ),
            (["--input", "a.png", "--weights", "no.pth"], "no.pth: no such file of weights, nor folder of a run"),
            (["--input", "a.png", "--config-file", "no.yaml"], "no.yaml: no such config file"),
            (["--input", "a.png", "--save", "masks"], "invalid choice: 'masks'"),
            ([], "the following arguments are required: --input"),
        ],
    )
    def test_one_sentence(self, run, arguments, message):
        save("a.png")
        Path("empty").mkdir()
        code, out, err = run(*arguments)
        assert code == 2 and message in err and "Traceback" not in err and out == ""
        assert not Path("out/labels").exists()

    def test_the_folder_of_results(self, run):
        save("a.png")
        assert run("--input", "a.png")[0] == 0
        code, _, err = run("--input", "a.png")
        assert code == 2 and "holds predictions already: replace them by --overwrite, or name another folder" in err
        assert run("--input", "a.png", "--overwrite")[0] == 0
        save("mine/labels/a.png", LABEL)
        for options in ([], ["--overwrite"]):
            code, _, err = run("--input", "a.png", *options, output="mine")
            assert code == 2 and "--output mine holds files that are no predictions: name another folder" in err
        np.testing.assert_array_equal(read("mine/labels/a.png"), LABEL)
        code, _, err = run("--input", "a.png", output="a.png")
        assert code == 2 and "--output a.png is a file: expected a folder" in err


def write_video(path, codec, frames=100, size=(64, 48), fps=12.5):
    """A video whose frame i is red left of column i / 2 and blue right of it."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
    assert writer.isOpened()
    for i in range(frames):
        frame = np.full((size[1], size[0], 3), (250, 10, 10), np.uint8)
        frame[:, : i // 2] = (10, 10, 250)
        writer.write(frame)
    writer.release()
    return path


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while True:
        there, frame = capture.read()
        if not there:
            return fps, frames
        frames.append(frame[:, :, ::-1])


class TestVideos:
    @pytest.mark.parametrize(("name", "codec"), [("drive.mp4", "mp4v"), ("drive.avi", "MJPG")])
    def test_a_hundred_frames(self, run, tmp_path, name, codec):
        write_video(tmp_path / name, codec)
        code, out, err = run("--input", name, "--save", "labels", "color", "overlay", "--batch", "8")
        assert code == 0 and out == "out: results of 1 of 1 inputs\n"
        assert files() == ["color/drive.mp4", *(f"labels/drive/{i:06d}.png" for i in range(100)), "overlay/drive.mp4"]
        for i in (0, 37, 99):
            labels = read(f"out/labels/drive/{i:06d}.png")
            assert labels.shape == (48, 64)
            left = i // 2
            assert (labels[:, : max(left - 3, 0)] == 0).all() and (labels[:, left + 3 :] == 2).all()
        fps, frames = read_video("out/color/drive.mp4")
        assert fps == pytest.approx(12.5) and len(frames) == 100
        assert np.abs(frames[99][24, 20].astype(int) - (255, 0, 0)).max() < 30
        assert np.abs(frames[99][24, 60].astype(int) - (0, 0, 160)).max() < 30
        fps, frames = read_video("out/overlay/drive.mp4")
        assert fps == pytest.approx(12.5) and len(frames) == 100
        assert frames[0].shape[0] > 48 and frames[0].shape[1] >= 64  # with a legend of all classes below

    def test_by_default_an_overlay(self, run, tmp_path):
        write_video(tmp_path / "a.avi", "MJPG", frames=3, size=(63, 47))
        assert run("--input", "a.avi")[0] == 0
        assert files() == ["overlay/a.mp4"]

    def test_frames_do_not_replace_images(self, run, tmp_path):
        write_video(tmp_path / "drive.mp4", "mp4v", frames=1)
        save("drive/000000.png")
        assert run("--input", "drive", "drive.mp4", "--save", "labels")[0] == 0
        assert files() == ["labels/drive.mp4/000000.png", "labels/drive/000000.png"]

    def test_a_damaged_video(self, run, tmp_path):
        save("b.png")
        (tmp_path / "a.mp4").write_bytes(b"no video")
        code, out, err = run("--input", "a.mp4", "b.png", "--save", "labels")
        assert code == 1 and "a.mp4: cannot read this, it is damaged or no video" in err
        assert files() == ["labels/b.png"]
        whole = write_video(tmp_path / "c.avi", "MJPG", frames=50).read_bytes()
        (tmp_path / "c.avi").write_bytes(whole[: len(whole) // 2])
        code, _, err = run("--input", "c.avi", output="cut")
        assert code == 1 and "frames can be read" in err or "cannot read this" in err

    def test_paths_that_opencv_does_not_take(self):
        for use in (VideoReader, lambda path: VideoWriter(path, 25).write(RGB)):
            with pytest.raises(OSError, match="this path is not UTF-8"):
                use("gr\udcfcn.mp4")

    def test_a_camera_ends_with_an_interrupt(self, run, monkeypatch):
        class Camera:
            def __init__(self, number):
                assert number == 0
                self.left = 5

            def isOpened(self):
                return True

            def get(self, key):
                return 0.0

            def read(self):
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
                return True, RGB[:, :, ::-1].copy()

            def release(self):
                pass

        reading = cv2.VideoCapture
        monkeypatch.setattr(cv2, "VideoCapture", Camera)
        code, out, _ = run("--input", "0", "--save", "overlay", "labels")
        monkeypatch.setattr(cv2, "VideoCapture", reading)
        assert code == 0
        assert files() == [*(f"labels/camera0/{i:06d}.png" for i in range(5)), "overlay/camera0.mp4"]
        fps, frames = read_video("out/overlay/camera0.mp4")
        assert fps == pytest.approx(25) and len(frames) == 5


def test_help_is_there_at_once():
    """Nothing heavy is imported for it, and it names every option."""
    code = (
        "import sys\nfrom d2_contrast.predict import build_parser\nprint(build_parser().format_help())\n"
        "assert not {'torch', 'detectron2', 'cv2', 'numpy'} & set(sys.modules)"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for action in predict.build_parser()._actions:
        assert action.help and (action.metavar or action.option_strings[-1]) in text


def test_as_a_command_with_a_real_network(trained_twins, tmp_path):
    save(tmp_path / "a.png")
    command = [sys.executable, "-m", "d2_contrast.predict", "--weights", str(trained_twins[0]), "--input", "a.png"]
    result = subprocess.run([*command, "--output", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "out: results of 1 of 1 inputs\n"
    assert read(tmp_path / "out/labels/a.png").shape == (40, 60)
