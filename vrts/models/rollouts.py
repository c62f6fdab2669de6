"""The rollouts of training, each of which is kept for all updates that are made from it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vrts.models.collecting import Collected, Collector
from vrts.models.experience import Experience
from vrts.models.grpo import Reduce
from vrts.models.objectives import Objective
from vrts.models.policy import Policy, Prompts
from vrts.models.reference import Reference
from vrts.models.sharding import stand_in
from vrts.models.work import BatchWork
from vrts.types import Rollout, Sample


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes that train together, as one of them sees them."""

    mean: Reduce
    """Averages a number over them."""
    device: torch.device
    """Where numbers are exchanged."""
    is_sharded: bool
    """Whether each holds a part of the weights only, so that none may leave out a pass."""


class Rollouts:
    """Rolls a policy out, and keeps what the newest rollout came to.

    Args:
        policy: is asked.
        collect: samples and rewards groups of its completions.
        objective: has the advantages.
        num_generations: G.
        num_groups: groups that an update is made from; None takes all of the batch.
        updates_per_rollout: updates that are made from a rollout.
        temperature: that the reference scores at.
        mask_truncated: completions that were cut off do not count in the loss.
    """

    def __init__(
        self,
        policy: Policy,
        collect: Collector,
        objective: Objective,
        num_generations: int,
        num_groups: int | None,
        updates_per_rollout: int,
        temperature: float,
        mask_truncated: bool,
    ) -> None:
        self.experience: Experience | None = None
        """Of the newest rollout; None where none of its samples was usable."""
        self._policy = policy
        self._collect = collect
        self._objective = objective
        self._num_generations = num_generations
        self._num_groups = num_groups
        self._updates_per_rollout = updates_per_rollout
        self._temperature = temperature
        self._mask_truncated = mask_truncated
        self._stand_in: tuple[Prompts, Rollout] | None = None
        self._asked: tuple[str, ...] = ()

    def is_due(self, batch: Sequence[Sample], batch_idx: int) -> bool:
        """Whether a batch is a new one and no further update from the last rollout.

        All processes find the same, whatever became of their videos. To be asked once a batch.

        Args:
            batch: with the samples that cannot be used.
            batch_idx: its place in the epoch.
        """
        asked = tuple(sample.question.id for sample in batch)
        again = batch_idx % self._updates_per_rollout > 0 and asked == self._asked
        self._asked = asked
        return not again

    def make(
        self,
        samples: list[Sample],
        batch: Sequence[Sample],
        epoch: int,
        reference: Reference | None,
        peers: Peers,
        work: BatchWork,
    ) -> None:
        """Sample and reward groups of completions, and ask the reference.

        Without samples this process still takes part in what all do together.

        Args:
            samples: that can be trained on.
            batch: that they are from.
            epoch: other seeds in each.
            reference: scores the completions too; None without a KL penalty.
            peers: train along with this process.
            work: is filled in; its waiting grows with each exchange.

        Raises:
            InputError: the batch cannot have as many groups as are asked for.
            RewardError: a reward failed.
        """
        start_s = time.perf_counter()
        asked = samples
        if peers.is_sharded and not samples:
            asked = [stand_in(batch[0].question)]  # the others need this process to gather weights
        found = self._collect(asked, epoch, peers.mean)
        work.rollout_waiting_s = work.waiting_s
        work.rollout_s = time.perf_counter() - start_s - work.waiting_s
        nothing = torch.zeros(0, dtype=torch.float32, device=peers.device)
        rewards = found.groups.total if found and samples else nothing
        advantages = self._objective.advantages(rewards, self._num_generations, peers.mean)
        self.experience = self._stand_in = None
        if found is None:
            return
        scores = self._scores(found, reference)
        if not samples:
            self._stand_in = found.prompts, found.groups.rollout
            return
        seconds = time.perf_counter() - start_s
        speed = found.num_tokens / max(seconds, 1e-9)
        metrics = found.metrics | {"rollout_s": seconds, "tokens_per_s": speed}
        mask = self._counted(found.groups.rollout)
        work.num_questions = len(samples)
        work.num_frames = sum(s.clip.num_frames for s in samples if s.clip is not None)
        work.sampled = found.sampled
        work.has_reference = scores is not None
        self.experience = Experience(found.groups, found.prompts, advantages, mask, scores, metrics)

    def loss_without_effect(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Take part in what all processes do where this one has no experience.

        Args:
            parameters: of all that is trained.

        Returns:
            Zero, whose backward still reaches every parameter.
        """
        if self._stand_in is None:
            return torch.stack([(p * 0.0).sum() for p in parameters if p.requires_grad]).sum()
        return (self._policy.score(*self._stand_in, self._temperature).logprobs * 0.0).sum()

    def _scores(self, found: Collected, reference: Reference | None) -> torch.Tensor | None:
        """The reference's log-probs ``[N, L]``."""
        if reference is None:
            return None
        rollout = found.groups.rollout
        return reference.logprobs(self._policy, found.prompts, rollout, self._temperature)

    def _counted(self, rollout: Rollout) -> torch.Tensor:
        """Tokens ``[N, L]`` that count in the loss."""
        if not self._mask_truncated:
            return rollout.completion_mask
        return rollout.completion_mask & rollout.finished[:, None]
