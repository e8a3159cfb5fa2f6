"""supervised_info_nce against a float64 double loop over pairs."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from products import FULL, TF32, PrecisionOfProducts

from d2_contrast.contrast import AnchorSet, supervised_info_nce
from d2_contrast.contrast.info_nce import info_nce
from d2_contrast.contrast.score_tiles import Tiling

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def loop_over_pairs(s, ya, yb, within):
    """Eq. 1-2 as they read, on scores (A, B), with Python loops over anchors, positives and negatives."""
    ya, yb = ya.tolist(), yb.tolist()
    total = s.sum() * 0
    for i in range(len(ya)):
        others = [j for j in range(len(yb)) if not (within and i == j)]
        positives = [j for j in others if yb[j] == ya[i]]
        negatives = [j for j in others if yb[j] != ya[i]]
        if not positives or not negatives:
            continue
        terms = [torch.log1p(torch.exp(s[i, negatives] - s[i, j]).sum()) for j in positives]
        total = total + torch.stack(terms).mean()
    return total / len(ya)


def textbook(s, ya, yb, within):
    """The same with A x B matrices."""
    same = ya[:, None] == yb[None, :]
    log_n = s.masked_fill(same, -math.inf).logsumexp(1, keepdim=True)
    positive = same & ~torch.eye(len(ya), dtype=torch.bool) if within else same
    terms = torch.where(positive & ~same.all(1, keepdim=True), F.softplus(log_n - s), 0)
    return (terms.sum(1) / positive.sum(1).clamp(min=1)).mean()


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def small_tiling(size, kept=0):
    """Bands and tiles of this many anchors; tiles are kept up to this many scores."""
    return Tiling(band_rows=size, band_scores=5 * size, tile_rows=size, kept_scores=kept)


# None is the tiling of the device.
TILINGS = [None, small_tiling(16)]


def loss_of(za, ya, zb=None, yb=None, temperature=0.1, tiling=None):
    """The loss as callers get it, or with another tiling."""
    if tiling is None:
        return supervised_info_nce(za, ya, zb, yb, temperature)
    return info_nce(AnchorSet(za, ya), None if zb is None else AnchorSet(zb, yb), temperature, tiling)


def value_and_gradients(za, ya, zb=None, yb=None, **options):
    """The loss and its gradients for za and zb."""
    leaves = [z.detach().clone().requires_grad_() for z in (za, zb) if z is not None]
    args = (leaves[0], ya) if zb is None else (leaves[0], ya, leaves[1], yb)
    value = loss_of(*args, **options)
    return value.detach(), torch.autograd.grad(value, leaves)


class Expected:
    """What a reference gives in float64 for the same numbers: value, gradients, and the size of their terms.

    A gradient is a sum over pairs. Its terms may cancel, to 0 if all vectors are equal; `terms` has the norm of the sum
    of their absolute values, for each gradient.
    """

    def __init__(self, reference, za, ya, zb=None, yb=None, temperature=0.1):
        within = zb is None
        za, ya, zb, yb = (None if x is None else x.detach().cpu() for x in (za, ya, zb, yb))
        za = za.double().requires_grad_()
        zb, yb = (za, ya) if within else (zb.double().requires_grad_(), yb)
        s = za @ zb.t() / temperature
        s.retain_grad()
        self.value = reference(s, ya, yb, within)
        self.value.backward()
        ds = s.grad.abs() / temperature
        terms = [ds @ zb.abs(), ds.t() @ za.abs()]
        self.grads = [za.grad] if within else [za.grad, zb.grad]
        self.terms = [t.norm() for t in ([terms[0] + terms[1]] if within else terms)]


def assert_matches(reference, *sets, rtol=1e-5, terms_may_cancel=False, temperature=0.1, tiling=None):
    """The loss agrees with a reference, the gradients in norm, relative to themselves or to their terms."""
    value, grads = value_and_gradients(*sets, temperature=temperature, tiling=tiling)
    expected = Expected(reference, *sets, temperature=temperature)
    assert value.item() == pytest.approx(expected.value.item(), rel=rtol, abs=0)
    for grad, expected_grad, terms in zip(grads, expected.grads, expected.terms):
        error = (grad.cpu().double() - expected_grad).norm()
        scale = terms if terms_may_cancel else expected_grad.norm()
        assert error <= rtol * scale, f"{error / scale:.1e} relative"


# Class layouts that have their own branch or their own division by zero.
LAYOUTS = {
    "balanced": [0, 1, 2] * 10,
    "classes of equal size apart": [0] * 3 + [1] * 5 + [2] * 3 + [3] * 4 + [4] * 3,
    "a class of two tiles, the second with the next class": [0] * 10 + [1] * 2 + [2] * 7,
    "unsorted": [5, 3, 5, 0, 3, 3, 0, 5, 0, 9, 9],
    "one class": [4] * 9,
    "one anchor per class": list(range(9)),
    "an anchor without a positive": [0] * 6 + [1] + [2] * 5,
    "two anchors": [0, 1],
    "one anchor": [3],
    "negative and large ids": [-7, 2**40, -7, 2**40, 0, 0],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tile", [3, 8, 1000])
@pytest.mark.parametrize("kept", [0, 50, 10000])
def test_within_a_set(layout, kept, tile, device):
    labels = torch.tensor(LAYOUTS[layout], device=device)
    anchors = unit(len(labels), 6, dtype=torch.float32).to(device)
    assert_matches(loop_over_pairs, anchors, labels, tiling=small_tiling(tile, kept))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("band", [4, 1000])
def test_across_sets(layout, other, band, device):
    ya, yb = torch.tensor(LAYOUTS[layout], device=device), torch.tensor(LAYOUTS[other], device=device)
    za = unit(len(ya), 6, seed=1, dtype=torch.float32).to(device)
    zb = unit(len(yb), 6, seed=2, dtype=torch.float32).to(device)
    assert_matches(loop_over_pairs, za, ya, zb, yb, tiling=small_tiling(band))


@st.composite
def sets(draw):
    """Two sets of clustered unit vectors with random classes, a temperature, a tile size and how many are kept."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dim, classes = draw(st.integers(2, 24)), draw(st.integers(1, 6))
    centres = torch.randn(classes, dim, generator=generator) * draw(st.sampled_from([0.0, 1.0, 3.0]))

    def one():
        labels = torch.randint(classes, (draw(st.integers(1, 40)),), generator=generator)
        vectors = F.normalize(centres[labels] + torch.randn(len(labels), dim, generator=generator), dim=1)
        duplicates = draw(st.integers(0, len(labels) // 2))
        vectors[:duplicates] = vectors[-1]
        return vectors, labels

    (za, ya), (zb, yb) = one(), one()
    return za, ya, zb, yb, draw(st.floats(0.02, 1.0)), draw(st.integers(1, 50)), draw(st.integers(0, 800))


@settings(max_examples=60, deadline=None)
@given(sets())
def test_any_sets(case):
    za, ya, zb, yb, temperature, tile, kept = case
    options = dict(temperature=temperature, tiling=small_tiling(tile, kept), terms_may_cancel=True)
    assert_matches(loop_over_pairs, za, ya, **options)
    assert_matches(loop_over_pairs, za, ya, zb, yb, **options)


def test_textbook_is_the_loop():
    """So that large sets can be checked against the textbook form."""
    ya, yb = torch.randint(4, (23,)), torch.randint(5, (17,))
    za, zb = unit(23, 5, seed=3), unit(17, 5, seed=4)
    for sets in ((za, ya), (za, ya, zb, yb)):
        matrix, loop = Expected(textbook, *sets), Expected(loop_over_pairs, *sets)
        torch.testing.assert_close([matrix.value, *matrix.grads], [loop.value, *loop.grads], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("classes", [2, 19, 150])
def test_more_anchors_than_a_tile(classes, temperature):
    generator = torch.Generator().manual_seed(0)
    ya, yb = (torch.randint(classes, (a,), generator=generator) for a in (1701, 901))
    za, zb = (unit(len(y), 32, seed=len(y), dtype=torch.float32) for y in (ya, yb))
    assert_matches(textbook, za, ya, temperature=temperature)
    assert_matches(textbook, za, ya, zb, yb, temperature=temperature)


@pytest.mark.parametrize("tile", [3, 100])
def test_gradcheck(tile):
    tiling = small_tiling(tile)
    za, zb = unit(9, 4, seed=1).requires_grad_(), unit(7, 4, seed=2).requires_grad_()
    ya, yb = torch.tensor([2, 0, 1, 0, 2, 2, 2, 5, 0]), torch.tensor([0, 1, 1, 2, 0, 7, 7])
    assert torch.autograd.gradcheck(lambda z: loss_of(z, ya, tiling=tiling), za)
    assert torch.autograd.gradcheck(lambda a, b: loss_of(a, ya, b, yb, tiling=tiling), (za, zb))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("temperature", [0.01, 0.014, 0.0145, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["identical", "opposite", "positives far, negatives near", "random"])
def test_stable_for_any_unit_vectors(kind, temperature, tiling):
    labels = torch.arange(40) // 10
    z = unit(40, 8, seed=5, dtype=torch.float32)
    if kind == "identical":
        z = z[:1].expand(40, 8)
    elif kind == "opposite":  # every class on one of two poles
        z = z[:1] * (1 - 2 * (labels % 2))[:, None]
    elif kind == "positives far, negatives near":
        z = z[:1] * (1 - 2 * (torch.arange(40) % 2))[:, None]
    options = dict(temperature=temperature, tiling=tiling, terms_may_cancel=True)
    assert_matches(loop_over_pairs, z, labels, **options)
    assert_matches(loop_over_pairs, z, labels, -z, labels, **options)


@pytest.mark.parametrize("tiling", TILINGS)
def test_smallest_sum_of_negatives(tiling):
    """Negatives opposite to the anchor: n_i is the smallest that it can be, and must not become 0."""
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    for temperature in (0.01, 0.0143, 0.02, 0.1):
        expected = math.log1p(2 * math.exp(-2 / temperature))
        value = loss_of(z.double(), labels, temperature=temperature, tiling=tiling)
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=0)
    value = loss_of(z, labels, temperature=0.05, tiling=tiling)
    assert value.item() == pytest.approx(2 * math.exp(-40), rel=1e-5, abs=0)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(dtype, autocast, tiling):
    labels = torch.arange(60) % 4
    z = unit(60, 16, seed=6, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        value = loss_of(z, labels, tiling=tiling)
        value.backward()
    expected = Expected(loop_over_pairs, z, labels)
    assert value.dtype == torch.float32 and z.grad.dtype == dtype
    assert value.item() == pytest.approx(expected.value.item(), rel=1e-5)
    assert (z.grad.double() - expected.grads[0]).norm() <= torch.finfo(dtype).eps * expected.grads[0].norm()


@pytest.mark.parametrize("tiling", TILINGS)
def test_float32_under_autocast_is_not_rounded(tiling):
    labels = torch.arange(60) % 4
    z = unit(60, 16, seed=6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_matches(loop_over_pairs, z, labels, tiling=tiling)
        assert_matches(loop_over_pairs, z, labels, z.flip(0), labels, tiling=tiling)


@pytest.mark.parametrize("a, b", [(0, None), (0, 3), (3, 0), (0, 0)])
def test_an_empty_set_gives_zero_and_keeps_the_graph(a, b):
    za = unit(a, 4, dtype=torch.float32).requires_grad_()
    args = [za, torch.zeros(a, dtype=torch.long)]
    if b is not None:
        zb = unit(b, 4, dtype=torch.float32).requires_grad_()
        args += [zb, torch.zeros(b, dtype=torch.long)]
    value = supervised_info_nce(*args)
    value.backward()
    assert value.item() == 0
    assert all(torch.equal(z.grad, torch.zeros_like(z)) for z in args[::2])


def test_gradient_reaches_one_set_alone():
    za, zb = unit(8, 4, seed=1), unit(6, 4, seed=2)
    ya, yb = torch.arange(8) % 3, torch.arange(6) % 3
    _, (grad_a, grad_b) = value_and_gradients(za, ya, zb, yb)
    only_a, only_b = za.clone().requires_grad_(), zb.clone().requires_grad_()
    supervised_info_nce(only_a, ya, zb, yb).backward()
    supervised_info_nce(za, ya, only_b, yb).backward()
    torch.testing.assert_close(only_a.grad, grad_a)
    torch.testing.assert_close(only_b.grad, grad_b)


def test_a_second_backward_pass_gives_the_same_gradients():
    za, zb = (unit(9, 4, seed=seed).requires_grad_() for seed in (1, 2))
    labels = torch.arange(9) % 3
    value = supervised_info_nce(za, labels, zb, labels)
    first, second = (torch.autograd.grad(value, (za, zb), retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("tiling", TILINGS)
def test_order_of_anchors_does_not_matter(tiling):
    z, labels, order = unit(50, 8), torch.arange(50) // 10, torch.randperm(50)
    value, (grad,) = value_and_gradients(z, labels, tiling=tiling)
    shuffled, (shuffled_grad,) = value_and_gradients(z[order], labels[order], tiling=tiling)
    torch.testing.assert_close(shuffled, value)
    torch.testing.assert_close(shuffled_grad, grad[order])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(anchors=torch.zeros(4)), r"anchors must be floating point of shape \(count, dim\)"),
        (dict(anchors=torch.zeros(4, 2, dtype=torch.long)), "anchors must be floating point"),
        (dict(anchor_labels=torch.zeros(3, dtype=torch.long)), "labels of anchors must be 4 integers"),
        (dict(anchor_labels=torch.zeros(4)), "labels of anchors must be 4 integers"),
        (dict(contrast=torch.zeros(3, 2)), "given together"),
        (dict(contrast=torch.zeros(3, 5), contrast_labels=torch.zeros(3, dtype=torch.long)), "got 2 and 5"),
        (dict(contrast_labels=torch.zeros(3, dtype=torch.long)), "given together"),
        (
            dict(contrast=torch.zeros(3, 2), contrast_labels=torch.zeros(2, dtype=torch.long)),
            "labels of contrast must be 3 integers",
        ),
        (dict(temperature=0.0), "at least 0.002, got 0.0"),
        (dict(temperature=0.001), "at least 0.002, got 0.001"),
    ],
)
def test_bad_input(change, message):
    args = dict(anchors=torch.zeros(4, 2), anchor_labels=torch.zeros(4, dtype=torch.long)) | change
    with pytest.raises(ValueError, match=message):
        supervised_info_nce(**args)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda z: z[5].fill_(2 / 64**0.5), "number 5, which is not of unit length but 2:"),
        (lambda z: z[5].fill_(0.5 / 64**0.5), "number 5, which is not of unit length but 0.5:"),
        (lambda z: z[5, 1].fill_(math.nan), "number 5, which is not finite"),
        (lambda z: z[5, 1].fill_(math.inf), "number 5, which is not finite"),
        (lambda z: z[5, 1].fill_(-math.inf), "number 5, which is not finite"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_vectors_that_are_not_sound(dtype, change, problem, across):
    z, labels = unit(20, 64, dtype=dtype), torch.arange(20) % 4
    sound = z.clone()
    change(z)
    sets, name = ((sound, labels, z, labels), "contrast") if across else ((z, labels), "anchors")
    with pytest.raises(ValueError, match=f"{name}: 1 of 20 vectors are wrong, the first is {problem}"):
        supervised_info_nce(*sets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_normalising_gives_is_sound(dtype):
    """Also in half precision, and of vectors of zeros."""
    z = F.normalize(torch.randn(2000, 16).mul(torch.logspace(-3, 3, 2000)[:, None]).to(dtype), dim=1)
    z[7] = 0
    assert supervised_info_nce(z, torch.arange(2000) % 4).isfinite()


@pytest.mark.parametrize("across", [False, True])
def test_memory_is_linear(across):
    """12,000 anchors, whose score matrix would take 580 MB, fit into 100 MB beside their gradient."""
    code = """
import sys
import torch
from d2_contrast.contrast import supervised_info_nce

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

z = torch.nn.functional.normalize(torch.randn(12000, 16), dim=1).requires_grad_()
labels = torch.arange(12000) // 200
sets = [z, labels] * (2 if sys.argv[1] == "True" else 1)
supervised_info_nce(*[x[:2000] for x in sets]).backward()
before = peak()
supervised_info_nce(*sets).backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(across)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("outside", ["highest", "high", "medium"])
def test_products_are_in_float32_whatever_torch_is_set_to(outside, tf32):
    """Processors with bfloat16 use it where torch is set to "medium"."""
    labels = torch.arange(60) // 10
    sets = [AnchorSet(F.normalize(torch.randn(60, 8), dim=1).requires_grad_(), labels) for _ in range(2)]

    def losses():
        return [info_nce(sets[0], other, 0.1, tf32=tf32) for other in (None, sets[1])]

    expected = losses()
    torch.set_float32_matmul_precision(outside)
    try:
        with PrecisionOfProducts() as products:
            results = losses()
        assert torch.get_float32_matmul_precision() == outside
    finally:
        torch.set_float32_matmul_precision("highest")
    assert products.seen <= (TF32 if tf32 else FULL) and products.seen
    assert [x.item() for x in results] == [x.item() for x in expected]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="a switch of torch 2.9")
@pytest.mark.parametrize("tf32", [False, True])
def test_switches_of_torch_follow_others_as_before(tf32):
    """A switch that nobody has set reads as the one above it, and is not set to that afterwards."""
    switches = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    for switch in switches:
        switch.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    try:
        info_nce(AnchorSet(F.normalize(torch.randn(60, 8), dim=1), torch.arange(60) // 10), None, 0.1, tf32=tf32)
        assert [switch.fp32_precision for switch in switches] == ["tf32", "tf32"]
        torch.backends.fp32_precision = "ieee"
        assert [switch.fp32_precision for switch in switches] == ["ieee", "ieee"]
    finally:
        torch.backends.fp32_precision = "none"


def test_there_is_no_second_derivative():
    z = F.normalize(torch.randn(20, 8), dim=1).requires_grad_()
    loss = supervised_info_nce(z, torch.arange(20) % 4) + z.square().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int32])
@pytest.mark.parametrize("order", [slice(None), torch.arange(19, -1, -1)], ids=["sorted", "unsorted"])
def test_labels_of_any_integer_type(dtype, order):
    z, labels = unit(20, 8), (torch.arange(20) // 5)[order]
    assert supervised_info_nce(z, labels.to(dtype)) == supervised_info_nce(z, labels)
