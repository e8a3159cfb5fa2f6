"""The example of docs/evaluation.md, as it stands there."""

from pathlib import Path

import torch
from snippets import code_blocks
from tiny_models import make_batch, small_model

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_several_views():
    code = next(
        block["python"] for block in code_blocks(PAGE).values() if "MultiViewInference" in block.get("python", "")
    )
    names = {"model": small_model("shapes/fpn_r18_contrast.yaml").eval(), "image": make_batch((90, 120))[0]["image"]}
    lines = code.strip().splitlines()
    with torch.no_grad():
        exec("\n".join([*lines[:-1], f"probabilities = {lines[-1]}"]), names)
    probabilities = names["probabilities"]
    assert probabilities.shape == (5, 90, 120)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(90, 120))
