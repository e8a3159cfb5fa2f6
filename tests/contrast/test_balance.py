"""Sampling against a slow and obvious implementation, and its properties on random label maps."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_contrast.contrast import sample_anchors
from d2_contrast.contrast.anchors import choose_positions, resize_labels

IGNORE = 255


def count_groups(labels, image_sizes, ignore_label=IGNORE):
    """{class: {image: number of positions}} by a loop over positions."""
    counts = {}
    images = [image for image, size in enumerate(image_sizes) for _ in range(size)]
    for label, image in zip(labels.tolist(), images):
        if label != ignore_label:
            counts.setdefault(label, {}).setdefault(image, 0)
            counts[label][image] += 1
    return counts


def share_out(available, total):
    """Divide a total among images one by one, turn after turn, as long as they have any: sorted numbers."""
    given_out = {image: 0 for image in available}
    while total:
        for image in sorted(available, key=available.get, reverse=True):
            if total and given_out[image] < available[image]:
                given_out[image] += 1
                total -= 1
    return sorted(given_out.values())


def expected_counts(labels, image_sizes, sampler, max_anchors, min_per_class, max_per_class):
    """{class: sorted numbers of anchors per image in which it occurs}, zeros left out."""
    counts = count_groups(labels, image_sizes)
    if sampler == "class":
        totals = {c: sum(per_image.values()) for c, per_image in counts.items()}
        totals = {c: n for c, n in totals.items() if n >= min_per_class}
        if not totals:
            return {}
        k = min(min(totals.values()), max_anchors // len(totals), max_per_class or max_anchors)
        shares = {c: share_out(counts[c], k) for c in totals}
    else:
        pairs = [(c, n) for c, per_image in counts.items() for n in per_image.values() if n >= min_per_class]
        if not pairs:
            return {}
        v = min(min(n for _, n in pairs), max_anchors // len(pairs), max_per_class or max_anchors)
        shares = {c: [v for d, _ in pairs if d == c] for c, _ in pairs}
    shares = {c: [n for n in share if n] for c, share in shares.items()}
    return {c: share for c, share in shares.items() if share}


@st.composite
def label_maps(draw):
    """Flat labels of a few images of different size, with a long tail of classes and ignored positions."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    image_sizes = draw(st.lists(st.integers(1, 120), min_size=1, max_size=5))
    parts = []
    for size in image_sizes:
        classes = torch.randint(12, (draw(st.integers(1, 6)),), generator=generator)
        frequency = torch.rand(len(classes), generator=generator) ** 3 + 1e-3
        labels = classes[torch.multinomial(frequency, size, replacement=True, generator=generator)]
        labels[torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORE
        parts.append(labels)
    return torch.cat(parts), image_sizes


options = st.fixed_dictionaries(
    dict(
        sampler=st.sampled_from(["class", "image_class"]),
        max_anchors=st.sampled_from([1, 7, 40, 10000]),
        min_per_class=st.sampled_from([1, 5, 20]),
        max_per_class=st.sampled_from([None, 2, 10]),
    )
)


@settings(max_examples=300, deadline=None)
@given(label_maps(), options)
def test_counts_and_properties(case, kwargs):
    labels, image_sizes = case
    chosen = choose_positions(labels, image_sizes, ignore_label=IGNORE, **kwargs)
    drawn = labels[chosen]

    assert len(set(chosen.tolist())) == len(chosen) <= kwargs["max_anchors"]
    assert (drawn != IGNORE).all()
    assert (drawn[1:] >= drawn[:-1]).all()
    image_of = torch.arange(len(image_sizes)).repeat_interleave(torch.tensor(image_sizes))
    per_image = {c: image_of[chosen[drawn == c]].bincount().tolist() for c in drawn.unique().tolist()}
    got = {c: sorted(n for n in counts if n) for c, counts in per_image.items()}
    assert got == expected_counts(labels, image_sizes, **kwargs)
    if kwargs["sampler"] == "class":
        assert len({sum(share) for share in got.values()}) <= 1
    else:
        assert len({n for share in got.values() for n in share}) <= 1


@pytest.mark.parametrize("sampler", ["class", "image_class"])
def test_reproducible_under_a_generator(sampler):
    labels = torch.randint(6, (4000,), generator=torch.Generator().manual_seed(0))

    def draw(seed):
        return choose_positions(labels, [1000] * 4, sampler, 600, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(3)
    first = choose_positions(labels, [1000] * 4, sampler, 600)
    torch.manual_seed(3)
    assert torch.equal(choose_positions(labels, [1000] * 4, sampler, 600), first)


@pytest.mark.parametrize("sampler, max_anchors", [("class", 20), ("image_class", 24)])
def test_uniform_within_a_stratum(sampler, max_anchors):
    """Chi-square of how often each position of an (image, class) group is drawn, over many draws."""
    labels = torch.tensor([0] * 12 + [1] * 30 + [0] * 25 + [1] * 14)
    image_sizes = [42, 39]
    draws = 4000
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(len(labels))
    for _ in range(draws):
        hits[choose_positions(labels, image_sizes, sampler, max_anchors, generator=generator)] += 1
    for group in (slice(0, 12), slice(12, 42), slice(42, 67), slice(67, 81)):
        share = hits[group].mean() / draws
        assert share > 0.1
        # Each draw hits a position or not: the variance of a count is draws * share * (1 - share), and drawing
        # without replacement correlates them such that the sum below has size - 1 degrees of freedom.
        size = len(hits[group])
        chi_square = ((hits[group] - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (size - 1) / size
        freedom = size - 1
        assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_no_image_is_preferred_for_the_remainder():
    """K = 5 from three images that have enough: shares 2, 2, 1, each image as often with 1 as the others."""
    labels = torch.tensor([0] * 30 + [1] * 5)
    generator = torch.Generator().manual_seed(0)
    short = torch.zeros(3)
    for _ in range(900):
        chosen = choose_positions(labels, [10, 10, 15], generator=generator)
        shares = (chosen[labels[chosen] == 0] // 10).bincount(minlength=3)
        assert shares.sort().values.tolist() == [1, 2, 2]
        short[shares.argmin()] += 1
    assert (short - 300).abs().max() < 4 * (900 * 2 / 9) ** 0.5


def test_a_short_image_is_made_up_for():
    labels = torch.tensor([0, 0] + [1] * 8 + [0] * 20 + [0] * 20)
    chosen = choose_positions(labels, [10, 20, 20])  # K = 8: images give 2, 3 and 3 of class 0
    images = chosen[labels[chosen] == 0] // 10
    assert [(images == 0).sum().item(), ((images == 1) | (images == 2)).sum().item()] == [2, 3]
    assert (labels[chosen] == 0).sum() == (labels[chosen] == 1).sum() == 8


@pytest.mark.parametrize("ignore_label", [255, -1, 3, 65535])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_ignore_label_and_integer_type(ignore_label, dtype):
    if ignore_label not in range(torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1):
        return
    labels = torch.tensor([0, 1, 2]).repeat_interleave(12).view(1, 6, 6)
    labels[:, :, 0] = ignore_label
    anchors, drawn = sample_anchors(torch.randn(1, 4, 6, 6), labels.to(dtype), ignore_label=ignore_label)
    assert drawn.bincount().tolist() == [10, 10, 10]
    assert anchors.shape == (30, 4)


def test_anchors_are_the_normalised_embeddings_at_their_labels():
    """Random embeddings tell where each anchor was taken from."""
    labels = torch.randint(4, (3, 8, 12))
    embeddings = torch.randn(3, 16, 4, 6)
    anchors, drawn = sample_anchors(embeddings, labels, min_per_class=1)
    vectors = F.normalize(embeddings.movedim(1, -1).reshape(-1, 16), dim=1)
    source = torch.cdist(anchors, vectors).argmin(1)
    torch.testing.assert_close(anchors, vectors[source])
    assert torch.equal(labels[:, ::2, ::2].flatten()[source], drawn)
    assert len(source.unique()) == len(source) > 0


def test_gradient_reaches_the_drawn_positions_alone():
    embeddings = torch.randn(2, 5, 6, 6, requires_grad=True)
    labels = torch.full((2, 6, 6), IGNORE)
    labels[:, :3] = torch.tensor([0, 0, 0, 1, 1, 1])
    anchors, _ = sample_anchors(embeddings, labels)
    (anchors * torch.randn_like(anchors)).sum().backward()
    touched = embeddings.grad.abs().sum(1) > 0
    assert touched.sum() == len(anchors) == 36
    assert torch.equal(touched, labels != IGNORE)


def test_half_precision_embeddings_give_float32_anchors():
    anchors, _ = sample_anchors(torch.randn(1, 5, 4, 4, dtype=torch.float16), torch.zeros(1, 4, 4, dtype=torch.long))
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors.norm(dim=1), torch.ones(16))


def test_nothing_to_draw():
    embeddings = torch.randn(2, 5, 4, 4, requires_grad=True)
    anchors, drawn = sample_anchors(embeddings, torch.full((2, 16, 16), IGNORE))
    assert anchors.shape == (0, 5) and drawn.shape == (0,)
    anchors.sum().backward()
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("size, stride", [((8, 8), 4), ((9, 7), 4), ((4, 4), 1), ((5, 3), 2)])
def test_labels_are_resized_by_nearest_neighbour(size, stride):
    labels = torch.randint(200, (2, size[0] * stride, size[1] * stride))
    small = resize_labels(torch.zeros(2, 1, *size), labels)
    assert torch.equal(small, F.interpolate(labels[:, None].double(), size)[:, 0].long())


def test_labels_of_a_size_that_the_stride_does_not_divide():
    labels = torch.randint(200, (1, 37, 50))
    small = resize_labels(torch.zeros(1, 1, 10, 13), labels)
    expected = [[labels[0, i * 37 // 10, j * 50 // 13].item() for j in range(13)] for i in range(10)]
    assert small.tolist() == [expected]


@pytest.mark.parametrize(
    "embeddings, labels, kwargs, message",
    [
        ((2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long), {}, r"same N, got \(2, 3, 4, 4\) and \(1, 8, 8\)"),
        ((2, 3, 4), torch.zeros(2, 8, 8, dtype=torch.long), {}, r"embeddings must be \(N, D, h, w\)"),
        ((2, 3, 4, 4), torch.zeros(2, 1, 8, 8, dtype=torch.long), {}, r"labels \(N, H, W\)"),
        ((2, 3, 4, 4), torch.zeros(2, 8, 8), {}, "labels must be integers, got torch.float32"),
        ((2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long), dict(sampler="pixel"), "one of .*'pixel'"),
    ],
)
def test_bad_input(embeddings, labels, kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample_anchors(torch.zeros(embeddings), labels, **kwargs)
