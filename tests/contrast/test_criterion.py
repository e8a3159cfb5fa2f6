"""MultiScaleContrast: its terms, weights, warm-up, degenerate batches and errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from d2_contrast.contrast import AnchorSampler, AnchorSet, MultiScaleContrast, supervised_info_nce

NAMES = ["p2", "p3", "p5"]
SCALES = {"p2": 1.0, "p3": 0.7, "p5": 0.4}
PAIRS = {("p2", "p5"): 1.0, ("p2", "p3"): 1.0}


def batch(seed=0, classes=4, dim=6, requires_grad=True):
    """Embeddings at strides 4, 8 and 8, and blocky labels with an ignored margin."""
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(p2=(16, 16), p3=(8, 8), p5=(8, 8))
    embeddings = {
        name: torch.randn(2, dim, *size, generator=generator).requires_grad_(requires_grad)
        for name, size in sizes.items()
    }
    labels = torch.randint(classes, (2, 4, 4), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :9] = 255
    return embeddings, labels


def test_terms_are_weighted_losses_of_the_drawn_sets():
    embeddings, labels = batch()
    pairs = {("p2", "p5"): 0.5, ("p2", "p3"): 2.0}
    sampler = AnchorSampler(max_anchors=60)
    criterion = MultiScaleContrast(SCALES, pairs, sampler=sampler, ms_weight=0.3, cs_weight=0.2, temperature=0.2)
    torch.manual_seed(1)
    losses = criterion(embeddings, labels)
    torch.manual_seed(1)
    sets = {name: sampler(embeddings[name], labels) for name in NAMES}
    expected = {
        f"loss_contrast_{n}": 0.3 * w * supervised_info_nce(*sets[n], temperature=0.2) for n, w in SCALES.items()
    }
    for (a, b), w in pairs.items():
        expected[f"loss_contrast_{a}_{b}"] = 0.2 * w * supervised_info_nce(*sets[a], *sets[b], temperature=0.2)
    assert list(losses) == list(expected)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(criterion.terms(sets), expected)
    assert all(loss > 0 for loss in losses.values())


def test_defaults_are_those_of_the_paper():
    embeddings, labels = batch()
    torch.manual_seed(1)
    losses = MultiScaleContrast(dict.fromkeys(NAMES, 1), PAIRS)(embeddings, labels)
    torch.manual_seed(1)
    sets = {name: AnchorSampler()(embeddings[name], labels) for name in NAMES}
    for name in NAMES:
        torch.testing.assert_close(losses[f"loss_contrast_{name}"], 0.1 * supervised_info_nce(*sets[name]))
    for a, b in PAIRS:
        torch.testing.assert_close(losses[f"loss_contrast_{a}_{b}"], 0.1 * supervised_info_nce(*sets[a], *sets[b]))


def test_cross_scale_gradients_reach_both_sides():
    embeddings, labels = batch()
    MultiScaleContrast(SCALES, PAIRS)(embeddings, labels)["loss_contrast_p2_p5"].backward()
    assert embeddings["p2"].grad.abs().sum() > 0 and embeddings["p5"].grad.abs().sum() > 0
    assert embeddings["p3"].grad is None


def test_same_seed_same_losses_and_another_seed_others():
    embeddings, labels = batch()
    criterion = MultiScaleContrast(SCALES, PAIRS, sampler=AnchorSampler(max_anchors=40))

    def losses(seed):
        torch.manual_seed(seed)
        return torch.stack(list(criterion(embeddings, labels).values()))

    assert torch.equal(losses(0), losses(0))
    assert not torch.equal(losses(0), losses(1))


@pytest.mark.parametrize("classes", [1, 2])
def test_finite_with_few_classes(classes):
    embeddings, labels = batch(classes=classes)
    losses = MultiScaleContrast(SCALES, PAIRS)(embeddings, labels)
    sum(losses.values()).backward()
    values = torch.stack(list(losses.values()))
    assert values.isfinite().all() and (values == 0).all() == (classes == 1)
    assert all(embeddings[n].grad.isfinite().all() for n in NAMES)


def test_finite_with_zero_embeddings():
    embeddings, labels = batch()
    embeddings = {n: torch.zeros_like(e, requires_grad=True) for n, e in embeddings.items()}
    losses = MultiScaleContrast(SCALES, PAIRS)(embeddings, labels)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(embeddings[n].grad.isfinite().all() for n in NAMES)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite(value):
    embeddings, labels = batch(requires_grad=False)
    embeddings["p3"][:] = value
    with pytest.raises(ValueError, match="scale 'p3': .* vectors are wrong, .* not finite"):
        MultiScaleContrast(SCALES, PAIRS)(embeddings, labels)


def test_anchors_that_are_not_of_unit_length():
    labels = torch.arange(20) % 4
    sets = {name: AnchorSet(F.normalize(torch.randn(20, 6), dim=1), labels) for name in NAMES}
    criterion = MultiScaleContrast(SCALES, PAIRS)
    criterion.terms(sets)
    sets["p5"] = AnchorSet(3 * sets["p5"].vectors, labels)
    with pytest.raises(ValueError, match="scale 'p5': 20 of 20 vectors are wrong, .* not of unit length but 3"):
        criterion.terms(sets)


def test_warm_up_scales_all_terms_linearly():
    embeddings, labels = batch()

    def losses(iteration, warmup_iters):
        torch.manual_seed(0)
        return MultiScaleContrast(SCALES, PAIRS, warmup_iters=warmup_iters)(embeddings, labels, iteration)

    full = losses(None, 0)
    for iteration, factor in ((0, 0.0), (25, 0.25), (100, 1.0), (5000, 1.0)):
        torch.testing.assert_close(losses(iteration, 100), {k: factor * v for k, v in full.items()})
    with pytest.raises(ValueError, match="warmup_iters is 100: forward needs the iteration"):
        losses(None, 100)


def test_decay_ends_all_terms():
    embeddings, labels = batch()

    def losses(iteration, **options):
        torch.manual_seed(0)
        return MultiScaleContrast(SCALES, PAIRS, **options)(embeddings, labels, iteration)

    full = losses(None)
    for iteration, factor in ((0, 1.0), (50, 0.75), (200, 0.0), (300, 0.0)):
        torch.testing.assert_close(losses(iteration, decay_iters=200), {k: factor * v for k, v in full.items()})
    both = losses(50, decay_iters=200, warmup_iters=100)
    torch.testing.assert_close(both, {k: 0.5 * 0.75 * v for k, v in full.items()})
    with pytest.raises(ValueError, match="decay_iters is 200: forward needs the iteration"):
        losses(None, decay_iters=200)


def test_other_embeddings_are_passed_over_and_a_missing_one_is_named():
    embeddings, labels = batch()
    criterion = MultiScaleContrast({"p2": 1, "p5": 1})
    assert list(criterion(embeddings, labels)) == ["loss_contrast_p2", "loss_contrast_p5"]
    with pytest.raises(ValueError, match=r"embeddings lack \['p5'\], they have \['p2'\]"):
        criterion({"p2": embeddings["p2"]}, labels)
    with pytest.raises(ValueError, match=r"anchor_sets lack \['p2', 'p5'\], they have \[\]"):
        criterion.terms({})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scales=["p2", "p3"]), r"scales must map one or more names to weights, .*got \['p2', 'p3'\]"),
        (dict(scales={}), "scales must map one or more names to weights"),
        (dict(pairs=[("p2", "p3")]), "pairs must map two names to a weight"),
        (dict(pairs={("p2", "p9"): 1}), r"from \['p2', 'p3', 'p5'\], got \('p2', 'p9'\)"),
        (dict(pairs={("p2", "p2"): 1}), "pairs must be of two different names"),
        (dict(pairs={("p2", "p3", "p5"): 1}), "pairs must be of two different names"),
        (dict(warmup_iters=-1), "warmup_iters must be at least 0"),
        (dict(decay_iters=-1), "decay_iters must be at least 0"),
        (dict(temperature=0), "temperature must be a number of at least 0.002"),
        (dict(temperature="0.1"), "temperature must be a number of at least 0.002, got '0.1'"),
        (dict(scales={"p2": 1, "p3": float("nan")}), "the weight of p3 must be a finite number"),
        (dict(pairs={("p2", "p3"): "1"}), r"the weight of pair \('p2', 'p3'\) must be .*, got '1'"),
        (dict(pairs={5: 1.0}), "pairs must be of two different names from .*, got 5"),
        (dict(scales={"a": 1, "b": 1, "a_b": 1}, pairs={("a", "b"): 1}), "two terms would have the name .*_a_b"),
        (dict(ms_weight=-1.0), "the weight of ms_weight must be a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleContrast(**(dict(scales=SCALES) | change))


def test_a_pair_of_other_dimensions_is_refused():
    criterion = MultiScaleContrast({"a": 1, "b": 1}, {("a", "b"): 1}, sampler=AnchorSampler(min_per_group=1))
    maps = {"a": torch.randn(1, 8, 4, 4), "b": torch.randn(1, 9, 4, 4)}
    with pytest.raises(ValueError, match=r"'a' and 'b' must have one dimension to be a pair, got \[8, 9\]"):
        criterion(maps, torch.arange(2).repeat(1, 4, 2))
