"""SIGTERM, which ``kill``, ``timeout`` and cluster schedulers send, and signals like it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)
ENDING = (signal.SIGTERM,) if HANGUP is None else (signal.SIGTERM, HANGUP)
"""Sent by ``kill`` and schedulers, and by a terminal that closes or a connection that is lost."""


class Termination:
    """Has SIGTERM and SIGHUP end the run as Ctrl-C does; Lightning takes note and continues.

    What ``nohup`` has ignored stays so.

    Args:
        numbers: signals.
        handler: what they do.
    """

    def __init__(
        self,
        numbers: Sequence[int] = ENDING,
        handler: Callable[[int, FrameType | None], Any] = signal.default_int_handler,
    ) -> None:
        self._numbers = numbers
        self._handler = handler
        self._had: dict[int, Any] = {}

    def take_over(self) -> None:
        """Begin, or begin again where another handler was put in place meanwhile.

        In another thread than the main one signals are left as they are.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._numbers:
            if number == HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            had = signal.signal(number, self._handler)
            if had is not None:
                self._had.setdefault(number, had)

    def give_back(self) -> dict[int, Any]:
        """End; idempotent.

        Returns:
            The handlers that are in place again, those from before the first `take_over`.
        """
        for number, handler in self._had.items():
            signal.signal(number, handler)
        had, self._had = self._had, {}
        return had
