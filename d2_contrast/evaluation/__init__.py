"""Evaluators and the ways of running a segmentor over an image."""

from .. import _detectron2  # noqa: F401 (a check, so it comes first)
from .build import EVALUATOR_REGISTRY, build_evaluator
from .calibration import Calibration, confidence_of, entropy_of
from .cityscapes import CityscapesEvaluator
from .confusion_evaluator import CONFUSION_FILE, RESULTS_FILE, ConfusionEvaluator, results_table
from .folders import claim_evaluation_folder, evaluation_folder, find_evaluation_folder, hash_settings
from .inference import MultiViewInference, build_inference_model
from .metrics import count_confusion, summarize_confusion
from .submission import SubmissionWriter
from .vectors import LabelledVectors, balance, sample_features, sample_vectors

__all__ = [
    "CONFUSION_FILE",
    "EVALUATOR_REGISTRY",
    "RESULTS_FILE",
    "Calibration",
    "CityscapesEvaluator",
    "ConfusionEvaluator",
    "LabelledVectors",
    "MultiViewInference",
    "SubmissionWriter",
    "balance",
    "build_evaluator",
    "confidence_of",
    "entropy_of",
    "claim_evaluation_folder",
    "evaluation_folder",
    "find_evaluation_folder",
    "hash_settings",
    "build_inference_model",
    "count_confusion",
    "results_table",
    "sample_features",
    "sample_vectors",
    "summarize_confusion",
]
