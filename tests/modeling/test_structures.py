"""Every structure of the configs, small: training, inference, precision, checkpoints, several processes."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from processes import run_in_two_processes
from tiny_models import STRUCTURES, make_batch, small_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

OURS = [name for name in STRUCTURES if "shapes/" not in name]


@pytest.fixture(params=STRUCTURES)
def name(request):
    return request.param


def test_every_parameter_gets_a_gradient(name):
    model = small_model(name)
    for parameter in model.parameters():
        if (parameter == 0).all():  # timm starts residual branches as zero, which stops gradients before their end
            torch.nn.init.normal_(parameter)
    losses = model(make_batch((64, 96), (64, 96)))
    sum(losses.values()).backward()
    assert {"loss_sem_seg"} < losses.keys() and any(key.startswith("loss_contrast_") for key in losses)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_auxiliary_losses(name):
    has_aux = "ocrnet" in name or ("uper" in name and "shapes" not in name)
    assert ("loss_aux_sem_seg" in small_model(name)(make_batch((64, 64), (64, 64)))) == has_aux


@pytest.mark.parametrize("size", [(50, 71), (33, 97)])
def test_odd_sizes(name, size):
    model = small_model(name).eval()
    with torch.no_grad():
        (output,) = model([{"image": make_batch(size)[0]["image"]}])
        (resized,) = model([{"image": make_batch(size)[0]["image"], "height": 40, "width": 30}])
    assert output["sem_seg"].shape == (5, *size)
    assert resized["sem_seg"].shape == (5, 40, 30)
    assert output["sem_seg"].isfinite().all()


def test_padding_is_ignored(name):
    """A small image beside a large one trains as if it had been padded with the mean colour and ignored labels."""
    small, large = make_batch((40, 52), (64, 96))
    padded = {
        "image": torch.tensor([123.675, 116.28, 103.53] if "cadis" not in name else [0.0] * 3)
        .view(3, 1, 1)
        .repeat(1, 64, 96),
        "sem_seg": torch.full((64, 96), 255),
    }
    padded["image"][:, :40, :52] = small["image"]
    padded["sem_seg"][:40, :52] = small["sem_seg"]
    model = small_model(name)
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    losses = model([small, large])
    torch.manual_seed(1)
    expected = twin([padded, large])
    assert losses.keys() == expected.keys()
    for key in losses:
        torch.testing.assert_close(losses[key], expected[key])


@pytest.mark.parametrize("name", OURS)
def test_nothing_but_ignored_labels(name):
    model = small_model(name)
    batch = make_batch((64, 64), (64, 64))
    for sample in batch:
        sample["sem_seg"].fill_(255)
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


class RecordOperators(TorchDispatchMode):
    """The operators that run, with the shapes of their inputs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((str(func), [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]))
        return func(*args, **(kwargs or {}))


def test_contrast_costs_nothing_at_inference(name):
    """Without the branch: the same operators, the same output."""
    model = small_model(name).eval()
    plain = small_model(name, MODEL__CONTRAST__ENABLED=False).eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing and unexpected and all(key.startswith("contrast.") for key in unexpected)
    inputs = [{"image": make_batch((64, 96))[0]["image"]}]
    outputs, operators = [], []
    for network in (model, plain):
        with torch.no_grad(), RecordOperators() as record:
            outputs.append(network(inputs)[0]["sem_seg"])
        operators.append(record.calls)
    assert operators[0] == operators[1] and len(operators[0]) > 50
    assert torch.equal(*outputs)


def test_save_and_load(name, tmp_path):
    model = small_model(name).eval()
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    torch.manual_seed(9)
    other = small_model(name)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    DetectionCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
    inputs = make_batch((64, 64))
    with torch.no_grad():
        assert torch.equal(model(inputs)[0]["sem_seg"], other.eval()(inputs)[0]["sem_seg"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision(name, dtype, monkeypatch):
    """Anchors and losses are float32, gradients finite; in float16 with scaled losses, as training does it."""
    model = small_model(name, MODEL__CHANNELS_LAST=dtype == torch.bfloat16)
    batch = make_batch((64, 64), (64, 64))
    contrasted = []
    losses_of = model.contrast.losses
    monkeypatch.setattr(model.contrast, "losses", lambda *sets: contrasted.append(sets[0]) or losses_of(*sets))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype == torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.autocast("cpu", dtype):
        losses = model(batch)
    scaler.scale(sum(losses.values())).backward()
    scaler.unscale_(optimizer)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert {anchors.vectors.dtype for anchors in contrasted[0].values()} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.manual_seed(0)
    full = small_model(name)(batch)["loss_sem_seg"]
    assert math.isclose(losses["loss_sem_seg"].item(), full.item(), rel_tol=0.1)


def test_channels_last_changes_no_values(name):
    model, plain = small_model(name, MODEL__CHANNELS_LAST=True), small_model(name)
    assert list(model.state_dict()) == list(plain.state_dict())
    first = next(p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert first.is_contiguous(memory_format=torch.channels_last)
    batch, images = make_batch((64, 96), (64, 96)), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: images.append(inputs[0]))
    results = []
    for network in (model, plain):
        torch.manual_seed(0)
        losses = network(batch)
        gradients = torch.autograd.grad(sum(losses.values()), list(network.parameters()))
        network.eval()
        with torch.no_grad():
            gradient = torch.cat([x.flatten() for x in gradients])
            results.append((losses, gradient / gradient.norm(), network(batch[:1])[0]["sem_seg"]))
    # Batch norms of few values make much of rounding: single gradients differ more than their direction.
    assert results[0][1] @ results[1][1] > 0.999
    torch.testing.assert_close(*([losses, scores] for losses, _, scores in results), rtol=1e-3, atol=1e-3)
    assert len(images) == 2 and all(x.is_contiguous(memory_format=torch.channels_last) for x in images)


def train_with_another(rank):
    for name in STRUCTURES:
        options = {
            f"MODEL__{part}__NORM": "BN" for part in ("BACKBONE", "UPER", "SEM_SEG_HEAD", "AUX_HEAD", "CONTRAST")
        }
        for project in ("dense", "anchors"):
            network = small_model(name, MODEL__CONTRAST__PROJECT=project, **options)
            model = DistributedDataParallel(network, broadcast_buffers=False)
            batch = make_batch((64, 64), (64, 64), seed=rank)
            if rank == 1 and name in OURS:
                for sample in batch:  # no anchors, no valid pixel on one side: nobody may wait for a gradient
                    sample["sem_seg"].fill_(255)
            for _ in range(2):
                sum(model(batch).values()).backward()
            total = torch.stack([parameter.grad.double().abs().sum() for parameter in model.parameters()])
            totals = [torch.zeros_like(total) for _ in range(2)]
            dist.all_gather(totals, total)
            assert total.isfinite().all() and total.sum() > 0 and torch.equal(*totals), (name, project)


def test_two_processes(tmp_path):
    run_in_two_processes(train_with_another, tmp_path)
