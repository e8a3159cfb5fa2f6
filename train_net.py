#!/usr/bin/env python3
"""Train or evaluate a segmentor, as Detectron2's own train_net.py does; elsewhere `python -m d2_contrast.train_net`.

python train_net.py --config-file configs/shapes/uper_r18_contrast.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
torchrun --nproc-per-node 2 train_net.py --config-file ...
"""

from d2_contrast.train_net import run

if __name__ == "__main__":
    run()
