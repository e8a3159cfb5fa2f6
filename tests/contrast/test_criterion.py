"""MultiScaleContrast: its terms, weights, warm-up, degenerate batches, statistics and errors."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2_contrast.contrast import MultiScaleContrast, Projector, sample_anchors, supervised_info_nce

NAMES = ["p2", "p3", "p5"]
PAIRS = [("p2", "p5"), ("p2", "p3")]


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
    weights, cross_weights = [1.0, 0.7, 0.4], [0.5, 2.0]
    criterion = MultiScaleContrast(
        NAMES, weights, PAIRS, cross_weights, ms_weight=0.3, cs_weight=0.2, temperature=0.2, max_anchors=60
    )
    torch.manual_seed(1)
    losses = criterion(embeddings, labels)
    torch.manual_seed(1)
    sets = {name: sample_anchors(embeddings[name], labels, max_anchors=60) for name in NAMES}
    expected = {
        f"loss_contrast_{n}": 0.3 * w * supervised_info_nce(*sets[n], temperature=0.2) for n, w in zip(NAMES, weights)
    }
    for (a, b), w in zip(PAIRS, cross_weights):
        expected[f"loss_contrast_{a}_{b}"] = 0.2 * w * supervised_info_nce(*sets[a], *sets[b], temperature=0.2)
    assert list(losses) == list(expected)
    torch.testing.assert_close(losses, expected)
    assert all(loss > 0 for loss in losses.values())


def test_defaults_are_those_of_the_paper():
    embeddings, labels = batch()
    torch.manual_seed(1)
    losses = MultiScaleContrast(NAMES, [1, 1, 1], PAIRS)(embeddings, labels)
    torch.manual_seed(1)
    sets = {name: sample_anchors(embeddings[name], labels) for name in NAMES}
    for name in NAMES:
        torch.testing.assert_close(losses[f"loss_contrast_{name}"], 0.1 * supervised_info_nce(*sets[name]))
    for a, b in PAIRS:
        torch.testing.assert_close(losses[f"loss_contrast_{a}_{b}"], 0.1 * supervised_info_nce(*sets[a], *sets[b]))


def test_cross_scale_gradients_reach_both_sides():
    embeddings, labels = batch()
    MultiScaleContrast(NAMES, [1, 1, 1], PAIRS)(embeddings, labels)["loss_contrast_p2_p5"].backward()
    assert embeddings["p2"].grad.abs().sum() > 0 and embeddings["p5"].grad.abs().sum() > 0
    assert embeddings["p3"].grad is None


def test_same_seed_same_losses_and_another_seed_others():
    embeddings, labels = batch()
    criterion = MultiScaleContrast(NAMES, [1, 1, 1], PAIRS, max_anchors=40)

    def losses(seed):
        torch.manual_seed(seed)
        return torch.stack(list(criterion(embeddings, labels).values()))

    assert torch.equal(losses(0), losses(0))
    assert not torch.equal(losses(0), losses(1))


def project_and_contrast(projectors, criterion, features, labels, sparse):
    """The losses; if sparse, only anchors pass the last layers."""
    if not sparse:
        return criterion({n: projectors[n](features[n]) for n in projectors}, labels)
    hidden = {n: projectors[n].hidden(features[n]) for n in projectors}
    return criterion(hidden, labels, last_layers={n: projectors[n].last for n in projectors})


@pytest.mark.parametrize("gather", [False, True])
def test_last_layers_of_anchors_alone_change_no_values(gather):
    features, labels = batch()
    projectors = nn.ModuleDict({name: Projector(6, 5) for name in NAMES})
    criterion = MultiScaleContrast(NAMES, [1, 0.7, 0.4], PAIRS, max_anchors=60, gather=gather)
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        losses = project_and_contrast(projectors, criterion, features, labels, sparse)
        leaves = [*projectors.parameters(), *features.values()]
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    torch.testing.assert_close(results[1], results[0])
    assert all(gradient.abs().sum() > 0 for gradient in results[1][1])


@pytest.mark.parametrize("sampler", ["class", "image_class"])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_no_valid_class_gives_zero_losses_and_zero_gradients_everywhere(sampler, gather, sparse):
    features, labels = batch(requires_grad=False)
    projectors = {name: Projector(6, 5) for name in NAMES}
    criterion = MultiScaleContrast(NAMES, [1, 0.7, 0.4], PAIRS, sampler=sampler, gather=gather)
    losses = project_and_contrast(projectors, criterion, features, torch.full_like(labels, 255), sparse)
    assert [loss.item() for loss in losses.values()] == [0.0] * 5
    sum(losses.values()).backward()
    for parameter in itertools.chain(*(p.parameters() for p in projectors.values())):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize("classes", [1, 2])
def test_finite_with_few_classes(classes):
    embeddings, labels = batch(classes=classes)
    losses = MultiScaleContrast(NAMES, [1, 0.7, 0.4], PAIRS)(embeddings, labels)
    sum(losses.values()).backward()
    values = torch.stack(list(losses.values()))
    assert values.isfinite().all() and (values == 0).all() == (classes == 1)
    assert all(embeddings[n].grad.isfinite().all() for n in NAMES)


def test_finite_with_zero_embeddings():
    embeddings, labels = batch()
    embeddings = {n: torch.zeros_like(e, requires_grad=True) for n, e in embeddings.items()}
    losses = MultiScaleContrast(NAMES, [1, 0.7, 0.4], PAIRS)(embeddings, labels)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(embeddings[n].grad.isfinite().all() for n in NAMES)


def test_warm_up_scales_all_terms_linearly():
    embeddings, labels = batch()

    def losses(iteration, warmup_iters):
        torch.manual_seed(0)
        return MultiScaleContrast(NAMES, [1, 1, 1], PAIRS, warmup_iters=warmup_iters)(embeddings, labels, iteration)

    full = losses(None, 0)
    for iteration, factor in ((0, 0.0), (25, 0.25), (100, 1.0), (5000, 1.0)):
        torch.testing.assert_close(losses(iteration, 100), {k: factor * v for k, v in full.items()})
    with pytest.raises(ValueError, match="warmup_iters is 100: forward needs the iteration"):
        losses(None, 100)


def test_statistics():
    embeddings, labels = batch()
    criterion = MultiScaleContrast(NAMES, [1, 1, 1], PAIRS)
    torch.manual_seed(0)
    losses, stats = criterion(embeddings, labels, with_stats=True)
    torch.manual_seed(0)
    torch.testing.assert_close(criterion(embeddings, labels), losses)
    torch.manual_seed(0)
    for name in NAMES:
        anchors, drawn = sample_anchors(embeddings[name], labels)
        cosines = anchors @ anchors.t()
        same = drawn[:, None] == drawn[None]
        other = ~torch.eye(len(drawn), dtype=torch.bool)
        num_classes = len(drawn.unique())
        expected = {
            "num_anchors": len(drawn),
            "num_classes": num_classes,
            "anchors_per_class": len(drawn) / num_classes,
            "positive_similarity": cosines[same & other].mean().item(),
            "negative_similarity": cosines[~same].mean().item(),
        }
        got = {key: float(stats.pop(f"contrast/{name}/{key}")) for key in expected}
        assert got == pytest.approx(expected, abs=1e-6)
    assert not stats


def test_extra_embeddings_do_no_harm_and_a_missing_one_is_named():
    embeddings, labels = batch()
    criterion = MultiScaleContrast(["p2", "p5"], [1, 1])
    assert list(criterion(embeddings, labels)) == ["loss_contrast_p2", "loss_contrast_p5"]
    with pytest.raises(ValueError, match=r"embeddings lack \['p5'\], they have \['p2'\]"):
        criterion({"p2": embeddings["p2"]}, labels)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(scale_weights=[1, 1]),
            r"scale_weights must have one entry for each of \['p2', 'p3', 'p5'\], got \[1, 1\]",
        ),
        (dict(in_features=[]), "in_features must name one or more"),
        (dict(in_features=["p2", "p2", "p3"]), "each once"),
        (dict(cross_scale_pairs=[("p2", "p9")]), r"from \['p2', 'p3', 'p5'\], got \['p2', 'p9'\]"),
        (dict(cross_scale_pairs=[("p2", "p2")]), "pairs of different names"),
        (dict(cross_scale_pairs=[("p2", "p3", "p5")]), "pairs of different names"),
        (dict(cross_scale_pairs=[("p2", "p3")] * 2), "must not repeat"),
        (dict(cross_scale_pairs=PAIRS, cross_scale_weights=[1]), "each of the 2 cross_scale_pairs"),
        (dict(sampler="pixel"), "sampler must be one of .*'pixel'"),
        (dict(max_anchors=0), "max_anchors must be at least 1, got 0"),
        (dict(min_per_class=0), "min_per_class must be at least 1"),
        (dict(max_per_class=0), "max_per_class must be at least 1"),
        (dict(warmup_iters=-1), "warmup_iters must be at least 0"),
        (dict(temperature=0), "temperature must be at least 0.002"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleContrast(**(dict(in_features=NAMES, scale_weights=[1, 1, 1]) | change))


class Training(nn.Module):
    """Projectors and criterion behind a convolution, as a training forward pass has them."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 4, stride=4)
        self.projectors = nn.ModuleDict({"p2": Projector(8, 6), "p5": Projector(8, 6)})
        self.criterion = MultiScaleContrast(["p2", "p5"], [1, 0.5], [("p2", "p5")], max_anchors=100)

    def forward(self, images, labels):
        x = F.relu(self.backbone(images))
        features = {"p2": x, "p5": F.avg_pool2d(x, 2)}
        return project_and_contrast(self.projectors, self.criterion, features, labels, sparse=True)


def test_compiled_training_forward_changes_no_values():
    _, labels = batch()
    model = Training()
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(3):  # other numbers of anchors must not break the compiled graph
        images = torch.randn(2, 3, 64, 64)
        labels = batch(seed, classes=seed + 2)[1]
        results = []
        for forward in (model, compiled):
            model.zero_grad()
            torch.manual_seed(0)
            losses = forward(images, labels)
            sum(losses.values()).backward()
            results.append((losses, [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(results[1], results[0])


def test_contrast_needs_torch_alone():
    code = """
import sys
import d2_contrast.contrast
print([m for m in ("detectron2", "fvcore", "iopath", "timm", "torchvision", "cv2") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
