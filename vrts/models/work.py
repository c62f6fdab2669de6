"""What a step took on this rank, for callbacks that watch the speed."""

from __future__ import annotations

from dataclasses import dataclass, field

from vrts.models.flops import Workload
from vrts.models.rollouts import SampledCount


@dataclass(slots=True)
class StepWork:
    """Of one step."""

    waiting_s: float = 0.0
    """In all exchanges of numbers with other ranks."""
    rollout_s: float = 0.0
    """Encoding, sampling and rewarding; no rank waits for another one meanwhile."""
    num_questions: int = 0
    """Those with a usable video."""
    num_frames: int = 0
    sampled: SampledCount = field(default_factory=SampledCount)
    update: list[Workload] = field(default_factory=list)
    """Of each micro-batch of the update; of all updates of the rollout."""
    reference: list[Workload] = field(default_factory=list)
    """Of each micro-batch that the reference scored."""

    @property
    def update_flops(self) -> float:
        """Operations of the updates and of the reference's scoring, which comes after sampling."""
        scoring = sum(workload.scoring_flops for workload in self.reference)
        return scoring + sum(workload.update_flops for workload in self.update)
