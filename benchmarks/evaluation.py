"""Time of counting a confusion matrix, and of the whole evaluator, beside Detectron2's.

python -m benchmarks.evaluation [--height 1024] [--width 2048] [--classes 150]
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from benchmarks.common import machine, markdown, time_side_by_side
from d2_contrast.data import read_label
from d2_contrast.evaluation import ConfusionEvaluator, count_confusion
from d2_contrast.evaluation.metrics import argmax_classes

DATASET = "benchmark_confusion"


def make_label(height: int, width: int, classes: int) -> np.ndarray:
    """A label map of 32 x 32 cells with an ignored border."""
    cells = np.random.default_rng(0).integers(0, classes, (-(-height // 32), -(-width // 32)))
    label = np.kron(cells, np.ones((32, 32), int))[:height, :width].astype(np.uint8)
    label[: height // 50] = 255
    return label


def make_prediction(label: np.ndarray, classes: int) -> np.ndarray:
    """Class ids that are right for four of five pixels."""
    rng = np.random.default_rng(1)
    wrong = rng.integers(0, classes, label.shape)
    return np.where((rng.random(label.shape) < 0.8) & (label != 255), label, wrong)


def detectron2_counting(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """The steps of Detectron2's SemSegEvaluator between class ids and confusion matrix."""
    pred = np.array(prediction, dtype=int)
    truth = np.array(label, dtype=int)
    truth[truth == 255] = classes
    cells = (classes + 1) * pred.reshape(-1) + truth.reshape(-1)
    return np.bincount(cells, minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved rounds of counting; the median counts")
    args = parser.parse_args()
    size = f"{args.height} x {args.width}, {args.classes} classes"
    print(machine())

    label = make_label(args.height, args.width, args.classes)
    prediction = make_prediction(label, args.classes)
    label_tensor = torch.from_numpy(label)
    functions = {}
    for dtype in ("uint8", "int16", "int64"):
        ids = torch.from_numpy(prediction).to(getattr(torch, dtype))
        functions[f"d2_contrast, predictions {dtype}"] = lambda ids=ids: count_confusion(
            ids, label_tensor, args.classes
        )
    functions["Detectron2's steps, int64"] = lambda: detectron2_counting(prediction, label, args.classes)
    ours, theirs = functions["d2_contrast, predictions int64"](), functions["Detectron2's steps, int64"]()
    assert np.array_equal(ours, theirs[:-1, :-1].T)
    seconds = time_side_by_side(functions, args.repeats)
    print(f"\nFrom class ids and label to counts, {size}:\n")
    print(markdown(["", "ms an image"], [[name, 1e3 * s] for name, s in seconds.items()]))

    with tempfile.TemporaryDirectory() as folder:
        label_file = str(Path(folder) / "label.png")
        cv2.imwrite(label_file, label)
        inputs = [{"file_name": "image.png", "sem_seg_file_name": label_file}]
        DatasetCatalog.register(DATASET, lambda: inputs)
        metadata = MetadataCatalog.get(DATASET)
        metadata.set(stuff_classes=[f"class {i}" for i in range(args.classes)], ignore_label=255)
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(prediction), args.classes)
        scores = one_hot.permute(2, 0, 1).float().contiguous()  # as networks give them
        assert torch.equal(argmax_classes(scores), scores.argmax(0))
        evaluators = {
            "d2_contrast": ConfusionEvaluator(DATASET),
            # With a reader of ours: its own fails on NumPy 2.
            "Detectron2 (boundary IoU and RLE of the prediction included)": SemSegEvaluator(
                DATASET,
                distributed=False,
                sem_seg_loading_fn=lambda file_name, dtype: read_label(file_name, metadata).astype(dtype),
            ),
        }
        for evaluator in evaluators.values():
            evaluator.reset()
        parts = {
            "of which: classes from the scores": lambda: argmax_classes(scores),
            "the same by torch's argmax": lambda: scores.argmax(0),
            "of which: reading the label": lambda: read_label(label_file, metadata),
        }
        images = [{"sem_seg": scores}]
        ours, theirs = evaluators

        def count_by_ours() -> None:
            evaluators[ours].process(inputs, images)
            evaluators[ours].gather()  # waits until the image is counted

        functions = {ours: count_by_ours, **parts, theirs: lambda: evaluators[theirs].process(inputs, images)}
        seconds = time_side_by_side(functions, repeats=3)
    print(f"\nThe evaluator on scores in the CPU's memory, {size}:\n")
    print(markdown(["", "ms an image"], [[name, 1e3 * s] for name, s in seconds.items()]))


if __name__ == "__main__":
    main()
