"""Sliding windows, scales and mirror images against a plain implementation that keeps everything in memory."""

import itertools

import pytest
import torch
from detectron2.evaluation import inference_context
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2_contrast.config import default_config
from d2_contrast.evaluation import MultiViewInference, build_inference_model
from d2_contrast.evaluation.inference import free_bytes, mean_of_bands, resize_rows, window_starts

CLASSES = 5


class Segmentor(nn.Module):
    """A network that sees beyond a pixel and treats the image's border differently; calls are counted."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(classes, 3, 7, 7, generator=generator) / 10
        self.sizes = []

    def forward(self, batched_inputs):
        results = []
        for x in batched_inputs:
            image = x["image"].float() / 255
            self.sizes.append(tuple(image.shape[1:]))
            logits = F.conv2d(image[None], self.weight, padding=3).float()  # as heads do in mixed precision
            size = x.get("height", image.shape[1]), x.get("width", image.shape[2])
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            results.append({"sem_seg": logits[0]})
        return results


def image(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def expected(model, inputs, scales=(1.0,), flip=False, window=None, stride=None):
    """The docstring of MultiViewInference, as plainly as possible."""
    picture = inputs["image"]
    size = inputs.get("height", picture.shape[1]), inputs.get("width", picture.shape[2])
    views = []
    for scale, mirrored in itertools.product(scales, [False, True] if flip else [False]):
        h, w = (round(side * scale) for side in picture.shape[1:])
        view = picture if scale == 1 else F.interpolate(
            picture[None].float(), (h, w), mode="bilinear", antialias=True, align_corners=False
        )[0]  # fmt: skip
        view = torch.flip(view, [2]) if mirrored else view
        if window is None:
            logits = model([{"image": view}])[0]["sem_seg"]
        else:
            total, count = torch.zeros(CLASSES, h, w), torch.zeros(h, w)
            wh, ww = min(window[0], h), min(window[1], w)
            y = 0
            while True:
                top = min(y, h - wh)
                x = 0
                while True:
                    left = min(x, w - ww)
                    crop = view[:, top : top + wh, left : left + ww]
                    total[:, top : top + wh, left : left + ww] += model([{"image": crop}])[0]["sem_seg"]
                    count[top : top + wh, left : left + ww] += 1
                    if left + ww == w:
                        break
                    x += stride[1]
                if top + wh == h:
                    break
                y += stride[0]
            logits = total / count
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        logits = torch.flip(logits, [2]) if mirrored else logits
        views.append(logits)
    if len(views) == 1:
        return views[0]
    return sum(v.softmax(0) for v in views) / len(views)


WINDOWS = [
    None,
    dict(window=(32, 48), stride=(32, 48)),
    dict(window=(32, 48), stride=(20, 17)),
    dict(window=(31, 200), stride=(7, 100)),  # wider than the image
    dict(window=(200, 300), stride=(100, 100)),  # larger than the image
    dict(window=(1, 5), stride=(1, 5)),
]
VIEWS = [
    dict(),
    dict(flip=True),
    dict(scales=[0.5, 1.0, 1.75]),
    dict(scales=[0.75, 1.25], flip=True),
    dict(scales=[2.0]),
]


@pytest.mark.parametrize("views", VIEWS, ids=str)
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("output", [None, (37, 150)], ids=["same size", "other size"])
def test_agrees_with_the_plain_implementation(windows, views, output):
    if windows == WINDOWS[-1] and views != VIEWS[0]:
        windows = dict(window=(9, 11), stride=(4, 11))  # rows of one pixel would take long
    inputs = {"image": image(61, 83), "file_name": "x"}
    if output:
        inputs["height"], inputs["width"] = output
    kwargs = {**(windows or {}), **views}
    model = Segmentor()
    (result,) = MultiViewInference(model, **kwargs)([inputs])
    truth = expected(Segmentor(), inputs, **kwargs)
    assert result["sem_seg"].dtype == torch.float32
    torch.testing.assert_close(result["sem_seg"], truth, rtol=1e-4, atol=1e-5)


class Autocast(nn.Module):
    """A model run in mixed precision, image by image."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, batched_inputs):
        with torch.autocast("cpu", self.dtype):
            return [{"sem_seg": x["sem_seg"].float()} for x in self.model(batched_inputs)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("views", [dict(), dict(scales=[2.0]), dict(scales=[0.75, 1.25], flip=True)], ids=str)
@pytest.mark.parametrize("windows", [None, dict(window=(32, 48), stride=(20, 17))], ids=str)
def test_mixed_precision(windows, views, dtype):
    """The network computes in another dtype, the views are combined as in full precision."""
    inputs = {"image": image(61, 83), "height": 37, "width": 150}
    kwargs = {**(windows or {}), **views}
    (result,) = MultiViewInference(Segmentor(), dtype=dtype, **kwargs)([inputs])
    truth = expected(Autocast(Segmentor(), dtype), inputs, **kwargs)
    full = expected(Segmentor(), inputs, **kwargs)
    assert result["sem_seg"].dtype == torch.float32
    torch.testing.assert_close(result["sem_seg"], truth, rtol=1e-4, atol=1e-5)
    assert 1e-5 < (truth - full).abs().max() < 0.05 * full.abs().max()


def test_several_images_of_several_sizes():
    inputs = [{"image": image(40, 60)}, {"image": image(70, 30, seed=1)}]
    model = MultiViewInference(Segmentor(), scales=[1, 1.5], window=(32, 32), stride=(16, 16))
    results = model(inputs)
    for x, y in zip(inputs, results):
        (alone,) = model([x])
        assert torch.equal(y["sem_seg"], alone["sem_seg"])
        assert y["sem_seg"].shape[1:] == x["image"].shape[1:]


def test_no_window_is_larger_than_asked_for():
    model = Segmentor()
    MultiViewInference(model, scales=[0.5, 2], window=(32, 48), stride=(16, 16))([{"image": image(61, 83)}])
    assert {(30, 42), (32, 48)} == set(model.sizes)


def test_the_mean_of_views_is_a_distribution_and_symmetric():
    x = image(40, 60)
    model = MultiViewInference(Segmentor(), scales=[0.75, 1.0], flip=True)
    (result,) = model([{"image": x}])
    torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(40, 60))
    (mirrored,) = model([{"image": x.flip(-1)}])
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), result["sem_seg"], rtol=1e-4, atol=1e-5)


def test_window_starts_by_hand():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 1) == [0]
    assert window_starts(9, 4, 4) == [0, 4, 5]


@pytest.mark.parametrize("size", [(50, 40), (7, 9), (1, 1)])
@pytest.mark.parametrize("new_size", [(50, 40), (131, 77), (13, 20), (3, 90), (1, 1)])
@pytest.mark.parametrize("block", [1, 3, 50])
def test_rows_that_arrive_in_blocks_are_resized_alike(size, new_size, block):
    whole = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    bands = list(resize_rows(iter(whole.split(block, dim=1)), size, new_size))
    starts = [first for first, _ in bands]
    lengths = [band.shape[1] for _, band in bands]
    assert starts == [sum(lengths[:i]) for i in range(len(lengths))]
    truth = F.interpolate(whole[None], new_size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([band for _, band in bands], dim=1), truth, rtol=1e-5, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the sizes of all tensors that operations make anew."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.sizes.append(t.numel())
        return out


def test_the_result_is_the_only_large_map():
    # The scores are 5.2 M numbers, a row of windows at scale 2 has 1 M and the image there 2 M.
    x = image(640, 256)
    model = MultiViewInference(Segmentor(32), scales=[1, 2], flip=True, window=(64, 64), stride=(32, 64))
    with LargestTensor() as made:
        (result,) = model([{"image": x}])
    size = result["sem_seg"].numel()
    assert sum(s >= size // 2 for s in made.sizes) == 1, sorted(made.sizes)[-5:]


def test_a_large_result_goes_to_the_memory_of_the_cpu():
    # On the meta device nothing is computed, so that only the place of the result is looked at.
    model = MultiViewInference(nn.Identity(), max_device_bytes=4 * 5 * 8 * 8)
    scores = torch.empty(5, 1, 8, device="meta")
    assert model._allocate(scores, (8, 8)).device.type == "meta"
    assert model._allocate(scores, (8, 9)).device.type == "cpu"


def test_by_default_a_result_takes_half_of_what_the_device_has_free(monkeypatch):
    backend = {"mem_get_info": (1000, 9000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in backend.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda", 0)) == 1000 + 700 - 300
    assert free_bytes(torch.device("cpu")) == torch.inf
    monkeypatch.setattr("d2_contrast.evaluation.inference.free_bytes", lambda device: 2 * 4 * 5 * 8 * 8)
    model, scores = MultiViewInference(nn.Identity()), torch.empty(5, 1, 8, device="meta")
    assert model._allocate(scores, (8, 8)).device.type == "meta"
    assert model._allocate(scores, (8, 9)).device.type == "cpu"


def test_modes_follow_the_wrapper():
    inner = nn.Sequential(nn.BatchNorm2d(3))
    wrapper = MultiViewInference(inner).eval()
    assert not inner.training and not inner[0].training
    wrapper.train()
    assert inner.training


@pytest.mark.parametrize("training", [True, False])
def test_detectron2s_context_restores_the_models_mode(training):
    inner = nn.BatchNorm2d(3).train(training)
    with inference_context(MultiViewInference(inner)):
        assert not inner.training
    assert inner.training == training


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(scales=[]), "one or more positive"),
        (dict(scales=[1, 0]), r"\[1, 0\]"),
        (dict(window=(32, 32), stride=(33, 32)), r"stride \[33, 32\] is larger than window \[32, 32\]"),
        (dict(window=(32, 32), stride=(0, 32)), "1 or more"),
        (dict(window=(32,), stride=(32,)), r"\(height, width\)"),
    ],
)
def test_bad_values_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiViewInference(Segmentor(), **kwargs)


class TestFromConfig:
    def test_nothing_enabled_gives_the_model_itself(self):
        model = Segmentor()
        assert build_inference_model(default_config(), model) is model

    def test_keys_reach_the_wrapper(self):
        cfg = default_config()
        cfg.TEST.SLIDING_WINDOW.ENABLED = True
        cfg.TEST.SLIDING_WINDOW.SIZE = [32, 48]
        cfg.TEST.SLIDING_WINDOW.STRIDE = [20, 17]
        cfg.TEST.AUG.ENABLED = True
        cfg.TEST.AUG.SCALES = [0.75, 1.25]
        cfg.TEST.AUG.FLIP = True
        inputs = [{"image": image(61, 83)}]
        (result,) = build_inference_model(cfg, Segmentor())(inputs)
        truth = expected(Segmentor(), inputs[0], [0.75, 1.25], True, (32, 48), (20, 17))
        torch.testing.assert_close(result["sem_seg"], truth, rtol=1e-4, atol=1e-5)

    def test_windows_alone_use_no_scales(self):
        cfg = default_config()
        cfg.TEST.SLIDING_WINDOW.ENABLED = True
        assert build_inference_model(cfg, Segmentor()).views == [(1.0, False)]

    def test_mixed_precision_alone(self):
        cfg = default_config()
        cfg.TEST.AMP.ENABLED = True
        cfg.SOLVER.AMP.DTYPE = "bfloat16"
        inputs = [{"image": image(61, 83), "height": 37, "width": 150}, {"image": image(40, 30)}]
        model = build_inference_model(cfg, Segmentor())
        for result, truth in zip(model(inputs), Autocast(Segmentor(), torch.bfloat16)(inputs)):
            assert torch.equal(result["sem_seg"], truth["sem_seg"])
        cfg.SOLVER.AMP.DTYPE = "half"
        with pytest.raises(ValueError, match="SOLVER.AMP.DTYPE is 'half'"):
            build_inference_model(cfg, Segmentor())

    def test_limit_of_what_stays_on_the_device(self):
        cfg = default_config()
        cfg.TEST.AUG.ENABLED = True
        assert build_inference_model(cfg, Segmentor()).max_device_bytes is None
        cfg.TEST.MAX_DEVICE_GIB = 1.5
        assert build_inference_model(cfg, Segmentor()).max_device_bytes == 1.5 * 2**30


def test_mean_of_bands():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 11, 3, generator=generator) for _ in range(3)]
    cuts = ([11], [1, 4, 6], [3, 3, 3, 2])
    views = [iter(zip(itertools.accumulate([0, *rows]), whole.split(rows, dim=1))) for whole, rows in zip(maps, cuts)]
    bands = list(mean_of_bands(views))
    assert [first for first, _ in bands] == [0, 1, 3, 5, 6, 9]
    torch.testing.assert_close(torch.cat([band for _, band in bands], dim=1), sum(maps) / 3)
