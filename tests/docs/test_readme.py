"""The recipe of the README, as it stands there."""

from pathlib import Path

import torch
from snippets import code_blocks

from d2_contrast.config import load_config
from d2_contrast.contrast import ContrastiveBranch

RECIPE = code_blocks(Path(__file__).parents[2] / "README.md")["Add the losses to your own model"]


def test_the_losses_in_another_trainer():
    c2, c5 = (torch.randn(2, channels, side, side, requires_grad=True) for channels, side in ((256, 16), (2048, 4)))
    labels = torch.randint(4, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :8], labels[:, 8:16] = 255, -1
    names = dict(c2=c2, c5=c5, labels=labels, cross_entropy=torch.tensor(1.0))
    exec(RECIPE["python"], names)
    assert isinstance(names["contrast"], ContrastiveBranch)
    assert list(names["losses"]) == ["loss_contrast_c2", "loss_contrast_c5", "loss_contrast_c2_c5"]
    assert names["loss"] > 1
    names["loss"].backward()
    for leaf in (c2, c5, *names["contrast"].parameters()):
        assert leaf.grad.abs().sum() > 0


def test_the_losses_by_config(tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE["yaml"])
    assert load_config(str(tmp_path / "mine.yaml")).MODEL.CONTRAST.ENABLED
