"""What a training batch took on this process, for callbacks that watch the speed."""

from __future__ import annotations

from dataclasses import dataclass, field

from vrts.models.flops import Workload
from vrts.models.policy import Policy, Prompts
from vrts.types import Rollout


@dataclass(slots=True)
class Sampled:
    """Completions that were sampled, those that no update is made from among them."""

    num_tokens: int = 0
    flops: float = 0.0
    """0 where the policy cannot tell."""

    def add(self, policy: Policy, prompts: Prompts, rollout: Rollout) -> None:
        """Count a rollout; its texts are known, so nothing here waits for the device."""
        workload = policy.workload(prompts, rollout)
        self.num_tokens += int(rollout.lengths.sum())
        self.flops += workload.rollout_flops if workload else 0.0


@dataclass(slots=True)
class BatchWork:
    """Of one batch."""

    waiting_s: float = 0.0
    """In all exchanges of numbers with other processes."""
    rollout_s: float = 0.0
    """Encoding, sampling and rewarding, without waiting for other processes; 0 for a further
    update from the last rollout. Where weights are sharded, gathering them is in it."""
    rollout_waiting_s: float = 0.0
    """In exchanges of numbers with other processes meanwhile."""
    num_questions: int = 0
    """Those with a usable video."""
    num_frames: int = 0
    sampled: Sampled = field(default_factory=Sampled)
    update: Workload | None = None
    """Of the completions that the update is made from; None without one."""
    has_reference: bool = False
    """Whether the reference scored them too."""

    @property
    def update_flops(self) -> float:
        """Operations of the update and of the reference's scoring, which comes after sampling."""
        if self.update is None:
            return 0.0
        return self.update.update_flops + self.has_reference * self.update.scoring_flops
