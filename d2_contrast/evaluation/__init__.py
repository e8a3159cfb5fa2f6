"""Evaluators and the ways of running a segmentor over an image."""

from .build import EVALUATORS, build_evaluator
from .cityscapes import CityscapesEvaluator
from .confusion_evaluator import CONFUSION_FILE, RESULTS_FILE, ConfusionEvaluator
from .folders import claim_evaluation_folder, evaluation_folder
from .inference import MultiViewInference, build_inference_model
from .metrics import count_confusion, summarize_confusion
from .submission import SubmissionWriter

__all__ = [
    "CONFUSION_FILE",
    "EVALUATORS",
    "RESULTS_FILE",
    "CityscapesEvaluator",
    "ConfusionEvaluator",
    "MultiViewInference",
    "SubmissionWriter",
    "build_evaluator",
    "claim_evaluation_folder",
    "evaluation_folder",
    "build_inference_model",
    "count_confusion",
    "summarize_confusion",
]
