import pytest
import torch
import torch.nn.functional as F

from d2_contrast.contrast import AnchorSet, describe_anchors


def test_statistics():
    sets = {}
    for name, classes in (("p2", 4), ("p5", 2)):
        labels = torch.randint(classes, (60,)).sort().values
        sets[name] = AnchorSet(F.normalize(torch.randn(60, 6), dim=1), labels)
    stats = describe_anchors(sets)
    for name, (anchors, labels) in sets.items():
        cosines = anchors @ anchors.t()
        same = labels[:, None] == labels[None]
        other = ~torch.eye(len(labels), dtype=torch.bool)
        num_classes = len(labels.unique())
        expected = {
            "num_anchors": len(labels),
            "num_classes": num_classes,
            "anchors_per_class": len(labels) / num_classes,
            "positive_similarity": cosines[same & other].mean().item(),
            "negative_similarity": cosines[~same].mean().item(),
        }
        got = {key: float(stats.pop(f"contrast/{name}/{key}")) for key in expected}
        assert got == pytest.approx(expected, abs=1e-6)
    assert not stats


def test_an_empty_set():
    stats = describe_anchors({"p2": AnchorSet(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))})
    values = {key.rpartition("/")[2]: float(value) for key, value in stats.items()}
    assert values["num_anchors"] == values["num_classes"] == values["anchors_per_class"] == 0
    assert values["positive_similarity"] != values["positive_similarity"]  # NaN: there is no pair
