"""Work that one process does for all."""

import traceback
from collections.abc import Callable
from typing import TypeVar

from detectron2.utils import comm

from ..arrivals import arrive
from ..errors import ElsewhereError, explain

T = TypeVar("T")


def on_main_process(function: Callable[..., T], *args) -> T:
    """Call ``function(*args)`` in the main process alone; every process gets what it returned, or its exception.

    To be called in all processes. Where the exception is a bug, the others get an :class:`ElsewhereError`.
    """
    if comm.get_world_size() == 1:
        return function(*args)
    result, error = None, None
    if comm.is_main_process():
        try:
            result = function(*args)
        except Exception as raised:
            error = raised
    is_bug = error is not None and explain(error) is None
    told = ElsewhereError("".join(traceback.format_exception(error))) if is_bug else error
    arrive()
    result, told = comm.all_gather((result, told))[0]
    if error is not None:
        raise error  # what was told is a copy, without its traceback
    if told is not None:
        raise told
    return result
