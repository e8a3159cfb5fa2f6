"""ContrastiveBranch against plain computations, in degenerate batches, compiled, and without Detectron2."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2_contrast.contrast import AnchorSampler, ContrastiveBranch, MultiScaleContrast, Projector
from d2_contrast.contrast.sampler import Draw, tap

CHANNELS = {"c2": 6, "c3": 5, "c5": 7}
SCALES = {"c2": 1.0, "c3": 0.7, "c5": 0.1}
PAIRS = {("c2", "c5"): 1.0, ("c2", "c3"): 0.5}
PROJECT = ["dense", "anchors"]


def make_batch(seed=0, classes=5, requires_grad=False):
    """Maps at strides 4, 8 and 16 of two images, and blocky labels with an ignored margin."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(2, CHANNELS[name], side, side, generator=generator).requires_grad_(requires_grad)
        for name, side in (("c2", 16), ("c3", 8), ("c5", 4))
    }
    labels = torch.randint(classes, (2, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :5] = 255
    return features, labels


def make_branch(project="dense", norm=nn.BatchNorm2d, hidden_layers=2, gather=False, **options):
    torch.manual_seed(1)
    projectors = {name: Projector(channels, 8, hidden_layers, norm) for name, channels in CHANNELS.items()}
    sampler = AnchorSampler(**{"min_per_group": 1, "max_anchors": 120, "max_per_group": 20, "gather": gather} | options)
    return ContrastiveBranch(projectors, MultiScaleContrast(SCALES, PAIRS, sampler=sampler), project)


def textbook(za, ya, zb, yb):
    """Eq. 1-2 with A x B matrices."""
    scores = za @ zb.t() / 0.1
    same = ya[:, None] == yb
    positive = same & ~torch.eye(len(ya), dtype=torch.bool) if za is zb else same
    log_n = scores.masked_fill(same, -math.inf).logsumexp(1, keepdim=True)
    terms = torch.where(positive & ~same.all(1, keepdim=True), F.softplus(log_n - scores), 0)
    return (terms.sum(1) / positive.sum(1).clamp(min=1)).mean()


def plain_projection(projector, vectors):
    """Vectors (P, C) through the layers as matrix products, norms over all of them; (P, D)."""
    for i in range(0, len(projector.hidden), 3):
        conv, _, norm = projector.hidden[i : i + 3]
        vectors = F.relu(vectors @ conv.weight.flatten(1).t())
        centred = vectors - vectors.mean(0)
        vectors = norm.weight * centred / (centred.square().mean(0) + norm.eps).sqrt() + norm.bias
    return vectors @ projector.last.weight.t() + projector.last.bias


def plain_losses(branch, features, labels):
    """The losses, with everything written out but which positions are drawn."""
    sets = {}
    for name in SCALES:
        side = features[name].shape[2]
        small = labels[:, :: 64 // side, :: 64 // side].flatten()
        drawn = branch.criterion.sampler.choose(small, [side * side] * 2)
        vectors = features[name].movedim(1, 3).flatten(0, 2)
        if branch.project == "dense":
            embeddings = plain_projection(branch.projectors[name], vectors)[drawn]
        else:
            embeddings = plain_projection(branch.projectors[name], vectors[drawn])
        sets[name] = embeddings / embeddings.norm(dim=1, keepdim=True), small[drawn]
    losses = {f"loss_contrast_{n}": 0.1 * w * textbook(*sets[n], *sets[n]) for n, w in SCALES.items()}
    return losses | {f"loss_contrast_{a}_{b}": 0.1 * w * textbook(*sets[a], *sets[b]) for (a, b), w in PAIRS.items()}


@pytest.mark.parametrize("unit", ["class", "image_class"])
@pytest.mark.parametrize("project", PROJECT)
def test_against_a_plain_computation(project, unit):
    features, labels = make_batch(requires_grad=True)
    branch = make_branch(project, unit=unit).double()
    features = {name: x.detach().double().requires_grad_() for name, x in features.items()}
    leaves = [*branch.parameters(), *features.values()]
    results = []
    for losses_of in (branch, lambda *args: plain_losses(branch, *args)):
        torch.manual_seed(2)
        losses = losses_of(features, labels)
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1])


# As computed before the branch was a module of its own, by projectors and criterion in the meta-architecture.
BEFORE = {
    "class": ([1.36495364, 1.03283679, 0.0, 0.36811534, 0.36517608], [0.09545442, 0.1080251, 0.08859058], 1.69228065),
    "image_class": (
        [1.36326981, 0.99250478, 0.08946226, 0.42538133, 0.36031017],
        [0.08512612, 0.11428621, 0.09302372],
        1.78587663,
    ),
}


@pytest.mark.parametrize("unit", BEFORE)
def test_values_and_draws_are_those_of_before(unit):
    features, labels = make_batch(requires_grad=True)
    branch = make_branch(unit=unit)
    criterion = MultiScaleContrast(
        SCALES, PAIRS, sampler=branch.criterion.sampler, ms_weight=0.3, cs_weight=0.2, warmup_iters=10
    )
    branch.criterion = criterion
    torch.manual_seed(2)
    losses = branch(features, labels, 5)
    sum(losses.values()).backward()
    values, norms, norm = BEFORE[unit]
    assert list(losses) == [f"loss_contrast_{x}" for x in ("c2", "c3", "c5", "c2_c5", "c2_c3")]
    assert [loss.item() for loss in losses.values()] == pytest.approx(values, rel=1e-4)
    assert [x.grad.norm().item() for x in features.values()] == pytest.approx(norms, rel=1e-4)
    assert math.sqrt(sum(p.grad.square().sum() for p in branch.parameters())) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("project", PROJECT)
def test_halves_of_the_forward_pass(project):
    features, labels = make_batch()
    branch = make_branch(project)
    torch.manual_seed(0)
    whole = branch(features, labels)
    torch.manual_seed(0)
    anchor_sets = branch.sample(features, labels)
    assert list(anchor_sets) == list(SCALES)
    torch.testing.assert_close(branch.losses(anchor_sets), whole)


@pytest.mark.parametrize("gather", [False, True])
def test_a_last_layer_for_anchors_alone_changes_no_values(gather):
    features, labels = make_batch(requires_grad=True)
    branch = make_branch(gather=gather)
    leaves = [*branch.parameters(), *features.values()]
    results = []
    for whole_maps in (False, True):
        torch.manual_seed(0)
        if whole_maps:
            losses = branch.criterion({name: branch.projectors[name](features[name]) for name in SCALES}, labels)
        else:
            losses = branch(features, labels)
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    torch.testing.assert_close(results[1], results[0])
    assert all(gradient.abs().sum() > 0 for gradient in results[1][1])


NORMS = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(1, channels),
    "IN": nn.InstanceNorm2d,
}


@pytest.mark.parametrize("unit", ["class", "image_class"])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("project", PROJECT)
def test_no_valid_class_gives_zero_losses_and_zero_gradients_everywhere(project, gather, unit):
    features, labels = make_batch(requires_grad=True)
    branch = make_branch(project, gather=gather, unit=unit)
    losses = branch(features, torch.full_like(labels, 255))
    assert [loss.item() for loss in losses.values()] == [0.0] * 5
    sum(losses.values()).backward()
    for leaf in (*branch.parameters(), *features.values()):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert all(buffer.isfinite().all() for buffer in branch.buffers())


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("project", PROJECT)
def test_few_anchors(project, norm, count):
    """Of which no norm has statistics: every parameter gets a finite gradient all the same."""
    features, labels = make_batch(requires_grad=True)
    few = torch.full_like(labels, 255)
    few[0, 0, [0, 32][:count]] = torch.arange(count)
    branch = make_branch(project, NORMS[norm])
    anchor_sets = branch.sample(features, few)
    assert [len(anchor_set.vectors) for anchor_set in anchor_sets.values()] == [count] * 3
    losses = branch.losses(anchor_sets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for leaf in (*branch.parameters(), *features.values()):
        assert leaf.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in branch.buffers())


def test_norms_see_the_anchors_alone():
    """The running statistics, with which embed works, are those of the drawn vectors."""
    features, labels = make_batch()
    branch = make_branch("anchors", hidden_layers=1)
    for projector in branch.projectors.values():
        projector.hidden[2].momentum = 1.0
    torch.manual_seed(0)
    branch(features, labels)
    torch.manual_seed(0)
    for name, projector in branch.projectors.items():
        side = features[name].shape[2]
        drawn = branch.criterion.sampler.choose(labels[:, :: 64 // side, :: 64 // side].flatten(), [side * side] * 2)
        vectors = features[name].movedim(1, 3).flatten(0, 2)[drawn]
        activations = F.relu(vectors @ projector.hidden[0].weight.flatten(1).t())
        torch.testing.assert_close(projector.hidden[2].running_mean, activations.mean(0))
        torch.testing.assert_close(projector.hidden[2].running_var, activations.var(0))


class LargestOutput(TorchDispatchMode):
    """The size of the largest memory for numbers of floating point that operators make, views of a map left out."""

    def __init__(self, of: torch.Tensor):
        super().__init__()
        self.input = of.untyped_storage().data_ptr()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.device.type != "meta":
                if x.untyped_storage().data_ptr() != self.input:
                    self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_anchors_alone_make_no_map():
    """Neither in the forward pass, nor in the backward pass but for the gradient of the map itself."""
    labels = torch.randint(5, (2, 64, 64))
    largest = {}
    for project in PROJECT:
        x = torch.randn(2, 6, 64, 64, requires_grad=True)
        projector, sampler = Projector(6, 8), AnchorSampler(max_anchors=60)
        branch = ContrastiveBranch({"c2": projector}, MultiScaleContrast({"c2": 1.0}, sampler=sampler), project)
        with LargestOutput(x) as forward:
            losses = branch({"c2": x}, labels)
        with LargestOutput(x) as backward:
            sum(losses.values()).backward()
        largest[project] = forward.elements, backward.elements
        assert x.grad.stride() == x.stride()
    assert largest["dense"][0] >= x.numel()
    assert largest["anchors"][0] < x.numel() / 5 and largest["anchors"][1] == x.numel()


def read_by_a_head(features):
    """A loss of maps that changes one in place, and hands one gradient to two of its inputs."""
    aside = [x.detach().clone().requires_grad_() for x in features.values()]
    parts = [(x.relu_() if name == "c3" else x) + y for (name, x), y in zip(features.items(), aside)]
    return sum((part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in parts), aside


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_tap_changes_nothing(layout):
    features, labels = make_batch()
    branch = make_branch("anchors").double()
    results = []
    for with_tap in (False, True):
        leaves = {name: x.double().contiguous(memory_format=layout).requires_grad_() for name, x in features.items()}
        maps = {name: x * 2 for name, x in leaves.items()}
        torch.manual_seed(2)
        read, tapped = branch.tap(maps, labels) if with_tap else ({name: x.clone() for name, x in maps.items()}, None)
        head, aside = read_by_a_head(read)
        losses = branch(maps, labels, tapped=tapped)
        inputs = [*leaves.values(), *aside, *branch.parameters()]
        results.append((head, losses, torch.autograd.grad(head + sum(losses.values()), inputs)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("of_map, of_vectors", [(True, False), (False, True)])
def test_one_side_of_a_tap_may_have_no_gradient(of_map, of_vectors):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    passed_on, vectors = tap(x, Draw(torch.tensor([3, 27]), torch.tensor([0, 1])))
    (gradient,) = torch.autograd.grad(passed_on.sum() if of_map else vectors.sum(), x)
    expected = torch.ones_like(x) if of_map else torch.zeros_like(x)
    expected[0, :, 0, 3] = expected[1, :, 1, 2] = 1
    assert torch.equal(gradient, expected)


class Mark(torch.autograd.Function):
    """Does nothing but say when the backward pass comes to it."""

    @staticmethod
    def forward(ctx, x, reached):
        ctx.reached = reached
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.reached()
        return grad, None


@pytest.mark.parametrize("with_tap", [True, False])
def test_with_a_tap_no_gradient_of_a_map_waits_for_the_head(with_tap):
    x = torch.randn(2, 6, 64, 64, requires_grad=True)
    labels = torch.randint(5, (2, 64, 64))
    criterion = MultiScaleContrast({"c2": 1.0}, sampler=AnchorSampler(max_anchors=60))
    branch = ContrastiveBranch({"c2": Projector(6, 8)}, criterion, "anchors")
    features, tapped = branch.tap({"c2": x}, labels) if with_tap else ({"c2": x}, None)
    largest = []
    with LargestOutput(x) as backward:
        head = Mark.apply(features["c2"].sum(), lambda: largest.append(backward.elements))
        losses = branch(features, labels, tapped=tapped)
        backward.elements = 0
        (head + sum(losses.values())).backward()
    assert (largest[0] < x.numel() / 5) == with_tap


@pytest.mark.parametrize("project", PROJECT)
def test_compiled_training_forward_changes_no_values(project):
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(3, 6, 4, stride=4)
            projectors = {"c2": Projector(6, 8), "c5": Projector(6, 8)}
            criterion = MultiScaleContrast(
                {"c2": 1, "c5": 0.5}, {("c2", "c5"): 1}, sampler=AnchorSampler(max_anchors=100)
            )
            self.contrast = ContrastiveBranch(projectors, criterion, project)

        def forward(self, images, labels):
            x = F.relu(self.backbone(images))
            return self.contrast({"c2": x, "c5": F.avg_pool2d(x, 2)}, labels)

    model = Training()
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(3):  # other numbers of anchors must not compile anything anew
        images = torch.randn(2, 3, 64, 64)
        labels = make_batch(seed, classes=seed + 2)[1]
        results = []
        for forward in (model, compiled):
            model.zero_grad()
            torch.manual_seed(0)
            with torch._dynamo.config.patch(error_on_recompile=seed > 0):
                losses = forward(images, labels)
            sum(losses.values()).backward()
            results.append((losses, [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(results[1], results[0])


def test_embed_projects_whole_maps():
    features, _ = make_batch()
    branch = make_branch().eval()
    embeddings = branch.embed(features)
    assert list(embeddings) == list(SCALES)
    for name, x in embeddings.items():
        torch.testing.assert_close(x.norm(dim=1), torch.ones_like(x[:, 0]))
        torch.testing.assert_close(x, F.normalize(branch.projectors[name](features[name])))


def test_what_does_not_fit():
    features, labels = make_batch()
    branch = make_branch()
    del features["c3"]
    with pytest.raises(ValueError, match=r"features lack \['c3'\], they have \['c2', 'c5'\]"):
        branch(features, labels)
    for names in (["c2", "c3"], ["c2", "c3", "c5", "c9"]):
        with pytest.raises(ValueError, match=r"projectors must be one for each scale, \['c2', 'c3', 'c5'\], got"):
            ContrastiveBranch({name: Projector(6) for name in names}, branch.criterion)
    with pytest.raises(ValueError, match=r"project must be one of \('dense', 'anchors'\), got 'sparse'"):
        ContrastiveBranch(dict(branch.projectors), branch.criterion, "sparse")
    with pytest.raises(ValueError, match='project is "dense", which reads whole maps: there is nothing to tap'):
        branch.tap(features, labels)


def test_contrast_needs_torch_alone():
    code = """
import sys
import d2_contrast.contrast
print([m for m in ("detectron2", "fvcore", "iopath", "timm", "torchvision", "cv2") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
