"""SIGTERM for a prediction run: what ``kill``, ``timeout`` and cluster schedulers send."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Termination:
    """Has SIGTERM end the run as Ctrl-C does; Lightning takes note of it and predicts on."""

    def __init__(self) -> None:
        self._had: Any = None

    def take_over(self) -> None:
        """Begin; in another thread than the main one signals are left as they are."""
        if threading.current_thread() is threading.main_thread():
            self._had = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def give_back(self) -> None:
        """End; harmless twice."""
        if self._had is not None:
            signal.signal(signal.SIGTERM, self._had)
            self._had = None
