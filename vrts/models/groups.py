"""Groups of completions that were sampled and rewarded: what dynamic sampling chooses among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from vrts.models.grpo import have_signal
from vrts.types import Rollout, Sample


@dataclass(frozen=True, slots=True)
class Groups:
    """B groups of G completions with their rewards."""

    samples: tuple[Sample, ...]
    """B, all with clips."""
    rollout: Rollout
    rewards: dict[str, torch.Tensor]
    """``[N]`` for each reward, unweighted."""
    total: torch.Tensor
    """``[N]``, weighted sum of the rewards."""

    @property
    def num_generations(self) -> int:
        """G."""
        return len(self.total) // len(self.samples)

    def have_signal(self) -> torch.Tensor:
        """Bool ``[B]``, False for groups whose rewards are all equal."""
        return have_signal(self.total, self.num_generations)

    def take(self, indices: Sequence[int]) -> Groups:
        """Some of the groups, in the given order."""
        G = self.num_generations
        rows = torch.tensor([b * G + g for b in indices for g in range(G)], device="cpu")
        r, on = self.rollout, rows.to(self.rollout.completion_ids.device)
        length = max(int(r.lengths[on].max()), 1)
        return Groups(
            samples=tuple(self.samples[b] for b in indices),
            rollout=Rollout(
                r.completion_ids[on, :length],
                r.completion_mask[on, :length],
                r.logprobs[on, :length],
                r.finished[on],
                tuple(r.texts[row] for row in rows.tolist()),
            ),
            rewards={name: values[rows] for name, values in self.rewards.items()},
            total=self.total[rows.to(self.total.device)],
        )

    def metrics(self) -> dict[str, float | torch.Tensor]:
        """What the groups tell about the state of training, as numbers to log."""
        return {
            **{f"reward/{name}": float(values.mean()) for name, values in self.rewards.items()},
            "reward/total": float(self.total.mean()),
            "reward_std": float(self.total.view(len(self.samples), -1).std(1).mean()),
            "zero_advantage_groups": float((~self.have_signal()).float().mean()),
            "sampled_groups": float(len(self.samples)),
            "completion_length": float(self.rollout.lengths.float().mean()),
            "truncated": float((~self.rollout.finished).float().mean()),
        }


def join(parts: Sequence[Groups]) -> Groups:
    """All groups of several rollouts, in order.

    Args:
        parts: at least one; all with the same G and the same rewards.
    """
    rollouts = [part.rollout for part in parts]
    length = max(r.completion_ids.shape[1] for r in rollouts)

    def rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([pad(t, (0, length - t.shape[1])) for t in tensors])

    return Groups(
        samples=tuple(sample for part in parts for sample in part.samples),
        rollout=Rollout(
            rows([r.completion_ids for r in rollouts]),
            rows([r.completion_mask for r in rollouts]),
            rows([r.logprobs for r in rollouts]),
            torch.cat([r.finished for r in rollouts]),
            tuple(text for r in rollouts for text in r.texts),
        ),
        rewards={name: torch.cat([p.rewards[name] for p in parts]) for name in parts[0].rewards},
        total=torch.cat([part.total for part in parts]),
    )
