#!/usr/bin/env python3
"""Train or evaluate a network, as Detectron2's own train_net.py does; elsewhere `d2-contrast train`.

python train_net.py --config-file configs/shapes/uper_r18_contrast.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
torchrun --nproc-per-node 2 train_net.py --config-file ...
"""

import sys

from d2_contrast.train import main

if __name__ == "__main__":
    sys.exit(main())
