"""Work that one process does for all."""

from collections.abc import Callable
from typing import TypeVar

from detectron2.utils import comm

from ..arrivals import arrive

T = TypeVar("T")


def on_main_process(function: Callable[..., T], *args) -> T:
    """Call ``function(*args)`` in the main process alone; every process gets what it returned, or its exception.

    To be called in all processes.
    """
    if comm.get_world_size() == 1:
        return function(*args)
    result, error = None, None
    if comm.is_main_process():
        try:
            result = function(*args)
        except Exception as raised:
            error = raised
    arrive()
    result, error = comm.all_gather((result, error))[0]
    if error is not None:
        raise error
    return result
