"""Anchor sets: where they are taken from, their gradients, and what is refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from d2_contrast.contrast import AnchorSampler, resize_labels

IGNORE = 255


@pytest.mark.parametrize("ignore_label", [255, -1, 3, 65535])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_ignore_label_and_integer_type(ignore_label, dtype):
    if ignore_label not in range(torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1):
        return
    labels = torch.tensor([0, 1, 2]).repeat_interleave(12).view(1, 6, 6)
    labels[:, :, 0] = ignore_label
    anchors, drawn = AnchorSampler(ignore_label=ignore_label)(torch.randn(1, 4, 6, 6), labels.to(dtype))
    assert drawn.bincount().tolist() == [10, 10, 10]
    assert anchors.shape == (30, 4)


LAYOUTS = {
    "channels first": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a window of a larger map": lambda x: F.pad(x, (2, 1, 3, 0))[:, :, 3:, 2:-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_anchors_are_the_normalised_embeddings_at_their_labels(layout):
    """Random embeddings tell where each anchor was taken from."""
    labels = torch.randint(4, (3, 8, 12))
    embeddings = LAYOUTS[layout](torch.randn(3, 16, 4, 6))
    anchors, drawn = AnchorSampler(min_per_group=1)(embeddings, labels)
    vectors = F.normalize(embeddings.movedim(1, -1).reshape(-1, 16), dim=1)
    source = torch.cdist(anchors, vectors).argmin(1)
    torch.testing.assert_close(anchors, vectors[source])
    assert torch.equal(labels[:, ::2, ::2].flatten()[source], drawn)
    assert len(source.unique()) == len(source) > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_that_of_indexing(layout):
    """And no other position than those that were drawn has one."""
    embeddings = LAYOUTS[layout](torch.randn(2, 5, 6, 4, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(3, (2, 6, 4))
    sampler = AnchorSampler(min_per_group=1, max_anchors=12)
    upstream = torch.randn(12, 5, dtype=torch.float64)
    anchors, _ = sampler(embeddings, labels, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(anchors, embeddings, upstream)
    chosen = sampler.choose(labels.flatten(), [24, 24], torch.Generator().manual_seed(0))
    plain = F.normalize(embeddings.permute(0, 2, 3, 1).reshape(-1, 5)[chosen], dim=1)
    (expected,) = torch.autograd.grad(plain, embeddings, upstream)
    torch.testing.assert_close(anchors, plain)
    torch.testing.assert_close(gradient, expected)
    assert (gradient.abs().sum(1) > 0).sum() == 12


def test_gradient_reaches_the_drawn_positions_alone():
    embeddings = torch.randn(2, 5, 6, 6, requires_grad=True)
    labels = torch.full((2, 6, 6), IGNORE)
    labels[:, :3] = torch.tensor([0, 0, 0, 1, 1, 1])
    anchors, _ = AnchorSampler()(embeddings, labels)
    (anchors * torch.randn_like(anchors)).sum().backward()
    touched = embeddings.grad.abs().sum(1) > 0
    assert touched.sum() == len(anchors) == 36
    assert torch.equal(touched, labels != IGNORE)


def test_half_precision_embeddings_give_float32_anchors():
    anchors, _ = AnchorSampler()(torch.randn(1, 5, 4, 4, dtype=torch.float16), torch.zeros(1, 4, 4, dtype=torch.long))
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors.norm(dim=1), torch.ones(16))


def test_nothing_to_draw():
    embeddings = torch.randn(2, 5, 4, 4, requires_grad=True)
    anchors, drawn = AnchorSampler()(embeddings, torch.full((2, 16, 16), IGNORE))
    assert anchors.shape == (0, 5) and drawn.shape == (0,)
    anchors.sum().backward()
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("size, stride", [((8, 8), 4), ((9, 7), 4), ((4, 4), 1), ((5, 3), 2)])
def test_labels_are_resized_by_nearest_neighbour(size, stride):
    labels = torch.randint(200, (2, size[0] * stride, size[1] * stride))
    small = resize_labels(labels, size)
    assert torch.equal(small, F.interpolate(labels[:, None].double(), size)[:, 0].long())


def test_labels_of_a_size_that_the_stride_does_not_divide():
    labels = torch.randint(200, (1, 37, 50))
    small = resize_labels(labels, (10, 13))
    expected = [[labels[0, i * 37 // 10, j * 50 // 13].item() for j in range(13)] for i in range(10)]
    assert small.tolist() == [expected]


def test_projection_of_the_drawn_vectors_alone():
    labels = torch.randint(4, (2, 6, 6))
    embeddings = torch.randn(2, 5, 6, 6)
    last = torch.nn.Linear(5, 3)
    sampler = AnchorSampler(min_per_group=1)
    seen = []

    def project(vectors):
        seen.append(vectors)
        return last(vectors)

    few = sampler(embeddings, labels, project, torch.Generator().manual_seed(0))
    everywhere = last(embeddings.movedim(1, -1)).movedim(-1, 1)
    every = sampler(everywhere, labels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(few, every)
    assert [tuple(x.shape) for x in seen] == [(len(few.vectors), 5)]


@pytest.mark.parametrize(
    "embeddings, labels, message",
    [
        ((2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long), r"same N, got \(2, 3, 4, 4\) and \(1, 8, 8\)"),
        ((2, 3, 4), torch.zeros(2, 8, 8, dtype=torch.long), r"embeddings must be \(N, D, h, w\)"),
        ((2, 3, 4, 4), torch.zeros(2, 1, 8, 8, dtype=torch.long), r"labels \(N, H, W\)"),
        ((2, 3, 4, 4), torch.zeros(2, 8, 8), "labels must be integers, got torch.float32"),
    ],
)
def test_bad_input(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        AnchorSampler()(torch.zeros(embeddings), labels)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(unit="pixel"), "unit must be one of .*'class', 'image_class'.*'pixel'"),
        (dict(max_anchors=0), "max_anchors must be an integer of at least 1, got 0"),
        (dict(max_anchors=1e4), "max_anchors must be an integer of at least 1, got 10000.0"),
        (dict(min_per_group=0), "min_per_group must be an integer of at least 1, got 0"),
        (dict(max_per_group=-1), "max_per_group must be an integer of at least 0, got -1"),
        (dict(max_per_group=None), "max_per_group must be an integer of at least 0, got None"),
        (dict(ignore_label=None), "ignore_label must be an integer, got None"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        AnchorSampler(**options)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(AnchorSampler(), **options)


def test_options_are_fixed_and_compare():
    sampler = AnchorSampler(max_anchors=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.max_anchors = 8
    assert sampler == AnchorSampler(max_anchors=7) != AnchorSampler()
