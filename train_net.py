#!/usr/bin/env python3
"""Train or evaluate a segmentor, as Detectron2's own train_net.py does.

python train_net.py --config-file configs/shapes/uper_r18_contrast.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
torchrun --nproc-per-node 2 train_net.py --config-file ...
"""

from argparse import Namespace

from d2_contrast.engine import evaluate, launch, parse_arguments, setup, train


def main(args: Namespace) -> dict:
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    return train(cfg, resume=args.resume)


if __name__ == "__main__":
    launch(main, parse_arguments())
