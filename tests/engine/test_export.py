"""Networks of the paper, small, in every format: what is written gives what PyTorch gives, or is not there."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.swin import BasicLayer
from PIL import Image
from snippets import code_blocks
from timm.models.swin_transformer import SwinTransformerBlock
from tiny_models import CONFIGS, STRUCTURES, small_config
from torch import nn

from d2_contrast.config import load_config
from d2_contrast.data import Classes
from d2_contrast.data.datasets.shapes_drawing import CLASSES, draw
from d2_contrast.engine import export
from d2_contrast.engine.checkpoint import ContrastCheckpointer
from d2_contrast.engine.export import FORMATS, InexactExportError, check_installed, export_network
from d2_contrast.engine.stripped import save_stripped
from d2_contrast.export import SUFFIXES, main
from d2_contrast.modeling.exportable import AveragePool, ExportableFunctions, SwinStage

UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"


def load(path, kind):
    """A written network, as a function from images to its output."""
    if kind == "torchscript":
        return torch.jit.load(path)
    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def make_network(name, **overrides):
    """A network of the configs with weights and statistics as training might leave them, and its config."""
    torch.manual_seed(0)
    cfg = small_config(name, **overrides)
    model = build_model(cfg).eval()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return cfg, model


@torch.no_grad()
def predict(model, images):
    return torch.stack([output["sem_seg"] for output in model([{"image": image} for image in images])])


# torch.export takes ten seconds and more: here it has a smaller network below, and these in benchmarks/export.py.
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_networks(name, kind, tmp_path):
    """The file itself, at sizes that it was never tried on."""
    cfg, model = make_network(name)
    path = str(tmp_path / f"model{SUFFIXES[kind]}")
    comparisons = export_network(cfg, model, path, kind)
    assert len({c.size for c in comparisons}) == 5 and all(c.difference <= 1e-4 * c.largest for c in comparisons)
    run = load(path, kind)
    for size in [(4, 61, 33), (1, 130, 257)]:
        images = torch.randint(0, 256, (size[0], 3, *size[1:]), generator=torch.Generator().manual_seed(1)).float()
        expected = predict(model, images)
        with torch.no_grad():
            given = run(images)
        assert expected.std() > 0
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


class Windows(nn.Module):
    """A stage of a Swin Transformer, with and without shift, on the pixels of an image."""

    def __init__(self):
        super().__init__()
        self.stage = SwinStage(BasicLayer(4, 2, 1, window_size=3, drop_path=0.0))

    def forward(self, images):
        height, width = images.shape[2:]
        if not torch.jit.is_tracing():
            torch._check(height >= 1)
            torch._check(width >= 1)
        return self.stage(images.flatten(2).transpose(1, 2), height, width)[0]


def test_windows_by_torch_export(tmp_path, monkeypatch):
    """Images of less than a window, of one, and of several; the least side is that of images for a whole network."""
    monkeypatch.setattr(export, "SMALLEST_SIDE", 0)
    torch.manual_seed(0)
    write, read = FORMATS["torch.export"]
    network = Windows().eval()
    with torch.no_grad(), (tmp_path / "stage.pt2").open("wb") as file:
        write(network, torch.rand(2, 4, 8, 7), file, {})
        file.flush()
        run = read(file.name)
        for size in [(1, 1, 1), (1, 3, 3), (3, 2, 10), (1, 9, 3)]:
            images = torch.rand(size[0], 4, *size[1:])
            torch.testing.assert_close(run(images), network(images))


class TimmWindows(nn.Module):
    """A shifted block of timm's Swin Transformer on the pixels of an image."""

    argmax = False

    def __init__(self):
        super().__init__()
        options = {"window_size": 7, "shift_size": 3, "always_partition": True, "dynamic_mask": True}
        self.block = SwinTransformerBlock(4, (14, 14), num_heads=2, **options)

    def forward(self, images):
        with ExportableFunctions():
            return self.block(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_timms_windows_by_onnx(tmp_path):
    """Images of several windows, and of less than the shift."""
    torch.manual_seed(0)
    write, read = FORMATS["onnx"]
    network = TimmWindows().eval()
    nn.init.normal_(network.block.attn.relative_position_bias_table)
    with torch.no_grad(), (tmp_path / "block.onnx").open("wb") as file:
        write(network, torch.rand(2, 4, 16, 15), file, {})
        file.flush()
        run = read(file.name)
        for size in [(1, 1, 1), (3, 2, 4), (1, 5, 20)]:
            images = torch.rand(size[0], 4, *size[1:])
            x = images.permute(0, 2, 3, 1)
            torch.testing.assert_close(run(images), network.block(x).permute(0, 3, 1, 2), atol=1e-5, rtol=0)


def test_plain_vision_transformers(tmp_path):
    """Their tables of positions are fitted to each image."""
    vit = {"MODEL__UPER__BOTTOM_UP": "ViTPyramid", "MODEL__TIMM__NAME": "test_vit", "MODEL__VIT__OUT_CHANNELS": 8}
    cfg, model = make_network(UPER, **vit)
    nn.init.normal_(model.backbone.bottom_up.net.body.pos_embed)
    comparisons = export_network(cfg, model, tmp_path / "model", "onnx")
    assert len({c.size for c in comparisons}) == 5


def test_networks_that_cannot_be_traced(tmp_path, monkeypatch, capfd):
    """One sentence, and nothing that torch's exporter prints."""
    cfg, model = make_network(UPER, MODEL__UPER__POOL_SCALES=[1])
    monkeypatch.setattr(AveragePool, "forward", lambda self, x: torch.special.bessel_j0(x.mean((2, 3), keepdim=True)))
    with pytest.raises(InexactExportError, match="torch cannot trace this network for onnx, .*special_bessel_j0"):
        export_network(cfg, model, tmp_path / "model.onnx", "onnx")
    told = capfd.readouterr()
    assert not told.out and not told.err


def test_label_maps(tmp_path):
    cfg, model = make_network(UPER)
    nn.init.normal_(model.sem_seg_head.predictor.weight)
    path = str(tmp_path / "labels.onnx")
    export_network(cfg, model, path, "onnx", argmax=True)
    images = torch.randint(0, 256, (2, 3, 50, 40), generator=torch.Generator().manual_seed(1)).float()
    labels = load(path, "onnx")(images)
    assert labels.dtype == torch.int64 and len(labels.unique()) > 1
    assert torch.equal(labels, predict(model, images).argmax(1))
    (output,) = onnx.load(path).graph.output
    assert output.name == "labels" and [d.dim_param for d in output.type.tensor_type.shape.dim] == [
        "batch",
        "height",
        "width",
    ]


def frozen_mean(self, x):
    """The pool of one bin, which writes down the number of positions of the example."""
    return x.sum((2, 3), keepdim=True) / (int(x.shape[2]) * int(x.shape[3]))


def frozen_weights(self, x):
    """The pool of one bin by weights of the size of the example."""
    weights = torch.full((int(x.shape[2]) * int(x.shape[3]), 1), 1 / (int(x.shape[2]) * int(x.shape[3])))
    return (x.flatten(2) @ weights)[..., None]


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    "pool, message",
    [
        (frozen_mean, r"is not written: it is not exact. 1 image of 225 x 320 pixels: differs from PyTorch by \d"),
        (frozen_weights, "is not written: what was written does not run with 1 image of 225 x 320 pixels"),
    ],
    ids=["wrong", "does not run"],
)
def test_frozen_sizes_are_refused(kind, pool, message, tmp_path, monkeypatch):
    """A network that is right at the size that was traced, and at no other."""
    cfg, model = make_network(UPER, MODEL__UPER__POOL_SCALES=[1])
    monkeypatch.setattr(AveragePool, "forward", pool)
    path = tmp_path / "model.bin"
    path.write_text("an earlier one")
    with pytest.raises(InexactExportError, match=message):
        export_network(cfg, model, path, kind)
    assert path.read_text() == "an earlier one" and list(tmp_path.iterdir()) == [path]


def test_networks_that_do_not_run_themselves(tmp_path):
    """Detectron2's head, which pools in windows of the crop."""
    cfg, model = make_network("shapes/deeplabv3plus_r18_contrast.yaml", INPUT__CROP__ENABLED=True)
    with pytest.raises(InexactExportError, match="the network itself does not run with .*`pool_kernel_size` must be"):
        export_network(cfg, model, tmp_path / "model.pt", "torchscript")
    assert not list(tmp_path.iterdir())


def test_networks_that_are_not_finite_are_refused(tmp_path):
    cfg, model = make_network(UPER)
    nn.init.constant_(model.sem_seg_head.predictor.bias, float("nan"))
    with pytest.raises(InexactExportError, match="differs from PyTorch by nan"):
        export_network(cfg, model, tmp_path / "model.pt", "torchscript")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run on the embedded dataset leaves: its config and a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    options = "MODEL.DEVICE cpu MODEL.TIMM.NAME resnet10t MODEL.SEM_SEG_HEAD.NAME ASPPHead"
    options += " MODEL.SEM_SEG_HEAD.IN_FEATURES ['res5'] MODEL.SEM_SEG_HEAD.ASPP_CHANNELS 8"
    cfg = load_config(str(CONFIGS / "shapes" / "Base-shapes.yaml"), options.split())
    torch.manual_seed(0)
    ContrastCheckpointer(build_model(cfg), str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def read_metadata(path, kind):
    if kind == "onnx":
        return {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    files = {"metadata.json": ""}
    (torch.jit.load(path, _extra_files=files) if kind == "torchscript" else torch.export.load(path, extra_files=files))
    return json.loads(files["metadata.json"])


@pytest.mark.parametrize("kind", FORMATS)
def test_pages_examples(kind, run_folder, tmp_path, monkeypatch, capsys):
    """The command, and what docs/export.md does with its file."""
    monkeypatch.chdir(tmp_path)
    name = f"model{SUFFIXES[kind]}"
    assert main(["--weights", str(run_folder), "--output", name]) == 0
    told = capsys.readouterr()
    assert told.out == f"{name}\n" and "3 images of 37 x 97 pixels: differs from PyTorch by " in told.err

    about = read_metadata(name, kind)
    assert json.loads(about["classes"]) == list(CLASSES) and len(json.loads(about["colors"])) == 12
    assert about["channels"] == "RGB" and json.loads(about["pixel_mean"]) == [123.675, 116.28, 103.53]
    assert "NAME: ASPPHead" in about["config"] and about["ignore_label"] == "255"

    image, _ = draw("val", 0)
    Image.fromarray(image).save("photo.png")
    page = code_blocks(CONFIGS.parent / "docs" / "export.md")
    section = {"onnx": "ONNX Runtime", "torch.export": "torch.export", "torchscript": "TorchScript"}[kind]
    names = {}
    exec(page[section]["python"], names)
    model = build_model(load_config(str(run_folder / "config.yaml"))).eval()
    ContrastCheckpointer(model).load(str(run_folder / "model_final.pth"))
    expected = predict(model, torch.from_numpy(image).permute(2, 0, 1)[None])[0].argmax(0)
    assert np.array_equal(np.asarray(names["label_map"]), expected)
    if kind == "onnx":
        colors = np.array(json.loads(about["colors"]))
        assert np.array_equal(np.asarray(Image.open("label_map.png")), colors[expected])


def test_classes_that_the_weights_name(run_folder, tmp_path, monkeypatch):
    """Stripped weights tell classes that no dataset here has."""
    monkeypatch.chdir(tmp_path)
    cfg = load_config(str(run_folder / "config.yaml"))
    classes = Classes.numbered(12, ignore_label=200)
    save_stripped("a.safetensors", build_model(cfg), cfg, classes, iteration=1)
    assert main(["--weights", "a.safetensors", "--output", "a.pt"]) == 0
    about = read_metadata("a.pt", "torchscript")
    assert tuple(json.loads(about["classes"])) == classes.names and about["ignore_label"] == "200"


def test_refusal_on_the_command_line(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(AveragePool, "forward", frozen_mean)
    output = tmp_path / "model.pt"
    assert main(["--weights", str(run_folder / "model_final.pth"), "--output", str(output)]) == 1
    assert f"error: {output} is not written: it is not exact. 1 image of 225 x 320 pixels" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--weights", "RUN", "--output", "model.tflite"],
            "name a --format, or end the name with .onnx or .pt2 or .pt",
        ),
        (["--weights", "nowhere", "--output", "a.onnx"], "nowhere: no such file"),
        (["--weights", "RUN", "--output", "a.onnx", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16"], "holds no weights for"),
        (["--weights", "RUN", "--output", "RUN/model_final.pth", "--format", "onnx"], "is the file of the weights"),
        (["--weights", "RUN", "--config-file", "shapes/nothing", "--output", "a.pt"], "no such config file"),
    ],
)
def test_mistakes(arguments, message, run_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([word.replace("RUN", str(run_folder)) for word in arguments])
    told = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and message in told[-1]
    assert not list(tmp_path.iterdir())


def test_weights_without_config(run_folder, tmp_path, capsys):
    weights = shutil.copy(run_folder / "model_final.pth", tmp_path)
    with pytest.raises(SystemExit):
        main(["--weights", weights, "--output", str(tmp_path / "a.pt")])
    assert f"{weights} has no config: expected" in capsys.readouterr().err


def test_old_torch(monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda module, args: None)
    with pytest.raises(ValueError, match=r"torch \d.* cannot export .*: take a newer one, or --format"):
        check_installed("torch.export")


def test_help_needs_no_torch():
    code = "import sys; from d2_contrast.export import build_parser; print(build_parser().format_help()); "
    code += "sys.exit('torch' in sys.modules or 'detectron2' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--format {onnx,torch.export,torchscript}" in told and FORMATS.keys() == SUFFIXES.keys()
