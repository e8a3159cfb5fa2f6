"""Training in two processes, of networks with parameters on which no loss depends."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from processes import run_in_two_processes
from tiny_models import make_batch, small_config, small_model

from d2_contrast.config import load_config
from d2_contrast.config_files import flatten
from d2_contrast.engine import Trainer
from d2_contrast.engine.data_parallel import (
    _with_strides_of,
    find_unused_parameters,
    scale_to_processes,
    share_among_processes,
    split_batches,
)

SWIN = "cityscapes/uper_swin_t_contrast_bs8_160k.yaml"
PLAIN = {
    "MODEL__AUX_HEAD__NAME": "",
    "MODEL__CONTRAST__ENABLED": False,
    "INPUT__CROP__SIZE": [64, 64],
    "MODEL__UPER__NORM": "BN",
    "MODEL__SEM_SEG_HEAD__NORM": "BN",
}
# Networks of the same backbone, and the starts of the names of what they do not use.
NETWORKS = {
    "all maps": ({}, ()),
    "one map": (
        {
            "MODEL__BACKBONE__NAME": "Swin",
            "MODEL__SEM_SEG_HEAD__NAME": "ASPPHead",
            "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res5"],
            "MODEL__SEM_SEG_HEAD__ASPP_CHANNELS": 8,
        },
        ("backbone.norm0.", "backbone.norm1.", "backbone.norm2."),
    ),
    "two levels": ({"MODEL__SEM_SEG_HEAD__IN_FEATURES": ["p2", "p5"]}, ("backbone.output.1.", "backbone.output.2.")),
}


def train_both(rank):
    for name, (options, unused) in NETWORKS.items():
        cfg = small_config(SWIN, **PLAIN, **options)
        model = small_model(SWIN, **PLAIN, **options)
        alone = copy.deepcopy(model)
        batches = [make_batch((64, 64), (64, 64), seed=seed) for seed in range(2)]
        shared = share_among_processes(cfg, model)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Grad strides do not match")
            for _ in range(2):
                torch.manual_seed(rank)
                sum(shared(batches[rank]).values()).backward()
        for key, parameter in model.named_parameters():
            assert (parameter.grad is None) == key.startswith(unused or "nothing"), (name, key)
        # The mean of what each process would have computed by itself.
        expected = []
        for seed in range(2):
            twin = copy.deepcopy(alone)
            for _ in range(2):
                torch.manual_seed(seed)
                sum(twin(batches[seed]).values()).backward()
            expected.append([p.grad for k, p in twin.named_parameters() if not k.startswith(unused or "nothing")])
        own = [p.grad for p in model.parameters() if p.grad is not None]
        torch.testing.assert_close(own, [(a + b) / 2 for a, b in zip(*expected)], rtol=1e-3, atol=1e-5)
        dist.barrier()
    synchronised = {"MODEL__SEM_SEG_HEAD__NORM": "SyncBN"}
    cfg, model = small_config(SWIN, **PLAIN | synchronised), small_model(SWIN, **PLAIN | synchronised)
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.NORM.*: SyncBN needs a GPU for each process"):
        share_among_processes(cfg, model)


def test_processes_agree_whatever_is_unused(tmp_path):
    run_in_two_processes(train_both, tmp_path)


def test_gradients_have_the_strides_of_their_parameters():
    """Else DistributedDataParallel warns; those of 1 x 1 convolutions differ without a difference."""
    shape, strides = torch.Size([4, 3, 1, 1]), (3, 1, 1, 1)
    values = torch.arange(12.0)
    gradient = values.as_strided(shape, (3, 1, 3, 3))
    aligned = _with_strides_of(shape, strides, gradient)
    assert aligned.stride() == strides and torch.equal(aligned, gradient) and aligned.data_ptr() == values.data_ptr()
    other = values.as_strided(shape, (1, 4, 4, 4))  # another order of the values themselves
    assert _with_strides_of(shape, strides, other) is other


def test_trying_changes_nothing():
    for options, unused in NETWORKS.values():
        model = small_model(SWIN, **PLAIN, **options)
        before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        found = find_unused_parameters(small_config(SWIN, **PLAIN, **options), model)
        assert found == [name for name, _ in model.named_parameters() if unused and name.startswith(unused)]
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("key", ["WARMUP_ITERS", "DECAY_ITERS"])
def test_trying_losses_that_have_a_schedule(key):
    options = {**PLAIN, "MODEL__CONTRAST__ENABLED": True, f"MODEL__CONTRAST__{key}": 3}
    assert find_unused_parameters(small_config(SWIN, **options), small_model(SWIN, **options)) == []


def test_schedules_are_scaled_to_the_processes():
    """All by one factor, with 2 processes as they are; a period of 0 stays off, and no other one becomes 0."""
    lengths = {"SOLVER.MAX_ITER": 120, "MODEL.CONTRAST.DECAY_ITERS": 90, "MODEL.CONTRAST.WARMUP_ITERS": 12}
    lengths |= {"VIS_PERIOD": 24, "TEST.EVAL_PERIOD": 36, "SOLVER.CHECKPOINT_PERIOD": 6}
    cfg = load_config("", [str(part) for pair in lengths.items() for part in pair])
    assert scale_to_processes(cfg, 1) is cfg
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    assert scale_to_processes(cfg, 2) is cfg
    for processes in (1, 3, 4):
        scaled = flatten(scale_to_processes(cfg, processes))
        assert {key: scaled[key] for key in lengths} == {key: 2 * n // processes for key, n in lengths.items()}
    scaled = flatten(scale_to_processes(cfg, 200))
    assert scaled["SOLVER.CHECKPOINT_PERIOD"] == scaled["TEST.EVAL_PERIOD"] == scaled["VIS_PERIOD"] == 1
    cfg.VIS_PERIOD = cfg.TEST.EVAL_PERIOD = cfg.MODEL.CONTRAST.DECAY_ITERS = 0
    scaled = scale_to_processes(cfg, 1)
    assert scaled.VIS_PERIOD == scaled.TEST.EVAL_PERIOD == scaled.MODEL.CONTRAST.DECAY_ITERS == 0


def test_the_trainer_scales_its_schedules(make_cfg):
    options = ["SOLVER.REFERENCE_WORLD_SIZE", 2, "MODEL.CONTRAST.DECAY_ITERS", 4, "SOLVER.MAX_ITER", 4]
    trainer = Trainer(make_cfg(*options))
    assert trainer.max_iter == 8
    assert trainer.network.contrast.criterion.decay_iters == 8


def test_fewer_processes_take_a_batch_in_parts():
    """16 images a step, at most 3 for a process: (images in a batch, batches in a step) by the number of processes."""
    expected = {8: (16, 2), 4: (8, 4), 2: (4, 8), 1: (2, 16)}
    cfg = load_config("", ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.ACCUMULATION_STEPS", "2"])
    for processes in expected:
        assert split_batches(cfg, processes) is cfg
    cfg.SOLVER.MAX_IMS_PER_PROCESS = 3
    for processes, sizes in expected.items():
        solver = split_batches(cfg, processes).SOLVER
        assert (solver.IMS_PER_BATCH, solver.ACCUMULATION_STEPS) == sizes
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 16: expected a multiple of the 3 processes"):
        split_batches(cfg, 3)
