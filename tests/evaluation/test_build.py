import pytest
from detectron2.data import MetadataCatalog

from d2_contrast.config import default_config
from d2_contrast.evaluation import ConfusionEvaluator, build_evaluator


def test_the_metadata_picks_the_evaluator(labelled_dataset):
    cfg = default_config()
    cfg.OUTPUT_DIR = "here"
    evaluator = build_evaluator(cfg, "labelled_dataset")
    assert type(evaluator) is ConfusionEvaluator
    assert evaluator.output_dir == "here/inference/labelled_dataset"
    assert build_evaluator(cfg, "labelled_dataset", "there").output_dir == "there"


def test_an_unknown_type_is_named(labelled_dataset):
    del MetadataCatalog.get("labelled_dataset").evaluator_type
    with pytest.raises(ValueError, match="'labelled_dataset'.*None.*expected one of .'.*sem_seg'"):
        build_evaluator(default_config(), "labelled_dataset")
