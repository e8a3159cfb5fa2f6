"""Memories against brute force, and the faults that public code of these methods has."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import run_in_two_processes
from products import FULL, TF32, PrecisionOfProducts
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_contrast.contrast import (
    AnchorSampler,
    AnchorSet,
    AverageMemory,
    ClassRings,
    ContrastiveBranch,
    MinedMemory,
    MultiScaleContrast,
    Projector,
)

CLASSES, DIM = 4, 6
KINDS = ["pixels", "regions", "pixels+regions", "averages"]


def make_memory(kind, num_classes=CLASSES, dim=DIM, size=20, **options):
    if kind == "averages":
        return AverageMemory(num_classes, dim, size)
    return MinedMemory(num_classes, dim, dict.fromkeys(kind.split("+"), size), **options)


def make_branch(kind, gather=False, project="dense", **options):
    torch.manual_seed(0)
    sampler = AnchorSampler(max_per_group=5, min_per_group=1, gather=gather)
    criterion = MultiScaleContrast(
        {"p2": 1.0}, sampler=sampler, ms_weight=1.0, memories={"p2": make_memory(kind, dim=8, **options)}
    )
    return ContrastiveBranch({"p2": Projector(DIM, 8, 1, lambda c: nn.GroupNorm(1, c))}, criterion, project)


def make_batch(seed=0, classes=CLASSES, images=2):
    """A map of 6 x 8 positions, labels of four times its size with ignored ones, and logits of half its size."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, DIM, 6, 8, generator=generator)
    labels = torch.randint(classes, (images, 6, 8), generator=generator)
    labels[:, 0, :3] = 255
    labels[:, 1, 0] = -1
    logits = torch.randn(images, CLASSES, 3, 4, generator=generator)
    return {"p2": features}, labels.repeat_interleave(4, 1).repeat_interleave(4, 2), logits


def units(count, dim=DIM, seed=0):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def rings_of(memory):
    return [module for module in memory.modules() if isinstance(module, ClassRings)]


def textbook(anchors, labels, stored, stored_labels, temperature):
    """Eq. 1-2 of anchors against stored vectors, by a loop over anchors."""
    total = 0.0
    for anchor, label in zip(anchors.double(), labels.tolist()):
        scores = stored.double() @ anchor / temperature
        positives, negatives = scores[stored_labels == label], scores[stored_labels != label]
        if len(positives) and len(negatives):
            n = negatives.exp().sum()
            total += sum(-(p.exp() / (p.exp() + n)).log() for p in positives) / len(positives)
    return float(total) / max(1, len(anchors))


@pytest.mark.parametrize("size", [1, 7, 25])
def test_rings_keep_the_newest_of_each_class(size):
    """Against lists, with pushes that wrap around, fill the ring more than once, are empty or lack a class."""
    generator = torch.Generator().manual_seed(0)
    rings, expected = ClassRings(CLASSES, size, 2), [[] for _ in range(CLASSES)]
    number = 0
    for count in (3, 10, 0, 1, 60, 9, 10, 10, 10, 2):
        labels = torch.randint(CLASSES - 1, (count,), generator=generator)  # nothing of the last class
        vectors = torch.arange(number, number + count).float()[:, None].repeat(1, 2)
        number += count
        rings.store(AnchorSet(vectors, labels))
        for vector, label in zip(vectors, labels.tolist()):
            expected[label] = [*expected[label], vector[0].item()][-size:]
        content = rings.content()
        assert content.labels.tolist() == [c for c in range(CLASSES) for _ in expected[c]]
        for c in range(CLASSES):
            assert sorted(content.vectors[content.labels == c][:, 0].tolist()) == expected[c]


def test_the_pointer_moves_by_what_is_written():
    """Ten vectors a push into a ring of 50: five pushes fill it, and 20 more leave the last five."""
    rings = ClassRings(1, 50, 1)
    for push in range(25):
        assert len(rings.content().labels) == min(50, 10 * push)
        rings.store(AnchorSet(torch.full((10, 1), float(push)), torch.zeros(10, dtype=torch.long)))
        if push >= 4:
            assert rings.content().vectors.unique().tolist() == list(range(push - 4, push + 1))


@pytest.mark.parametrize("kind", ["pixels", "regions", "pixels+regions"])
def test_what_is_stored_lies_where_the_labels_say(kind):
    """Features say the class and the image; the labels are larger than the map. Class 0 is a class."""
    labels = torch.randint(CLASSES, (3, 6, 8), generator=torch.Generator().manual_seed(1))
    labels[0, :3], labels[0, 3:], labels[1, 5] = 0, 1, 255
    maps = F.one_hot(labels.clamp(max=CLASSES), CLASSES + 1).movedim(3, 1).float()
    maps += 0.1 * torch.arange(1, 4)[:, None, None, None]
    memory = make_memory(kind, dim=CLASSES + 1, size=40)
    large = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    anchors = memory.draw(maps, large, AnchorSampler(), None, torch.zeros(3, CLASSES, 6, 8))
    memory.contrast(anchors, 0.1)
    for name, rings in zip(kind.split("+"), rings_of(memory), strict=True):
        vectors, found = rings.content()
        counts = torch.stack([(labels == c).flatten(1).sum(1) for c in range(CLASSES)])  # (classes, images)
        wanted = counts.clamp(max=10 if name == "pixels" else 1)
        assert rings.stored.tolist() == wanted.sum(1).tolist() and found.bincount().tolist() == wanted.sum(1).tolist()
        for c in range(CLASSES):
            expected = [F.normalize(torch.eye(CLASSES + 1)[c] + 0.1 * (n + 1), dim=0) for n in range(3)]
            repeated = torch.stack([e for n, e in enumerate(expected) for _ in range(wanted[c, n])])
            by_image = vectors[found == c]
            by_image = by_image[by_image[:, c - 1].argsort()]  # which grows from image to image
            torch.testing.assert_close(by_image, repeated)


@pytest.mark.parametrize("kind", ["regions", "averages"])
def test_region_means(kind):
    """One vector for each class in each image, by a loop over positions; none of ignored ones."""
    branch = make_branch(kind)
    features, labels, logits = make_batch()
    branch(features, labels, logits=logits)
    projector = branch.projectors["p2"]
    embeddings = projector(features["p2"]).detach()
    probabilities = F.interpolate(logits, (6, 8), mode="bilinear", align_corners=False).softmax(1)
    confidence, predicted = probabilities.max(1)
    small = labels[:, ::4, ::4]
    vectors, found = rings_of(branch)[0].content()
    expected = []
    for c in range(CLASSES):
        for n in range(2):
            total = torch.zeros(8)
            for y, x in (small[n] == c).nonzero().tolist():
                if kind == "regions":
                    total += F.normalize(embeddings[n, :, y, x], dim=0)
                else:
                    weight = 1 - confidence[n, y, x] if predicted[n, y, x] == c else 1.0
                    total += weight * embeddings[n, :, y, x]
            if (small[n] == c).any():
                expected.append((c, F.normalize(total, dim=0)))
    assert found.tolist() == [c for c, _ in expected] and len(expected) > CLASSES
    torch.testing.assert_close(vectors, torch.stack([v for _, v in expected]), rtol=1e-4, atol=1e-5)


def test_a_pixel_that_is_not_of_the_class_stays_out_of_its_mean():
    """Whatever is predicted there: predictions weigh, labels decide."""
    maps = torch.zeros(1, 2, 1, 4)
    maps[0, 0, 0, :2] = maps[0, 1, 0, 2:] = 1.0
    labels = torch.tensor([[[0, 0, 1, 1]]])
    memory = AverageMemory(2, 2, 3)
    logits = torch.tensor([5.0, -5.0])[None, :, None, None].expand(1, 2, 1, 4)  # all is class 0
    anchors = memory.draw(maps, labels, AnchorSampler(), None, logits)
    torch.testing.assert_close(anchors.vectors, torch.eye(2))
    sure = memory.draw(maps, labels, AnchorSampler(), None, logits * 1e6)  # no doubt is left: a plain mean
    torch.testing.assert_close(sure.vectors, torch.eye(2))


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_formula(kind, temperature):
    """Nothing is mined here: all positives and negatives of all rings count, once, and no other factor."""
    options = {} if kind == "averages" else {"hardest": 1.0}
    memory = make_memory(kind, **options)
    stored = []
    for i, rings in enumerate(rings_of(memory)):
        stored.append(AnchorSet(units(30, seed=i), torch.arange(30) % 3))  # nothing of the last class
        rings.store(stored[-1])
    anchors, labels = units(12, seed=9), torch.arange(12).div(3, rounding_mode="floor")
    leaf = anchors.clone().requires_grad_()
    loss = memory.contrast(AnchorSet(leaf, labels), temperature)
    loss.backward()
    vectors, classes = (torch.cat(parts) for parts in zip(*stored))
    assert loss.item() == pytest.approx(textbook(anchors, labels, vectors, classes, temperature), rel=1e-5)
    step = 1e-6
    for i, j in ((0, 0), (4, 2), (8, 5)):
        moved = anchors.double()
        moved[i, j] += step
        back = anchors.double()
        back[i, j] -= step
        slope = [textbook(x, labels, vectors, classes, temperature) for x in (moved, back)]
        assert leaf.grad[i, j].item() == pytest.approx((slope[0] - slope[1]) / (2 * step), rel=1e-3, abs=1e-6)
    assert (leaf.grad[9:] == 0).all()  # without positives


def test_the_hardest_are_drawn():
    """Of 40 positives the 4 farthest, of 120 negatives the 12 nearest, each anchor its own."""
    memory = make_memory("pixels", size=40)
    stored, classes = units(160), torch.arange(160) % CLASSES
    rings_of(memory)[0].store(AnchorSet(stored, classes))
    anchors, labels = units(12, seed=1), torch.arange(12).div(3, rounding_mode="floor")
    total = 0.0
    for anchor, label in zip(anchors, labels.tolist()):
        scores = stored @ anchor / 0.1
        positives = scores[classes == label].sort().values[:4]
        n = scores[classes != label].sort(descending=True).values[:12].exp().sum()
        total += (1 + n / positives.exp()).log().mean().item()
    loss = memory.contrast(AnchorSet(anchors, labels), 0.1)
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)


def test_draws_from_the_hardest_are_random():
    """One of the 4 farthest positives and one of the 12 nearest negatives: all 48 pairs occur, and no others."""
    memory = make_memory("pixels", size=40, positives=1, negatives=1)
    stored, classes = units(160), torch.arange(160) % CLASSES
    rings_of(memory)[0].store(AnchorSet(stored, classes))
    anchor = units(1, seed=1)
    scores = (stored @ anchor[0]) / 0.1
    positives = scores[classes == 0].sort().values[:4]
    negatives = scores[classes != 0].sort(descending=True).values[:12]
    allowed = F.softplus(negatives[None] - positives[:, None]).flatten()
    torch.manual_seed(0)
    draws = 1000
    losses = torch.stack([memory.contrast(AnchorSet(anchor, torch.tensor([0])), 0.1) for _ in range(draws)])
    distance, which = (losses[:, None] - allowed).abs().min(1)
    assert distance.max() < 1e-4
    assert which.bincount(minlength=48).min() > 0 and which.bincount().max() < 60


def test_half_of_the_anchors_are_predicted_wrong():
    """Also where a class plus the number of classes would be the ignore label."""
    labels = torch.full((1, 20, 20), 105)
    labels[:, 10:] = 3
    labels[:, :, :2] = 255
    predicted = labels.clone()
    predicted[:, ::2] = 7  # every other row is wrong
    logits = F.one_hot(predicted.clamp(max=149), 150).movedim(3, 1).float()
    maps = torch.stack([labels.float(), (predicted == labels).float()], 1)
    memory = MinedMemory(150, 2, {"pixels": 5})
    sampler = AnchorSampler(max_per_group=25, min_per_group=25)
    vectors, classes = memory.draw(maps, labels, sampler, None, logits)
    assert classes.tolist() == [3] * 50 + [105] * 50
    is_right = vectors[:, 1] > 0
    assert [is_right[:50].sum(), is_right[50:].sum()] == [25, 25]
    torch.testing.assert_close(vectors[~is_right, 0], torch.ones(50))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_memory_gives_no_loss_and_is_filled_by_it(kind):
    branch = make_branch(kind)
    features, labels, logits = make_batch()
    loss = branch(features, labels, logits=logits)["loss_contrast_p2"]
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in branch.parameters())
    assert all((rings.stored > 0).all() for rings in rings_of(branch))
    assert branch(features, labels, logits=logits)["loss_contrast_p2"].item() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_contrasted_with_earlier_ones(kind):
    """The loss is that of the memory as the step before left it; the step's own vectors come afterwards, detached."""
    branch = make_branch(kind, hardest=1.0) if kind != "averages" else make_branch(kind)
    features, labels, logits = make_batch()
    branch(features, labels, logits=logits)
    before = [rings.content() for rings in rings_of(branch)]
    features, labels, logits = make_batch(1)
    anchors = branch.sample(features, labels, logits)
    assert all(torch.equal(a.vectors, b.content().vectors) for a, b in zip(before, rings_of(branch)))
    loss = branch.losses(anchors)["loss_contrast_p2"]
    vectors, classes = (torch.cat(parts) for parts in zip(*before))
    assert loss.item() == pytest.approx(textbook(*(x.detach() for x in anchors["p2"]), vectors, classes, 0.1), rel=1e-4)
    after = [len(rings.content().labels) for rings in rings_of(branch)]
    assert all(a > len(b.labels) for a, b in zip(after, before))
    loss.backward()  # which storing must not have broken
    assert all(p.grad.abs().sum() > 0 for p in branch.parameters())
    assert all(not buffer.requires_grad for buffer in branch.buffers())
    branch.losses(anchors)  # without anything new to store
    assert after == [len(rings.content().labels) for rings in rings_of(branch)]


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("outside", ["highest", "high"])
@pytest.mark.parametrize("kind", ["pixels", "averages"])
def test_products_are_in_float32_whatever_torch_is_set_to(kind, outside, tf32):
    """With tf32 those of scores and their gradients are not; means of regions always are."""
    memory = make_memory(kind)
    criterion = MultiScaleContrast(
        {"p2": 1.0}, memories={"p2": memory}, sampler=AnchorSampler(min_per_group=1), tf32=tf32
    )
    features, labels, logits = make_batch()
    criterion(features, labels, logits=logits)
    features["p2"].requires_grad_()
    torch.set_float32_matmul_precision(outside)
    try:
        with PrecisionOfProducts() as products:
            sets = criterion.draw(features, labels, logits=logits)
        assert products.seen <= FULL
        with PrecisionOfProducts() as products:
            loss = criterion.terms(sets)["loss_contrast_p2"]
            loss.backward(inputs=sets["p2"].vectors)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert products.seen <= (TF32 if tf32 else FULL) and products.seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 20])
def test_rewinding_undoes_all_that_was_stored_since_the_mark(kind, size):
    branch = make_branch(kind, size=size)
    for seed in range(6):
        if seed == 3:
            before = copy.deepcopy(branch.state_dict())
            for rings in rings_of(branch):
                rings.mark()
        features, labels, logits = make_batch(seed)
        branch(features, labels, logits=logits)
    for rings in rings_of(branch):
        assert not torch.equal(rings.stored, before[next(n for n in before if n.endswith("stored"))])
        rings.rewind()
    torch.testing.assert_close(branch.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_stores_nothing(kind):
    branch = make_branch(kind).eval()
    features, labels, logits = make_batch()
    branch(features, labels, logits=logits)
    assert all((rings.stored == 0).all() for rings in rings_of(branch))


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_rotation_of_what_is_stored_change_nothing(kind):
    """A loss of cosines of all that is stored, and a negative more raises it."""
    anchors = AnchorSet(units(8), torch.arange(8).div(2, rounding_mode="floor"))
    stored, classes = units(40, seed=1), torch.arange(40) % CLASSES
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(2)))[0]
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(3))

    def loss(anchors, stored, classes):
        memory = make_memory(kind, size=50) if kind == "averages" else make_memory(kind, size=50, hardest=1.0)
        for rings in rings_of(memory):
            rings.store(AnchorSet(stored, classes))
        return memory.contrast(anchors, 0.1)

    expected = loss(anchors, stored, classes)
    torch.testing.assert_close(loss(anchors, stored[shuffle], classes[shuffle]), expected)
    turned = AnchorSet(anchors.vectors @ rotation, anchors.labels)
    torch.testing.assert_close(loss(turned, stored @ rotation, classes), expected)
    one_class = AnchorSet(*(x[:2] for x in anchors))
    more = loss(one_class, torch.cat([stored, stored[1:2]]), torch.cat([classes, classes[1:2]]))
    assert more > loss(one_class, stored, classes)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from(kind):
    """No valid label, one class alone, fewer pixels of a kind than the sampler wants: no NaN, a graph everywhere."""
    for classes, spoil in ((CLASSES, 255), (1, None), (CLASSES, None)):
        branch = make_branch(kind)
        branch.criterion.sampler = AnchorSampler(min_per_group=1000) if spoil is None else AnchorSampler()
        for seed in range(2):
            features, labels, logits = make_batch(seed, classes)
            if spoil is not None:
                labels = torch.full_like(labels, spoil)
            loss = branch(features, labels, logits=logits)["loss_contrast_p2"]
            branch.zero_grad()
            loss.backward()
            assert loss.isfinite() and all(p.grad.isfinite().all() for p in branch.parameters())
            if spoil is not None or classes == 1:
                assert loss == 0 and all((p.grad == 0).all() for p in branch.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision(kind):
    """Under autocast vectors are stored and contrasted in float32; opposite vectors at a low temperature are finite."""
    branch = make_branch(kind)
    losses = []
    for seed in range(2):
        features, labels, logits = make_batch(seed)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(branch(features, labels, logits=logits.bfloat16())["loss_contrast_p2"])
    losses[1].backward()
    assert losses[1].dtype == torch.float32 and losses[1] > 0
    for rings in rings_of(branch):
        vectors = rings.content().vectors
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    memory = make_memory(kind)
    one = F.normalize(torch.ones(1, DIM), dim=1)
    for rings in rings_of(memory):
        rings.store(AnchorSet(torch.cat([-one, one]), torch.tensor([0, 1])))
    anchor = one.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = memory.contrast(AnchorSet(anchor, torch.tensor([0])), 0.05)
    loss.backward()
    assert loss.item() == pytest.approx(40, rel=1e-4)
    assert anchor.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_state(kind):
    """All of a memory is in the state of the branch: a copy goes on with the same losses."""
    branch = make_branch(kind, size=9)
    for seed in range(3):
        features, labels, logits = make_batch(seed)
        branch(features, labels, logits=logits)
    again = make_branch(kind, size=9)
    again.load_state_dict(copy.deepcopy(branch.state_dict()))
    results = []
    for network in (branch, again):
        torch.manual_seed(1)
        results.append([network(*make_batch(seed)[:2], logits=make_batch(seed)[2]) for seed in (3, 4)])
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(branch.buffers(), again.buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_another_size_leave_a_memory_empty(kind):
    """A checkpointer leaves out what does not fit, and the number of vectors always fits."""
    branch, other = make_branch(kind, size=9), make_branch(kind, size=10)
    features, labels, logits = make_batch()
    other(features, labels, logits=logits)
    own = branch.state_dict()
    fitting = {name: x for name, x in other.state_dict().items() if x.shape == own[name].shape}
    left_out = branch.load_state_dict(fitting, strict=False).missing_keys
    rings = [name for name, _ in branch.named_buffers() if "rings" in name]
    assert rings and set(rings) <= set(left_out)
    assert branch(features, labels, logits=logits)["loss_contrast_p2"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_another_precision(kind, dtype):
    """The loss is computed, and returned, in float32 or better."""
    branch = make_branch(kind).to(dtype)
    for seed in range(2):
        features, labels, logits = make_batch(seed)
        loss = branch({"p2": features["p2"].to(dtype)}, labels, logits=logits.to(dtype))["loss_contrast_p2"]
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and loss > 0


def test_a_branch_without_memory_has_no_buffers_of_one():
    criterion = MultiScaleContrast({"p2": 1.0})
    assert not list(criterion.state_dict())
    assert not ContrastiveBranch({"p2": Projector(DIM)}, criterion).needs_logits


def with_logits(kind, change):
    features, labels, logits = make_batch()
    return make_branch(kind)(features, labels, logits=change(logits))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_branch("pixels", gather=True), "gather must be off with a memory"),
        (lambda: make_branch("pixels", project="anchors"), 'project must be "dense" with a memory'),
        (lambda: make_memory("regions", size=0), "regions must be at least 1, got 0"),
        (lambda: make_memory("averages", size=0), "regions must be at least 1, got 0"),
        (lambda: make_memory("pixels", hardest=0.0), "hardest must be a share above 0 and up to 1, got 0.0"),
        (lambda: make_memory("queues"), r"memory must keep one or more of \('pixels', 'regions'\), got \['queues'\]"),
        (lambda: MultiScaleContrast({"a": 1}, memories={"b": make_memory("pixels")}), r"memories must be of some of"),
        (lambda: make_branch("pixels")(*make_batch()[:2]), "logits of the segmentation are needed for a memory"),
        (lambda: make_memory("pixels", positives=0), "positives must be at least 1, got 0"),
        (lambda: with_logits("pixels", lambda x: x[:1]), r"logits must be \(\d+, \d+, H, W\), .*got \(1, "),
        (lambda: with_logits("averages", lambda x: x[:, 1:]), r"logits must be \(\d+, \d+, H, W\), .*got"),
        (lambda: make_branch("averages")(*make_batch()[:2]), "logits of the segmentation are needed for a memory"),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def parts_of_batch(rank, step):
    """What a process sees: other numbers of images on each, and on one of them nothing at all in one step."""
    features, labels, logits = make_batch(10 * step + rank, images=1 + rank)
    if step == 1 and rank == 0:
        labels = torch.full_like(labels, 255)
    return features, labels, logits


def worker(rank, folder):
    results = {}
    for kind in KINDS:
        model = DistributedDataParallel(
            make_branch(kind, pixels_per_image=100) if "pixels" in kind else make_branch(kind)
        )
        torch.manual_seed(rank)
        for step in range(3):
            features, labels, logits = parts_of_batch(rank, step)
            model(features, labels, logits=logits)["loss_contrast_p2"].backward()
        results[kind] = [b.clone() for b in model.buffers()], [p.grad for p in model.parameters()]
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()


def test_two_processes_store_what_one_would(tmp_path):
    """The rings are equal on both, and hold what both have seen, in the order of ranks."""
    run_in_two_processes(worker, tmp_path, tmp_path)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for kind in KINDS:
        (buffers, gradients), (other_buffers, other_gradients) = results[0][kind], results[1][kind]
        assert all(torch.equal(a, b) for a, b in zip(buffers, other_buffers))
        assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients))
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        alone = make_branch(kind, pixels_per_image=100) if "pixels" in kind else make_branch(kind)
        for step in range(3):
            for rank in range(2):  # one after the other
                features, labels, logits = parts_of_batch(rank, step)
                alone(features, labels, logits=logits)
        if "pixels" not in kind:  # which are stored in a random order
            for buffer, expected in zip(buffers, alone.buffers()):
                torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-5)
        for name, expected in alone.named_buffers():
            if name.endswith("stored"):
                index = [n for n, _ in alone.named_buffers()].index(name)
                assert torch.equal(buffers[index], expected) and expected.sum() > 0
