import pickle
import traceback

import pytest
from detectron2.utils import comm

from d2_contrast.data import read_image
from d2_contrast.engine.parallel import on_main_process
from d2_contrast.errors import explain


@pytest.fixture
def in_both(monkeypatch):
    """Call ``on_main_process`` as the first of two processes does, then as the other; the exceptions of both."""

    def call(function) -> list[Exception]:
        told, raised = [], []

        def gather(own):
            told.append(pickle.dumps(own))
            return [pickle.loads(data) for data in told]

        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "all_gather", gather)
        for is_main in (True, False):
            monkeypatch.setattr(comm, "is_main_process", lambda is_main=is_main: is_main)
            with pytest.raises(Exception) as caught:
                on_main_process(function)
            raised.append(caught.value)
        return raised

    return call


def no_memory():
    raise MemoryError


@pytest.mark.parametrize(
    ("function", "kind", "sentence"),
    [
        (lambda: read_image("/none/a.png"), FileNotFoundError, "/none/a.png: no such image"),
        (lambda: open("/none/b.txt"), FileNotFoundError, "/none/b.txt: No such file or directory"),
        (no_memory, MemoryError, "There is not enough memory: "),
    ],
)
def test_a_mistake_is_told_to_all(in_both, function, kind, sentence):
    for error in in_both(function):
        assert isinstance(error, kind) and explain(error).startswith(sentence)


def test_a_bug_is_no_mistake_anywhere(in_both):
    """Each process shows where it is."""

    class OwnError(KeyError):
        """Of a dataset function in a user's file: no other process can read it."""

    def load_own_dataset():
        raise OwnError("height")

    here, elsewhere = in_both(load_own_dataset)
    assert isinstance(here, OwnError) and explain(here) is explain(elsewhere) is None
    for error in (here, elsewhere):
        assert "in load_own_dataset" in "".join(traceback.format_exception(error))
