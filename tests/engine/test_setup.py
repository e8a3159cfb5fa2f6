import pytest


@pytest.mark.parametrize(
    ("overrides", "error", "culprit"),
    [
        (["MODEL.CONTRAST.TEMPERATUR", 0.1], KeyError, "MODEL.CONTRAST.TEMPERATUR"),
        (["MODEL.CONTRAST.TEMPERATURE", "warm"], ValueError, "MODEL.CONTRAST.TEMPERATURE"),
        (["SEED"], ValueError, "SEED"),
        (["DATASETS.TRAIN", "('moon_landing',)"], KeyError, "DATASETS.TRAIN: dataset 'moon_landing' is not registered"),
        (["DATASETS.TEST", "('moon_landing',)"], KeyError, "shapes_val"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 13], ValueError, "12 classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 13"),
        (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254], ValueError, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 254"),
    ],
)
def test_errors_name_the_culprit(make_cfg, overrides, error, culprit):
    with pytest.raises(error) as raised:
        make_cfg(*overrides)
    assert culprit in str(raised.value)


def test_unknown_key_in_a_file(tmp_path):
    from d2_contrast.config import load_config

    path = tmp_path / "typo.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  CONTRAST:\n    SCALE_WEIGHT: [1.0]\n")
    with pytest.raises(KeyError) as raised:
        load_config(str(path))
    for part in (str(path), "MODEL.CONTRAST.SCALE_WEIGHT;", "MODEL.CONTRAST.SCALE_WEIGHTS"):
        assert part in str(raised.value)


def test_falls_back_to_cpu(make_cfg, monkeypatch, logged):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = make_cfg("MODEL.DEVICE", "cuda")
    assert cfg.MODEL.DEVICE == "cpu"
    assert "running on cpu" in logged()
