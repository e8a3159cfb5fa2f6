"""Each loss against its published formula, written out with loops in double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2_contrast.config import default_config
from d2_contrast.modeling.pixel_losses import OHEM, RMI, CrossEntropy, LovaszSoftmax, ValidPixels, build_pixel_loss

K, IGNORE = 4, 255
LOSSES = {
    "CrossEntropy": lambda: CrossEntropy(num_classes=K),
    "weighted CrossEntropy": lambda: CrossEntropy(num_classes=K, class_weights=[1.0, 2.0, 0.5, 0.0]),
    "OHEM": lambda: OHEM(num_classes=K, threshold=0.4, min_kept=30),
    "LovaszSoftmax": lambda: LovaszSoftmax(),
    "RMI": lambda: RMI(num_classes=K, stride=2),
    "ValidPixels": lambda: ValidPixels(nn.CrossEntropyLoss()),
}


def sample(seed=0, n=2, size=(12, 10), num_classes=K):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, num_classes, *size, generator=generator) * 2
    targets = torch.randint(0, num_classes, (n, *size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = IGNORE
    return logits.requires_grad_(), targets


def pixels(logits, targets):
    """Softmax probabilities (P, K) and classes (P,) of the pixels that count, as float64 arrays."""
    z = logits.detach().double().movedim(1, 3).reshape(-1, logits.shape[1]).numpy()
    t = targets.reshape(-1).numpy()
    z, t = z[t != IGNORE], t[t != IGNORE]
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True), t


@pytest.mark.parametrize("weights", [[], [1.0, 2.0, 0.5, 0.25]])
def test_cross_entropy(weights):
    logits, targets = sample()
    loss = CrossEntropy(num_classes=K, class_weights=weights)(logits, targets)
    p, t = pixels(logits, targets)
    w = np.array(weights or [1.0] * K)
    expected = sum(-w[c] * math.log(q[c]) for q, c in zip(p, t)) / sum(w[c] for c in t)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    reference = F.cross_entropy(logits, targets, torch.tensor(w, dtype=torch.float32), ignore_index=IGNORE)
    torch.testing.assert_close(loss, reference)


@pytest.mark.parametrize("threshold", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("min_kept", [1, 30, 10**6])
@pytest.mark.parametrize("weights", [[], [1.0, 2.0, 0.5, 0.25]])
def test_ohem(threshold, min_kept, weights):
    logits, targets = sample()
    loss = OHEM(num_classes=K, threshold=threshold, min_kept=min_kept, class_weights=weights)(logits, targets)
    p, t = pixels(logits, targets)
    w = np.array(weights or [1.0] * K)
    right = sorted((q[c], c) for q, c in zip(p, t))
    kept = [(q, c) for i, (q, c) in enumerate(right) if q < threshold or i < min_kept]
    expected = sum(-w[c] * math.log(q) for q, c in kept) / sum(w[c] for _, c in kept)
    assert len(kept) == min(max(min_kept, sum(q < threshold for q, _ in right)), len(right))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("min_kept", [1, 37, 190, 10**6])
@pytest.mark.parametrize("threshold", [0.05, 0.4])
def test_ohem_finds_the_hardest_pixels_by_sorting_none(min_kept, threshold):
    """The value is that of the k-th of all losses in order, bit for bit, also where many are equal."""
    logits, targets = sample()
    logits = logits.detach().round()
    logits[targets[:, None].expand_as(logits) == 2] = 0.5  # equal losses
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    candidates = losses[targets != IGNORE].sort(descending=True).values
    least = candidates[min(min_kept, len(candidates)) - 1]
    kept = ((losses > -math.log(threshold)) | (losses >= least)) & (targets != IGNORE)
    expected = (losses * kept.float()).sum() / kept.float().sum()
    assert OHEM(num_classes=K, threshold=threshold, min_kept=min_kept)(logits, targets) == expected


def test_ohem_of_certain_predictions():
    """Where every loss is zero no pixel is harder than an ignored one."""
    _, targets = sample()
    logits = 1000.0 * F.one_hot(targets.masked_fill(targets == IGNORE, 0), K).movedim(3, 1).float()
    assert OHEM(num_classes=K, min_kept=10**6)(logits, targets).item() == 0


def jaccard_loss(wrong, is_label):
    """1 - intersection / union if exactly the pixels ``wrong`` are misclassified (Eq. 6)."""
    intersection = sum(1 for i, x in enumerate(is_label) if x and i not in wrong)
    union = sum(1 for i, x in enumerate(is_label) if x or i in wrong)
    return 1 - intersection / union


def lovasz(p, t):
    """Eq. 8 and 9 word for word: the increments of the Jaccard loss along the sorted errors."""
    terms = []
    for c in sorted(set(t.tolist())):
        errors = np.where(t == c, 1 - p[:, c], p[:, c])
        order = np.argsort(-errors)
        wrong, total = set(), 0.0
        for i in order:
            before = jaccard_loss(wrong, t == c) if wrong else 0.0
            wrong = wrong | {i}
            total += errors[i] * (jaccard_loss(wrong, t == c) - before)
        terms.append(total)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_softmax(seed):
    logits, targets = sample(seed, size=(6, 5))
    assert LovaszSoftmax()(logits, targets).item() == pytest.approx(lovasz(*pixels(logits, targets)), rel=1e-5)


def test_lovasz_of_one_pixel():
    """It is the share that the pixel gives to other classes."""
    logits, targets = sample(n=1)
    targets = torch.full_like(targets, IGNORE)
    targets[0, 3, 4] = 1
    assert LovaszSoftmax()(logits, targets).item() == pytest.approx(1 - logits.softmax(1)[0, 1, 3, 4].item())


def test_lovasz_gradient_of_many_pixels():
    """A step along the sorted errors is about 1 over the number of pixels, near the rounding of a loss in float32."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(1, 700, 700, generator=generator) < 0.3).long()
    logits = torch.randn(1, 2, 700, 700, generator=generator).requires_grad_()
    LovaszSoftmax()(logits, targets).backward()
    # The derivative by an error is its step of the Jaccard loss; p (1 - p) is that of an error by a logit.
    p, t = pixels(logits, targets)
    expected = np.zeros(len(t))
    for c in (0, 1):
        error = np.abs((t == c) - p[:, c])
        order = np.argsort(-error, kind="stable")
        seen = np.cumsum(t[order] == c)
        loss = 1 - (seen[-1] - seen) / (seen[-1] + np.arange(1, len(t) + 1) - seen)
        sign = np.where(t == c, -1, 1) * (1 if c else -1)  # of a larger logit of class 1
        expected[order] += (np.diff(loss, prepend=0.0) * sign[order]) / 2
    expected *= p[:, 0] * p[:, 1]
    np.testing.assert_allclose(logits.grad[0, 1].flatten().numpy(), expected, rtol=2e-3, atol=1e-13)


def test_lovasz_softmax_leaves_out_absent_classes_and_is_the_jaccard_loss_of_hard_predictions():
    targets = torch.tensor([[[0, 0, 0, 1, 1, 1, 1, IGNORE]]])
    predicted = torch.tensor([[[0, 0, 1, 1, 1, 1, 2, 3]]])
    logits = 1000.0 * F.one_hot(predicted, K).movedim(3, 1)
    expected = ((1 - 2 / 3) + (1 - 3 / 5)) / 2  # of classes 0 and 1
    assert LovaszSoftmax()(logits, targets).item() == pytest.approx(expected)


def rmi(logits, targets, weight, stride, radius):
    """The loss written out with loops over images, classes, pixels and regions."""
    z = logits.detach().double().numpy()
    n, num_classes, height, width = z.shape
    t = targets.numpy()
    entropy, count, information, images = 0.0, 0, 0.0, 0
    for b in range(n):
        images += (t[b] != IGNORE).any()
        for c in range(num_classes):
            y, p = np.zeros((height, width)), np.zeros((height, width))
            for i in range(height):
                for j in range(width):
                    if t[b, i, j] != IGNORE:
                        y[i, j] = t[b, i, j] == c
                        p[i, j] = 1 / (1 + math.exp(-z[b, c, i, j]))
                        entropy -= math.log(p[i, j] if y[i, j] else 1 - p[i, j])
                        count += c == 0
            if not (t[b] != IGNORE).any():
                continue
            vectors = []
            for x in (y, p):
                h, w = height // stride, width // stride
                pooled = np.array(
                    [[x[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean() for j in range(w)]
                     for i in range(h)]
                )  # fmt: skip
                regions = [
                    pooled[i : i + radius, j : j + radius].ravel()
                    for i in range(h - radius + 1)
                    for j in range(w - radius + 1)
                ]
                vectors.append(np.array(regions).T - np.mean(regions, axis=0)[:, None])
            yv, pv = vectors
            eye = 5e-4 * np.eye(radius**2)
            m = yv @ yv.T - yv @ pv.T @ np.linalg.inv(pv @ pv.T + eye) @ (yv @ pv.T).T
            information += -0.5 * np.log(np.linalg.det(m + eye)) / radius**2
    return (1 - weight) * entropy / max(count, 1) - weight * information / max(images, 1)


@pytest.mark.parametrize(("weight", "stride", "radius"), [(0.5, 2, 3), (0.8, 1, 2), (1.0, 3, 2), (0.0, 2, 2)])
def test_rmi(weight, stride, radius):
    logits, targets = sample(size=(13, 11))
    loss = RMI(num_classes=K, weight=weight, stride=stride, radius=radius)(logits, targets)
    assert loss.item() == pytest.approx(rmi(logits, targets, weight, stride, radius), rel=1e-5)


def test_rmi_leaves_out_images_without_labels():
    logits, targets = sample()
    targets[1] = IGNORE
    loss = RMI(num_classes=K, stride=2)
    torch.testing.assert_close(loss(logits, targets), loss(logits[:1], targets[:1]))


def test_rmi_rewards_structure_that_agrees():
    """Of two maps with equal entropy at each pixel the one that follows the labels' structure has the lower loss."""
    _, targets = sample(size=(32, 32))
    targets = (targets > 1).long()
    right = torch.stack([1 - targets, targets], dim=1).float() * 4 - 2
    information = RMI(num_classes=2, weight=1.0, stride=1)
    assert information(right, targets) < information(right[:, :, :, torch.randperm(32)], targets) - 0.1


@pytest.mark.parametrize("target_channel", [False, True])
def test_valid_pixels_hides_the_others(target_channel):
    """A loss that knows no ignore label sees each pixel that counts once, in the order of the targets."""

    class Largest(nn.Module):
        def forward(self, logits, targets):
            assert logits.shape[0] == targets.shape[0] == 1 and targets.ndim == logits.ndim - 1 + target_channel
            seen.append((logits.detach().flatten(2)[0].mT.numpy(), targets.flatten().numpy()))
            return logits.amax()

    seen = []
    logits, targets = sample()
    value = ValidPixels(Largest(), IGNORE, target_channel)(logits, targets)
    probabilities, classes = pixels(logits, targets)
    z = seen[0][0].astype(float)
    np.testing.assert_allclose(np.exp(z) / np.exp(z).sum(1, keepdims=True), probabilities)
    np.testing.assert_array_equal(seen[0][1], classes)
    assert value.item() == pytest.approx(z.max())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    loss = LOSSES[name]()
    logits, targets = sample(n=1, size=(8, 8))
    loss(logits, targets).backward()
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(logits.shape, generator=generator)
    with torch.no_grad():
        step = 1e-3
        difference = loss(logits + step * direction, targets) - loss(logits - step * direction, targets)
    slope = (logits.grad * direction).sum().item()
    assert difference.item() / (2 * step) == pytest.approx(slope, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_all_ignored(name):
    logits, targets = sample()
    loss = LOSSES[name]()(logits, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_do_not_matter(name):
    logits, targets = sample()
    other = torch.where((targets == IGNORE).unsqueeze(1), torch.full_like(logits, 7.0), logits)
    loss = LOSSES[name]()
    torch.testing.assert_close(loss(logits, targets), loss(other, targets))


@pytest.mark.parametrize("negative", [-1, -100])
@pytest.mark.parametrize("name", LOSSES)
def test_negative_targets_are_no_classes(name, negative):
    """Whatever the ignore label is: they count as pixels with that label do."""
    logits, targets = sample()
    expected = LOSSES[name]()(logits, targets)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    some = (targets == IGNORE) & (torch.rand(targets.shape) < 0.5)
    loss = LOSSES[name]()(logits, targets.masked_fill(some, negative))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close([loss, gradient], [expected, expected_gradient])
    nothing = LOSSES[name]()(logits, torch.full_like(targets, negative))
    assert nothing == 0 and not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_computes_in_float32(name, dtype):
    logits, targets = sample()
    logits = logits.detach().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name]()(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name]()(logits.float(), targets))


def test_build_from_config():
    cfg = default_config()
    cfg.merge_from_list(
        ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 9]
        + ["MODEL.PIXEL_LOSS.NAME", "OHEM", "MODEL.PIXEL_LOSS.AUX_NAME", "RMI", "MODEL.PIXEL_LOSS.RMI_STRIDE", 2]
        + ["MODEL.PIXEL_LOSS.CLASS_WEIGHTS", [1.0, 2.0, 3.0], "MODEL.PIXEL_LOSS.OHEM_MIN_KEPT", 7]
    )
    loss, auxiliary = build_pixel_loss(cfg), build_pixel_loss(cfg, auxiliary=True)
    assert isinstance(loss, OHEM) and loss.min_kept == 7 and loss.ignore_label == 9
    assert loss.class_weights.tolist() == [1.0, 2.0, 3.0]
    assert isinstance(auxiliary, RMI) and auxiliary.stride == 2
    cfg.MODEL.PIXEL_LOSS.AUX_NAME = ""
    assert isinstance(build_pixel_loss(cfg, auxiliary=True), OHEM)
    cfg.MODEL.PIXEL_LOSS.CLASS_WEIGHTS = [1.0]
    with pytest.raises(ValueError, match="CLASS_WEIGHTS has 1 entries, expected one for each of the 3 classes"):
        build_pixel_loss(cfg)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.5}, {"min_kept": 0}])
def test_ohem_refuses(options):
    with pytest.raises(ValueError, match="OHEM_THRESHOLD in .0, 1. and OHEM_MIN_KEPT of at least 1"):
        OHEM(num_classes=3, **options)


def test_rmi_needs_maps_of_its_regions():
    loss = RMI(num_classes=2, stride=4, radius=3)
    targets = torch.zeros(1, 12, 11, dtype=torch.long)
    with pytest.raises(ValueError, match=r"RMI_STRIDE 4 times RMI_RADIUS 3 is 12 pixels: .*\(12, 11\)"):
        loss(torch.zeros(1, 2, 12, 11), targets)
