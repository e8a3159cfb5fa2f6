"""Memory of a whole Cityscapes image on the CPU, in a process of its own."""

import subprocess
import sys

from tiny_models import CONFIGS

CODE = """
import resource, sys, torch
from detectron2.modeling import build_model
import d2_contrast.modeling
from d2_contrast.config import load_config

model = build_model(load_config(sys.argv[1], ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", "False"])).eval()
with torch.no_grad():
    (output,) = model([{"image": torch.zeros(3, 1024, 2048)}])
assert output["sem_seg"].shape == (19, 1024, 2048)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_hrnet_w48_on_a_whole_image():
    config = CONFIGS / "cityscapes" / "hrnet_w48_contrast_bs12_120k.yaml"
    result = subprocess.run([sys.executable, "-c", CODE, str(config)], capture_output=True, text=True, check=True)
    kilobytes = int(result.stdout.split("peak")[1])
    assert kilobytes < 8 * 1024**2
