"""What callbacks may see of a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrts.types import Question


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A training rollout as people read it: N completions and what they were worth."""

    questions: Sequence[Question]
    """N, one for each completion."""
    texts: Sequence[str]
    """N completions."""
    rewards: dict[str, torch.Tensor]
    """``[N]`` for each reward, unweighted."""
    advantages: torch.Tensor
    """``[N]``."""
