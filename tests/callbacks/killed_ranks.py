"""Predicts on two gloo processes, of which some kill themselves."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.callbacks.plugins import ScriptedPolicy, ask
from tests.callbacks.prediction.test_writer import SCRIPT, categorised, nine
from tests.callbacks.runs import run_prediction
from tests.callbacks.two_processes import parallel
from vrts.models.engines.engine import Request
from vrts.types import Question


class SlowPolicy(ScriptedPolicy):
    """Takes a while for each request, so that a run can be hit in its middle."""

    def __init__(self, *args: Any, step_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.step_s = step_s

    def take(self, request: Request) -> None:
        time.sleep(self.step_s)
        super().take(request)


def asked(videos: dict[str, str]) -> list[Question]:
    """Nine questions with failures and several levels, and more of them."""
    return nine(videos) + [categorised(ask(f"q{i}", videos["long"])) for i in range(9, 30)]


def run(folder: Path, videos: dict[str, str], ranks: list[int]) -> None:
    """Predict, until these ranks kill themselves."""
    dies = int(os.environ.get("LOCAL_RANK", "0")) in ranks
    policy = SlowPolicy(SCRIPT, step_s=0.2, stop_after=4 if dies else None, signal=signal.SIGKILL)
    run_prediction(folder, policy, asked(videos), trainer=parallel(2))
