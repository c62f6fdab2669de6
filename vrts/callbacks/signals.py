"""Signals that end a run: SIGTERM of ``kill``, ``timeout`` and schedulers, SIGHUP of a terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)


class SignalHandlers:
    """Handlers with which SIGTERM and SIGHUP end the run as Ctrl-C does; Lightning's continue it.

    A signal that ``nohup`` ignores stays ignored.

    Args:
        numbers: signals.
        handler: of all of them.
    """

    def __init__(
        self,
        numbers: Sequence[int] = ENDING,
        handler: Callable[[int, FrameType | None], Any] = signal.default_int_handler,
    ) -> None:
        self._numbers = numbers
        self._handler = handler
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers; reinstall them if another library replaced them.

        Does nothing outside the main thread, where Python allows none.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._numbers:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            previous = signal.signal(number, self._handler)
            if previous is not None:
                self._previous.setdefault(number, previous)

    def restore(self) -> dict[int, Any]:
        """Put back the handlers from before the first `install`, and return them; idempotent."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        restored, self._previous = self._previous, {}
        return restored
