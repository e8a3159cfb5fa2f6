"""The order of training samples, and their augmentation, as a function of seed and position."""

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm

from d2_contrast.data import SampleStream
from d2_contrast.data.build import SAMPLERS, count_repeats, count_subset

REPEATS = torch.tensor([1.0, 2.5, 0.25, 3.0, 1.0, 0.0, 1.0])


def draw(sample: dict) -> tuple:
    """A mapper that draws from all generators that augmentations use."""
    return sample["index"], random.random(), np.random.random(), torch.rand(()).item()


def stream(start: int = 0, seed: int = 0, repeats=REPEATS, mapper=draw, **options) -> SampleStream:
    samples = SampleStream(
        [{"index": i} for i in range(7)], mapper, batch_size=3, seed=seed, repeats=repeats, **options
    )
    samples.start = start
    return samples


def batches(samples: SampleStream, count: int, workers: int = 0) -> list[tuple]:
    loader = build_detection_train_loader(
        samples, mapper=None, total_batch_size=3, aspect_ratio_grouping=False, num_workers=workers
    )
    return [sample for batch in islice(loader, count) for sample in batch]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_it_goes_on_anywhere_with_any_number_of_workers():
    whole = batches(stream(), 14)
    for start, workers in ((3, 0), (9, 2), (10, 3), (21, 2)):
        assert batches(stream(start), 6, workers) == whole[start : start + 18], (start, workers)
    assert whole[:21] != whole[21:]
    assert batches(stream(seed=1), 14) != whole


def test_processes_share_the_batches_of_one(monkeypatch):
    """Two processes with half of the batch each see what one process sees."""
    whole = list(islice(stream(start=6), 24))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(islice(stream(start=6), 12)))
    for step in range(4):
        own = [sample for part in parts for sample in part[3 * step : 3 * step + 3]]
        assert sorted(own) == sorted(whole[6 * step : 6 * step + 6])


def test_each_epoch_repeats_samples_as_asked():
    samples = stream()
    epochs = [Counter(samples.epoch(number).tolist()) for number in range(400)]
    for index, repeats in enumerate(REPEATS.tolist()):
        counts = [epoch[index] for epoch in epochs]
        assert set(counts) <= {int(repeats), int(np.ceil(repeats))}
        assert np.mean(counts) == pytest.approx(repeats, abs=0.1)
    plain = stream(repeats=None)
    orders = [tuple(plain.epoch(number).tolist()) for number in range(50)]
    assert all(sorted(order) == list(range(7)) for order in orders) and len(set(orders)) > 45
    assert [index for index, *_ in islice(plain, 21)] == [i for order in orders[:3] for i in order]
    plain.start = 33  # in the fifth epoch
    assert [index for index, *_ in islice(plain, 9)] == [*orders[4][5:], *orders[5]]


def test_random_numbers_of_others_stay_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    list(islice(stream(), 10))
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected


def test_samples_that_cannot_be_used_are_replaced():
    def odd(sample: dict):
        return sample["index"] if sample["index"] % 2 else None

    drawn = list(islice(stream(mapper=odd), 60))
    assert set(drawn) == {1, 3} and drawn[30:] == list(islice(stream(start=30, mapper=odd), 30))
    with pytest.raises(ValueError, match="None of the training samples can be used"):
        next(iter(stream(mapper=lambda sample: None)))


def test_replacements_are_of_the_subset():
    chosen = {sample[0] for sample in islice(stream(subset=3, repeats=None), 60)}
    bad = min(chosen)
    drawn = islice(stream(subset=3, repeats=None, mapper=lambda s: None if s["index"] == bad else s["index"]), 60)
    assert set(drawn) == chosen - {bad}


def test_the_seed_chooses_the_subset():
    """Also a seed that is set later, as that of a run that goes on."""
    first, other = (stream(subset=3, seed=seed, repeats=None) for seed in (0, 1))
    chosen, others = ({sample[0] for sample in islice(samples, 60)} for samples in (first, other))
    assert len(chosen) == len(others) == 3 and chosen != others
    other.seed = first.seed
    assert list(islice(other, 60)) == list(islice(first, 60))


def test_samplers_of_detectron2():
    cfg = get_cfg()
    datasets = {"a": [{}] * 6, "b": [{}] * 4}
    for name, key in (("DATASETS.TRAIN_REPEAT_FACTOR", [("b", 2.5)]), ("DATALOADER.RANDOM_SUBSET_RATIO", 0.5)):
        section, key_name = name.split(".")
        cfg[section][key_name] = key
    counted = {}
    for cfg.DATALOADER.SAMPLER_TRAIN in SAMPLERS[0], SAMPLERS[2], SAMPLERS[3]:
        counted[cfg.DATALOADER.SAMPLER_TRAIN] = count_repeats(cfg, datasets).tolist()
    assert counted["TrainingSampler"] == [1.0] * 10
    assert counted["WeightedTrainingSampler"] == [1.0] * 6 + [2.5] * 4
    assert counted["RandomSubsetTrainingSampler"] == [1.0] * 10
    assert count_subset(cfg, datasets) is None
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert count_subset(cfg, datasets) == 5
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.05
    with pytest.raises(ValueError, match="RANDOM_SUBSET_RATIO 0.05 leaves none of the 10 images"):
        count_subset(cfg, datasets)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATASETS.TRAIN_REPEAT_FACTOR = "WeightedTrainingSampler", [("c", 5.0), ("b", 2.0)]
    with pytest.raises(ValueError, match="TRAIN_REPEAT_FACTOR has a factor for 'c', .* expected one of a, b"):
        count_repeats(cfg, datasets)
    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is 'Sampler': expected one of TrainingSampler"):
        count_repeats(cfg, datasets)
