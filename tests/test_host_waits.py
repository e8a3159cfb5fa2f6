"""How often the host waits for a device: for the losses, once in a step, and for what an image needs."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from host_waits import DEVICE, HostWaits
from tiny_models import make_batch, small_model

from d2_contrast.contrast import AnchorSampler, MultiScaleContrast
from d2_contrast.engine.train_step import NonFinitePolicy, TrainStep
from d2_contrast.evaluation import MultiViewInference

UPER = "cityscapes/uper_r101_contrast_bs12_120k.yaml"
NETWORKS = [
    UPER,
    "cityscapes/ocrnet_hrnet_w48_contrast_bs12_120k.yaml",
    "cadis/ocrnet_r50_task2_contrast_bs8_50e.yaml",
    "cityscapes/deeplabv3_r101_contrast_bs12_120k.yaml",
    "cityscapes/uper_swin_t_contrast_bs8_160k.yaml",
]


class TestCounter:
    """The counter itself."""

    WAITS = {
        "number": lambda x: float(x.sum()),
        "comparison": lambda x: bool((x > 0).any()),
        "mask": lambda x: x[x > 0],
        "mask to write": lambda x: x.index_put_((x > 0,), torch.zeros((), device=DEVICE)),
        "to the host": lambda x: x.cpu(),
        "to the host, said not to wait": lambda x: x.to("cpu", non_blocking=True),
        "from the host": lambda x: torch.zeros(3).to(DEVICE),
        "into a tensor": lambda x: x.copy_(torch.zeros(4)),
        "unique": lambda x: x.unique(),
        "nonzero": lambda x: x.nonzero(),
        "repeats": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1, 1]).to(DEVICE, non_blocking=True)),
    }

    @pytest.mark.parametrize("kind", WAITS)
    def test_waits(self, kind):
        with HostWaits() as host:
            x = torch.arange(4.0).to(DEVICE, non_blocking=True)
            assert host.waits == []
            self.WAITS[kind](x)
        assert len(host.waits) == 1

    def test_no_waits(self):
        with HostWaits() as host:
            x = torch.arange(4.0).to(DEVICE, non_blocking=True).requires_grad_()
            index = torch.tensor([2, 3]).to(DEVICE, non_blocking=True)
            loss = torch.where(x > 0, x, 0)[index].square().sum() + torch.zeros(2, device=DEVICE).sum()
            loss.backward()
            assert host.waits == []
            assert x.grad.cpu().tolist() == [0, 0, 4, 6] and loss.item() == 13
            assert len(host.waits) == 2

    def test_host_and_device_do_not_mix(self):
        with HostWaits(), pytest.raises(RuntimeError, match="beside one of the host"):
            torch.zeros(3).to(DEVICE) + torch.zeros(3)


def waits_of_a_step(name, accumulation_steps=1, policy="stop", amp_dtype=None, **options) -> list[str]:
    """The waits of the second step of a training."""
    model = small_model(name, **options)
    with HostWaits() as host, EventStorage() as storage:
        model.to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        batches = [make_batch((64, 64), (64, 60)) for _ in range(2 * accumulation_steps)]
        step = TrainStep(
            model,
            batches,
            optimizer,
            accumulation_steps=accumulation_steps,
            amp_dtype=amp_dtype,
            non_finite=NonFinitePolicy(policy),
        )
        for storage.iter in range(2):
            step.iter = storage.iter
            host.waits.clear()
            step.run_step()
        assert storage.latest()["total_loss"][1] == 1
    return host.waits


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_waits_for_its_losses_alone(name):
    waits = waits_of_a_step(name)
    assert len(waits) == 1 and "train_step.py" in waits[0], waits


@pytest.mark.parametrize(
    "options",
    [
        {"MODEL__CONTRAST__PROJECT": "anchors"},
        {"MODEL__CONTRAST__SAMPLER": "image_class"},
        {"MODEL__CONTRAST__GATHER": True},
        {"MODEL__PIXEL_LOSS__NAME": "OHEM"},
        {"MODEL__PIXEL_LOSS__NAME": "RMI"},
        {"accumulation_steps": 2},
        {"policy": "skip"},
    ],
    ids=str,
)
def test_whatever_the_settings(options):
    assert len(waits_of_a_step(UPER, **options)) == 1


def test_lovasz_asks_for_its_classes():
    """It sorts the pixels once for each class that there is."""
    options = {"MODEL__PIXEL_LOSS__NAME": "LovaszSoftmax", "MODEL__PIXEL_LOSS__AUX_NAME": "CrossEntropy"}
    assert len(waits_of_a_step(UPER, **options)) == 2


def test_float16_adds_the_wait_of_the_scaler():
    assert len(waits_of_a_step(UPER, amp_dtype="float16")) == 2


def test_statistics_take_one_copy_more():
    assert len(waits_of_a_step(UPER, MODEL__CONTRAST__LOG_PERIOD=1)) == 2


@pytest.mark.parametrize("method", ["pixels", "regions", "pixels+regions", "averages"])
def test_memories_are_on_the_device(method):
    """They train there, wait or not, as on the host."""
    results = []
    for where in ("cpu", DEVICE):
        torch.manual_seed(0)
        model = small_model(UPER, MODEL__CONTRAST__MEMORY__METHOD=method)
        with HostWaits(), EventStorage():
            model.to(where)
            for _ in range(2):  # the second batch meets the first
                losses = model(make_batch((64, 64), (64, 60)))
                sum(losses.values()).backward()
            results.append({name: loss.item() for name, loss in losses.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert any(results[0][name] > 0 for name in losses if "contrast" in name)


@pytest.mark.parametrize("where", ["cpu", DEVICE], ids=str)
def test_labels_may_be_on_either_side(where):
    """Those of the device are fetched once for all scales."""
    labels = torch.arange(4).repeat_interleave(16).view(1, 8, 8)
    criterion = MultiScaleContrast({"c2": 1.0, "c3": 0.5}, {("c2", "c3"): 1.0}, sampler=AnchorSampler(max_anchors=16))
    maps = {"c2": torch.randn(1, 5, 8, 8), "c3": torch.randn(1, 5, 4, 4)}
    torch.manual_seed(0)
    expected = criterion(maps, labels)
    torch.manual_seed(0)
    with HostWaits() as host:
        on_device = {name: x.to(DEVICE, non_blocking=True).requires_grad_() for name, x in maps.items()}
        losses = criterion(on_device, labels.to(where, non_blocking=True))
        sum(losses.values()).backward()
        assert len(host.waits) == (where != "cpu") + 1  # that embeddings are finite is looked at once
        assert {name: loss.item() for name, loss in losses.items()} == {n: x.item() for n, x in expected.items()}


@pytest.mark.parametrize(
    "options", [{}, {"window": (32, 48), "stride": (20, 32)}, {"scales": (0.5, 1.0, 1.25), "flip": True}], ids=str
)
def test_an_image_is_predicted_without_waits(options):
    if "scales" in options:
        options |= {"window": (32, 48), "stride": (20, 32)}
    model = small_model(UPER).eval()
    (inputs,) = make_batch((64, 96))
    with HostWaits() as host:
        segment = MultiViewInference(model.to(DEVICE), **options)
        segment([inputs])
        host.waits.clear()
        (output,) = segment([{**inputs, "height": 70, "width": 90}])
    assert output["sem_seg"].device == DEVICE and host.waits == []
