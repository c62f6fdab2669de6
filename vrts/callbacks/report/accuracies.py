"""Accuracy of a run against its frames: the numbers behind the chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vrts.callbacks.report.items import Item


@dataclass(frozen=True, slots=True)
class LevelAccuracy:
    """What a run would have come to, had it stopped at one level."""

    level: str
    mean_frames: float
    """Of all rounds so far, over questions that had one."""
    lowest: float
    highest: float
    """Between these is the accuracy, whatever the completions that an early stop cancelled would
    have said. They are the same where none of those mattered."""
    num_scored: int

    @property
    def stderr(self) -> float:
        """Standard error of an accuracy that is known, questions taken as independent."""
        return math.sqrt(self.lowest * (1 - self.lowest) / self.num_scored)


def level_accuracies(items: Sequence[Item], levels: Sequence[str]) -> list[LevelAccuracy]:
    """Accuracy against frames: what stopping at each level would have given, by majority.

    A question that was decided before keeps its answer and its frames; one that failed after a
    level has that level's answer. Questions whose right answer is not known do not count.

    Args:
        items: of the report, or their outlines.
        levels: frames asked for in each round.
    """
    scored = [item for item in items if "unscored" not in item["tags"]]
    n, found = len(scored), []
    for index, level in enumerate(levels):
        right, unknown, frames = 0, 0, []
        for item in scored:
            rounds = item["rounds"][: index + 1]
            if rounds:
                frames.append(sum(r["frames"] for r in rounds))
            failed_here = "failed" in item["tags"] and len(item["rounds"]) <= index
            if rounds and not failed_here:
                right += rounds[-1]["right"] is True
                unknown += rounds[-1]["right"] is None
        if frames:
            mean_frames = sum(frames) / len(frames)
            found.append(LevelAccuracy(level, mean_frames, right / n, (right + unknown) / n, n))
    return found
