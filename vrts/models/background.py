"""Work beside training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """A thread that does what it is given in that order, and nothing more after a failure."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Have something done after what was given before, unless that fails.

        Args:
            work: to do.
            args: of it.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1)
        before = list(self._pending)

        def run() -> None:
            if all(future.exception() is None for future in before):
                work(*args)

        self._pending.append(self._thread.submit(run))

    def wait(self) -> None:
        """Wait until all is done; raises what the first failure raised."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def close(self) -> None:
        """Wait, and end the thread; raises as `wait` does. Submitting again starts a new one."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
