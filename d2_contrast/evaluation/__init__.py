"""Evaluators and the ways of running a segmentor over an image."""

from .build import EVALUATORS, build_evaluator
from .cityscapes import CityscapesEvaluator
from .confusion import count_confusion, summarize_confusion
from .inference import MultiViewInference, build_inference_model
from .sem_seg_evaluation import CONFUSION_FILE, ConfusionEvaluator
from .submission import SubmissionWriter

__all__ = [
    "CONFUSION_FILE",
    "EVALUATORS",
    "CityscapesEvaluator",
    "ConfusionEvaluator",
    "MultiViewInference",
    "SubmissionWriter",
    "build_evaluator",
    "build_inference_model",
    "count_confusion",
    "summarize_confusion",
]
