"""Which positions are drawn, against a slow and obvious implementation, and properties on random label maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_contrast.contrast import AnchorSampler

IGNORE = 255


def count_groups(labels, image_sizes, ignore_label=IGNORE):
    """{class: {image: number of positions}} by a loop over positions."""
    counts = {}
    images = [image for image, size in enumerate(image_sizes) for _ in range(size)]
    for label, image in zip(labels.tolist(), images):
        if label != ignore_label and label >= 0:
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


def expected_counts(labels, image_sizes, unit, max_anchors, min_per_group, max_per_group):
    """{class: sorted numbers of anchors per image in which it occurs}, zeros left out."""
    counts = count_groups(labels, image_sizes)
    if unit == "class":
        totals = {c: sum(per_image.values()) for c, per_image in counts.items()}
        totals = {c: n for c, n in totals.items() if n >= min_per_group}
        if not totals:
            return {}
        k = min(min(totals.values()), max_anchors // len(totals), max_per_group or max_anchors)
        shares = {c: share_out(counts[c], k) for c in totals}
    else:
        pairs = [(c, n) for c, per_image in counts.items() for n in per_image.values() if n >= min_per_group]
        if not pairs:
            return {}
        v = min(min(n for _, n in pairs), max_anchors // len(pairs), max_per_group or max_anchors)
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
        labels[torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.1]))] = -100
        parts.append(labels)
    return torch.cat(parts), image_sizes


options = st.fixed_dictionaries(
    dict(
        unit=st.sampled_from(["class", "image_class"]),
        max_anchors=st.sampled_from([1, 7, 40, 10000]),
        min_per_group=st.sampled_from([1, 5, 20]),
        max_per_group=st.sampled_from([0, 2, 10]),
    )
)


@settings(max_examples=300, deadline=None)
@given(label_maps(), options)
def test_counts_and_properties(case, kwargs):
    labels, image_sizes = case
    chosen = AnchorSampler(**kwargs).choose(labels, image_sizes)
    drawn = labels[chosen]

    assert len(set(chosen.tolist())) == len(chosen) <= kwargs["max_anchors"]
    assert (drawn != IGNORE).all() and (drawn >= 0).all()
    assert (drawn[1:] >= drawn[:-1]).all()
    image_of = torch.arange(len(image_sizes)).repeat_interleave(torch.tensor(image_sizes))
    per_image = {c: image_of[chosen[drawn == c]].bincount().tolist() for c in drawn.unique().tolist()}
    got = {c: sorted(n for n in counts if n) for c, counts in per_image.items()}
    assert got == expected_counts(labels, image_sizes, **kwargs)
    if kwargs["unit"] == "class":
        assert len({sum(share) for share in got.values()}) <= 1
    else:
        assert len({n for share in got.values() for n in share}) <= 1


@pytest.mark.parametrize("unit", ["class", "image_class"])
def test_reproducible_under_a_generator(unit):
    sampler = AnchorSampler(unit=unit, max_anchors=600)
    labels = torch.randint(6, (4000,), generator=torch.Generator().manual_seed(0))

    def draw(seed):
        return sampler.choose(labels, [1000] * 4, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(3)
    first = sampler.choose(labels, [1000] * 4)
    torch.manual_seed(3)
    assert torch.equal(sampler.choose(labels, [1000] * 4), first)


@pytest.mark.parametrize("unit, max_anchors", [("class", 20), ("image_class", 24)])
def test_uniform_within_a_stratum(unit, max_anchors):
    """Chi-square of how often each position of an (image, class) group is drawn, over many draws."""
    labels = torch.tensor([0] * 12 + [1] * 30 + [0] * 25 + [1] * 14)
    image_sizes = [42, 39]
    draws = 4000
    sampler = AnchorSampler(unit=unit, max_anchors=max_anchors)
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(len(labels))
    for _ in range(draws):
        hits[sampler.choose(labels, image_sizes, generator)] += 1
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
        chosen = AnchorSampler().choose(labels, [10, 10, 15], generator)
        shares = (chosen[labels[chosen] == 0] // 10).bincount(minlength=3)
        assert shares.sort().values.tolist() == [1, 2, 2]
        short[shares.argmin()] += 1
    assert (short - 300).abs().max() < 4 * (900 * 2 / 9) ** 0.5


def test_a_short_image_is_made_up_for():
    labels = torch.tensor([0, 0] + [1] * 8 + [0] * 20 + [0] * 20)
    chosen = AnchorSampler().choose(labels, [10, 20, 20])  # K = 8: images give 2, 3 and 3 of class 0
    images = chosen[labels[chosen] == 0] // 10
    assert [(images == 0).sum().item(), ((images == 1) | (images == 2)).sum().item()] == [2, 3]
    assert (labels[chosen] == 0).sum() == (labels[chosen] == 1).sum() == 8


@pytest.mark.parametrize("unit", ["class", "image_class"])
@pytest.mark.parametrize("negative", [-1, -100, -(2**31), -(2**40), torch.iinfo(torch.int64).min])
def test_negative_labels_are_never_classes(unit, negative):
    labels = torch.tensor([0, 1, 2]).repeat_interleave(20)
    labels[::2] = negative
    chosen = AnchorSampler(unit=unit).choose(labels, [60])
    assert labels[chosen].bincount().tolist() == [10, 10, 10]
    assert len(AnchorSampler(unit=unit).choose(torch.full((60,), negative), [30, 30])) == 0


def test_no_limit_on_a_group():
    labels = torch.tensor([0, 1]).repeat_interleave(3000)
    for limit, count in ((0, 3000), (2500, 2500), (10, 10)):
        chosen = AnchorSampler(max_per_group=limit).choose(labels, [6000])
        assert labels[chosen].bincount().tolist() == [count, count]
