import logging
import math
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from foreign_models import detectron2_resnet, randomise
from safetensors.torch import save_file
from tiny_models import make_batch, small_model
from torch.optim.swa_utils import AveragedModel

from d2_contrast.engine.checkpoint import TAG, ContrastCheckpointer, NonFiniteError
from d2_contrast.engine.checkpoint_files import DamagedFileError, file_kind
from d2_contrast.modeling.backbone import UPerFPN
from d2_contrast.modeling.weights import innermost_backbone

UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"
DEEPLAB = "cityscapes/deeplabv3_r101_contrast_bs12_120k.yaml"


def test_pyramids_load_the_backbone_below(tmp_path):
    theirs = randomise(torchvision.models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = small_model(UPER)
    assert isinstance(model.backbone, UPerFPN)
    head = {k: v.clone() for k, v in model.state_dict().items() if "bottom_up" not in k}
    ContrastCheckpointer(model).load(str(tmp_path / "resnet.pth"))
    assert torch.equal(model.backbone.bottom_up.body.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in head.items())


FORMATS = {
    "weights.pth": lambda state, path: torch.save(state, path),
    "wrong.safetensors": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "mmseg.pth": lambda state, path: torch.save({"state_dict": state, "meta": {"a": 1}}, path),
    "legacy.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "no_suffix": lambda state, path: save_file(state, path),
    "model.safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_recognised_by_content(name, tmp_path, caplog):
    theirs = randomise(torchvision.models.resnet18())
    path = str(tmp_path / name)
    FORMATS[name](theirs.state_dict(), path)
    model = small_model(UPER)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(model).load(path)
    assert torch.equal(model.backbone.bottom_up.body.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    (summary,) = [r.getMessage() for r in caplog.records if r.name.startswith("d2_contrast")]
    assert summary == (
        f"{path}: a ResNet; 100 of the backbone's 100 tensors loaded; missing: none; "
        "unused: fc.bias, fc.weight; of another shape: none"
    )


def test_pickles_need_a_flag(tmp_path):
    theirs = randomise(detectron2_resnet())
    state = {k: v.numpy() for k, v in theirs.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "torchvision", "matching_heuristics": True}))
    model = small_model(UPER)
    with pytest.raises(ValueError, match="R-18.pkl is a pickle file .*MODEL.WEIGHTS_ALLOW_PICKLE True"):
        ContrastCheckpointer(model).load(str(path))
    ContrastCheckpointer(model, allow_pickle=True).load(str(path))
    torch.testing.assert_close(
        model.backbone.bottom_up.body.layer4[0].downsample[0].weight, theirs.res5[0].shortcut.weight
    )


class Payload:
    """Creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("use_zip", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, use_zip):
    path, trace = str(tmp_path / "model.pth"), tmp_path / "trace"
    torch.save({"model": {"a": torch.ones(1)}, "x": Payload(str(trace))}, path, _use_new_zipfile_serialization=use_zip)
    with pytest.raises(ValueError, match=r"model.pth holds more than tensors \(io.open\).*MODEL.WEIGHTS_ALLOW_PICKLE"):
        ContrastCheckpointer(small_model(UPER)).load(path)
    assert not trace.exists()


def test_caffe2_weights_need_detectron2s_resnet(tmp_path):
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": torch.ones(2).numpy()}))
    with pytest.raises(ValueError, match="weights of Caffe2 .*build_resnet_backbone"):
        ContrastCheckpointer(small_model(UPER), allow_pickle=True).load(str(path))


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)], {"model": "x"}])
def test_files_without_weights(tmp_path, content):
    path = str(tmp_path / "model.pth")
    torch.save(content, path)
    with pytest.raises(ValueError, match="model.pth holds no weights: expected tensors by name"):
        ContrastCheckpointer(small_model(UPER)).load(path)


def test_file_kinds(tmp_path):
    for content, kind in ((b"", "other"), (b"hello, this is text", "other"), (pickle.dumps({"a": 1}), "other")):
        (tmp_path / "file").write_bytes(content)
        assert file_kind(str(tmp_path / "file")) == kind


def test_checkpoint_of_another_model_is_refused(tmp_path):
    other = small_model("cityscapes/uper_swin_t_contrast_bs8_160k.yaml")
    DetectionCheckpointer(other, str(tmp_path)).save("other")
    with pytest.raises(ValueError, match="not the weights of this backbone .a ResNet.*a Swin Transformer; 0 of"):
        ContrastCheckpointer(small_model(UPER)).load(str(tmp_path / "other.pth"))
    heads = {k: v for k, v in other.state_dict().items() if not k.startswith("backbone.")}
    torch.save({"model": heads}, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match="not the weights of this model's backbone.*whole model; "):
        ContrastCheckpointer(small_model(UPER)).load(str(tmp_path / "heads.pth"))


@pytest.mark.parametrize(("source", "target"), [(DEEPLAB, UPER), (UPER, DEEPLAB)])
def test_backbones_go_from_and_to_pyramids(tmp_path, caplog, source, target):
    theirs, ours = randomise(small_model(source)), small_model(target)
    path = str(tmp_path / "theirs.pth")
    torch.save({"model": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, path)
    checkpointer = ContrastCheckpointer(ours)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        checkpointer.load(path)
    body, expected = (innermost_backbone(m)[0].state_dict() for m in (ours, theirs))
    assert all(torch.equal(body[name], x) for name, x in expected.items())
    assert f"{path}: a ResNet; 100 of the backbone's 100 tensors loaded; missing: none" in caplog.text
    assert any(name.startswith("sem_seg_head.") for name in checkpointer.missing)
    assert not any(".body." in name for name in checkpointer.missing)


@pytest.mark.parametrize("source", [DEEPLAB, UPER])
def test_deeper_backbones_of_whole_models_are_refused(tmp_path, source):
    path = str(tmp_path / "deeper.pth")
    torch.save({"model": small_model(source, MODEL__TIMM__NAME="resnet34").state_dict()}, path)
    with pytest.raises(ValueError, match=r"backbone .a ResNet.*more than its modules have: layer1 .10."):
        ContrastCheckpointer(small_model(UPER)).load(path)


# Our own checkpoints


def test_own_checkpoints_go_through_unchanged(tmp_path, caplog):
    model, reference = small_model(UPER), small_model(UPER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(model(make_batch((64, 64), (64, 64))).values()).backward()
    optimizer.step()
    ContrastCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000001", iteration=1)
    other = torch.optim.AdamW(reference.parameters(), lr=1.0)
    checkpointer = ContrastCheckpointer(reference, str(tmp_path), optimizer=other)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 1 and other.param_groups[0]["lr"] == 1e-3
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in reference.state_dict().items())
    moments = zip(optimizer.state_dict()["state"].values(), other.state_dict()["state"].values())
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in moments)
    total = sum(not k.endswith("num_batches_tracked") for k in expected)
    assert f"{total} of the model's {total} tensors loaded; missing: none; unused: none" in caplog.text


def test_baseline_into_contrastive_model_and_back(tmp_path, caplog):
    """The projectors are missing or unused; so is a classifier for other classes."""
    baseline = small_model(UPER, MODEL__CONTRAST__ENABLED=False, MODEL__SEM_SEG_HEAD__NUM_CLASSES=4)
    ContrastCheckpointer(baseline, str(tmp_path)).save("baseline")
    model = small_model(UPER)
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(model).load(str(tmp_path / "baseline.pth"))
    assert "missing: aux_head (2), contrast (48), sem_seg_head (2); unused: none" in caplog.text
    assert "of another shape: aux_head.predictor.bias, aux_head.predictor.weight, sem_seg" in caplog.text
    assert torch.equal(model.sem_seg_head.fuse.weight, baseline.sem_seg_head.fuse.weight)
    caplog.clear()
    ContrastCheckpointer(model, str(tmp_path)).save("contrast")
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(baseline).load(str(tmp_path / "contrast.pth"))
    assert "unused: contrast (" in caplog.text


def as_before(state):
    """Names of tensors as they were when projectors stood in the meta-architecture itself."""
    return {name.replace("contrast.projectors.", "projectors."): value for name, value in state.items()}


def test_projectors_of_older_checkpoints_are_found(tmp_path, caplog):
    """With their moving average and what the optimizer knows of them."""
    model, older = small_model(UPER), small_model(UPER)
    for parameter in older.parameters():
        torch.nn.init.normal_(parameter)
    average, older_average = AveragedModel(model, use_buffers=True), AveragedModel(older, use_buffers=True)
    optimizer, older_optimizer = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, older))
    sum(older(make_batch((64, 64), (64, 64))).values()).backward()
    older_optimizer.step()
    older_average.update_parameters(older)
    checkpoint = {
        "model": as_before(older.state_dict()),
        "average": as_before(older_average.state_dict()),
        "optimizer": older_optimizer.state_dict(),
    }
    assert "projectors.res2.last.weight" in checkpoint["model"]
    assert "module.projectors.res2.last.weight" in checkpoint["average"]
    torch.save(checkpoint, tmp_path / "older.pth")
    with caplog.at_level(logging.INFO, "d2_contrast"):
        ContrastCheckpointer(model, average=average, optimizer=optimizer).load(str(tmp_path / "older.pth"))
    assert "missing: none; unused: none" in caplog.text
    for now, then in ((model, older), (average, older_average)):
        assert all(torch.equal(value, then.state_dict()[name]) for name, value in now.state_dict().items())
    for now, then in zip(model.parameters(), older.parameters()):
        momentum, older_momentum = optimizer.state[now], older_optimizer.state[then]
        assert torch.equal(momentum["momentum_buffer"], older_momentum["momentum_buffer"])


@pytest.mark.parametrize("name", ["older.safetensors", "older.pth"])
def test_weights_alone_of_older_checkpoints(tmp_path, name):
    older, model = small_model(UPER), small_model(UPER)
    torch.nn.init.normal_(older.contrast.projectors["res2"].last.weight)
    (save_file if name.endswith("safetensors") else torch.save)(as_before(older.state_dict()), tmp_path / name)
    checkpointer = ContrastCheckpointer(model)
    checkpointer.load(str(tmp_path / name))
    assert not checkpointer.missing
    assert torch.equal(*(m.contrast.projectors["res2"].last.weight for m in (older, model)))


# Damage


def flip(path, generator) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    position = generator.randrange(8 * len(data))
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


@pytest.fixture
def checkpointer(tmp_path):
    """Of a tiny network, with three checkpoints and the tag on the last."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    checkpointer = ContrastCheckpointer(network, str(tmp_path / "run"))
    for name, iteration in (("model_0000009", 9), ("model_0000099", 99), ("model_final", 100)):
        checkpointer.save(name, iteration=iteration)
    return checkpointer


BROKEN = {
    # How: what is done to the folder, which checkpoint is taken, and what is said.
    "no tag": (lambda run: (run / TAG).unlink(), "model_final", f"{TAG} is missing or empty"),
    "empty tag": (lambda run: (run / TAG).write_text(""), "model_final", f"{TAG} is missing or empty"),
    "binary tag": (lambda run: (run / TAG).write_bytes(b"\xff\0"), "model_final", f"{TAG} is missing or empty"),
    "no file": (lambda run: (run / "model_final.pth").unlink(), "model_0000099", "model_final.pth: no such file"),
    "empty": (lambda run: (run / "model_final.pth").write_bytes(b""), "model_0000099", "is damaged: it has 0 bytes"),
    "cut off": (lambda run: os.truncate(run / "model_final.pth", 999), "model_0000099", "is damaged: it was cut off"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_newest_readable_checkpoint_is_taken(checkpointer, case, caplog):
    run = Path(checkpointer.save_dir)
    break_it, expected, reason = BROKEN[case]
    break_it(run)
    logging.getLogger("d2_contrast").addHandler(caplog.handler)
    assert checkpointer.get_checkpoint_file() == str(run / f"{expected}.pth")
    assert reason in caplog.text and f"can be read, {run}/{expected}.pth" in caplog.text
    logging.getLogger("d2_contrast").removeHandler(caplog.handler)


def test_no_checkpoint_or_none_that_can_be_read(checkpointer, tmp_path):
    assert ContrastCheckpointer(checkpointer.model, str(tmp_path / "new")).get_checkpoint_file() == ""
    for path in Path(checkpointer.save_dir).glob("*.pth"):
        os.truncate(path, 100)
    with pytest.raises(DamagedFileError, match="None of the checkpoints in .*_0000009.pth is damaged.*--overwrite"):
        checkpointer.get_checkpoint_file()


def test_flipped_bits_are_found(checkpointer):
    """Or they are in a part of the file that says nothing."""
    path = Path(checkpointer.save_dir, "model_final.pth")
    intact, expected = path.read_bytes(), torch.load(path, weights_only=True)["model"]
    found, generator = 0, random.Random(0)
    for _ in range(300):
        flip(path, generator)
        try:
            checkpoint = checkpointer.read(str(path))
        except DamagedFileError as error:
            assert str(error).startswith(f"{path} is damaged: ") and "PICKLE" not in str(error)
            found += 1
        else:
            assert checkpoint["iteration"] == 100
            assert all(torch.equal(value, expected[name]) for name, value in checkpoint["model"].items())
        path.write_bytes(intact)
    assert found > 50


def test_other_formats_that_are_damaged(tmp_path):
    """Whatever the ending and format, an error of ours names the file, and none advises to allow pickles."""
    state = small_model(UPER).state_dict()
    path = tmp_path / "weights.pth"
    for write in (FORMATS["legacy.bin"], FORMATS["model.safetensors"]):
        write({name: value.clone() for name, value in state.items()}, path)
        size = path.stat().st_size
        for length in (0, 10, 100, size // 2, size - 1):
            os.truncate(path, length)
            with pytest.raises(ValueError, match="weights.pth is ") as raised:
                ContrastCheckpointer(torch.nn.Linear(1, 1)).load(str(path))
            assert isinstance(raised.value, DamagedFileError), raised.value
            write({name: value.clone() for name, value in state.items()}, path)


TENSORS = {
    "sparse": (lambda t: t.to_sparse(), "is torch.float32, torch.sparse_coo: expected real numbers"),
    "complex": (lambda t: t.to(torch.complex64), "is torch.complex64, torch.strided: expected real"),
    "whole": (lambda t: t.int(), "holds torch.int32: expected floats"),
    "not finite": (lambda t: t * math.nan, "1 of its tensors are not finite"),
    "infinite": (lambda t: t + math.inf, "1 of its tensors are not finite"),
    "none": (lambda t: None, "NoneType None: expected tensors by name"),
    "text": (lambda t: "x" * 999, r"str 'xxx.*\.\.\.: expected tensors by name"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_cannot_be_computed_with(tmp_path, case):
    """Nothing of such a file is loaded, and the checkpointer can be used again."""
    change, message = TENSORS[case]
    model = small_model(UPER)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = str(tmp_path / "model.pth")
    name = "sem_seg_head.predictor.weight"
    checkpointer = ContrastCheckpointer(model)
    torch.save({"model": {**before, name: change(before[name])}}, path)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        checkpointer.load(path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.save({"model": before}, path)
    checkpointer.load(path)


def test_masks_may_be_infinite(tmp_path):
    model = torch.nn.Linear(1, 1)
    model.register_buffer("mask", torch.full((2,), -math.inf))
    torch.save({"model": model.state_dict() | {"a.attn_mask": torch.tensor(-math.inf)}}, tmp_path / "model.pth")
    ContrastCheckpointer(model).load(str(tmp_path / "model.pth"))


def test_weights_that_are_not_finite_are_not_saved(checkpointer):
    run = Path(checkpointer.save_dir)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for tensor in (checkpointer.model[0].bias, checkpointer.model[1].running_var):
        value = tensor.detach().clone()
        with torch.no_grad():
            tensor[3] = math.nan
        with pytest.raises(NonFiniteError, match=r"model_0000199.pth is not written: 1 tensors .*good .*model_final"):
            checkpointer.save("model_0000199", iteration=199)
        with torch.no_grad():
            tensor.copy_(value)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    checkpointer.model[1].register_buffer("mask", torch.full((2,), -math.inf))
    checkpointer.save("model_0000199", iteration=199)
    assert checkpointer.last_checkpoint() == str(run / "model_0000199.pth")
