"""Work in a thread beside the network."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Run calls in a thread, one after the other, while the caller goes on. At most one is unfinished at a time."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._unfinished: Future | None = None

    def start(self, function: Callable, *args: object) -> None:
        """Call ``function(*args)`` in the thread. An error of the call before is raised here."""
        self.finish()
        self._unfinished = self._thread.submit(function, *args)

    def finish(self) -> None:
        """Wait for the call that is unfinished, if any, and raise its error."""
        call, self._unfinished = self._unfinished, None
        if call is not None:
            call.result()
