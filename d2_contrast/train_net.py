"""Train or evaluate a segmentor, as Detectron2's own train_net.py does.

python -m d2_contrast.train_net --config-file shapes/uper_r18_contrast
python -m d2_contrast.train_net --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
torchrun --nproc-per-node 2 -m d2_contrast.train_net --config-file ...
"""

from argparse import Namespace

from . import _detectron2  # noqa: F401 (a check, so it comes first)

# isort: split
from .engine import evaluate, launch, parse_arguments, setup, train


def main(args: Namespace) -> dict:
    """Train, or evaluate with ``--eval-only``, and return the results of the evaluation."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    return train(cfg, resume=args.resume)


def run() -> None:
    """Run :func:`main` as the command line says."""
    launch(main, parse_arguments())


if __name__ == "__main__":
    run()
