"""Rollouts of training: the questions of a step, completed and rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vrts.models.engines.engine import Engine, Request
from vrts.models.engines.sampling import row_seed
from vrts.models.grpo.temporal import TemporalReward, shuffle_frames
from vrts.models.policy import Policy, Prompt, Workload
from vrts.models.rewards.accuracy import accuracy_score
from vrts.models.rewards.base import Reward, total_reward
from vrts.types import Completion, Question, Sample, SamplingParams


@dataclass(slots=True, eq=False)
class Group:
    """One question of a step with its G completions, and what the update needs of them."""

    sample: Sample
    prompt: Prompt
    completions: tuple[Completion, ...]
    rewards: dict[str, torch.Tensor]
    """``[G]`` for each reward, unweighted; on the CPU, as all that follows."""
    total: torch.Tensor  # [G], weighted sum of the rewards
    advantages: torch.Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    """``[G]``, once they are known."""

    @property
    def rewards_differ(self) -> bool:
        """Whether something can be learned from it: its rewards are not all equal."""
        return bool((self.total != self.total[0]).any())


@dataclass(slots=True)
class SampledCount:
    """Completions that were sampled, including those that no update is made from."""

    num_completions: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    flops: float = 0.0  # 0 where the policy does not know


@dataclass(slots=True)
class StepWork:
    """What a step took on this rank, for callbacks that watch the speed."""

    rollout_s: float = 0.0
    """Encoding, sampling and rewarding; no rank waits for another one meanwhile."""
    num_questions: int = 0  # those with a usable video
    num_frames: int = 0
    sampled: SampledCount = field(default_factory=SampledCount)
    update: list[Workload] = field(default_factory=list)
    """One for each micro-batch of each of the rollout's updates."""
    reference: list[Workload] = field(default_factory=list)
    """One for each micro-batch that the reference scored."""

    @property
    def update_flops(self) -> float:
        """Operations of the updates and of the reference's scoring, which comes after sampling."""
        scoring = sum(workload.scoring_flops for workload in self.reference)
        return scoring + sum(workload.update_flops for workload in self.update)


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was sampled for a step."""

    groups: list[Group]  # to train on
    tried: list[Group]  # all, in the order of their questions
    sampled: SampledCount

    def metrics(self) -> dict[str, float | torch.Tensor]:
        """Numbers to log; none without a group."""
        if not self.tried:
            return {}
        completions = [c for group in self.tried for c in group.completions]
        totals = torch.stack([group.total for group in self.tried])  # [B, G]
        return {
            **{
                f"reward/{name}": float(torch.stack([g.rewards[name] for g in self.tried]).mean())
                for name in self.tried[0].rewards
            },
            "reward/total": float(totals.mean()),
            "reward_std": float(totals.std(1).mean()),
            "frac_reward_zero_std": sum(not g.rewards_differ for g in self.tried) / len(self.tried),
            "sampled_groups": float(len(self.tried)),
            "completion_length": sum(c.num_tokens for c in completions) / len(completions),
            "truncated": sum(not c.finished for c in completions) / len(completions),
        }


@dataclass(frozen=True, slots=True)
class RolloutWorker:
    """Samples and rewards groups of completions.

    With `num_groups` it does so until that many groups have rewards that differ, or the batch is
    used up (dynamic sampling, DAPO, Yu et al., 2025, arXiv 2503.14476, section 3.2).
    """

    policy: Policy
    engine: Engine
    rewards: Sequence[Reward]
    temporal: TemporalReward | None  # T-GRPO's bonus, if any
    num_generations: int  # G
    num_groups: int | None  # groups to train on; None takes all of the batch
    max_new_tokens: int
    temperature: float
    seed: int

    def __call__(self, samples: Sequence[Sample], epoch: int) -> Rollout:
        """Sample and reward groups.

        Args:
            samples: of this rank, all with clips.
            epoch: seeds differ from epoch to epoch.

        Raises:
            RewardError: a reward failed.
        """
        size = self.num_groups or max(len(samples), 1)
        tried: list[Group] = []
        count = SampledCount()
        for start in range(0, len(samples), size):
            tried += self._sample(samples[start : start + size], epoch, count)
            if sum(group.rewards_differ for group in tried) >= size:
                break
        # Groups whose rewards differ first, the others only fill up; in order where all are taken.
        useful_first = sorted(tried, key=lambda group: not group.rewards_differ)
        return Rollout(useful_first[:size] if self.num_groups else tried, tried, count)

    def _sample(self, samples: Sequence[Sample], epoch: int, count: SampledCount) -> list[Group]:
        """G rewarded completions of each question, all sampled together."""
        B, G = len(samples), self.num_generations
        # T-GRPO samples on the frames in random order too.
        shuffled = [
            shuffle_frames(s, row_seed(self.seed, epoch, s.question.id, "order"))
            for s in samples
            if self.temporal is not None and s.clip is not None and not s.clip.is_image
        ]
        num_shuffled = (self.temporal and self.temporal.num_generations) or max(G // 2, 1)
        prompts = self.engine.encode([*samples, *shuffled])
        requests = [self._request(p, G, epoch) for p in prompts[:B]]
        requests += [self._request(p, num_shuffled, epoch, "shuffled") for p in prompts[B:]]
        results = self.engine.generate(requests)
        for result in results:
            self._count(result.request.prompt, result.completions, count)
        completions = [result.completions for result in results]

        total, rewards = total_reward(
            self.rewards,
            [c for group in completions[:B] for c in group],
            [s.question for s in samples for _ in range(G)],
        )
        total = total.view(B, G)
        rewards = {name: values.view(B, G) for name, values in rewards.items()}
        if self.temporal is not None:
            on_shuffled = {
                s.question.id: _accuracy(group, s.question)
                for s, group in zip(shuffled, completions[B:], strict=True)
            }
            bonus = torch.zeros_like(total)
            for row, sample, group in zip(bonus, samples, completions[:B], strict=True):
                if (other := on_shuffled.get(sample.question.id)) is not None:
                    row[:] = self.temporal.bonus(_accuracy(group, sample.question), other)
            rewards[self.temporal.name] = bonus
            total = total + bonus
        return [
            Group(
                sample, prompts[b], completions[b], {n: r[b] for n, r in rewards.items()}, total[b]
            )
            for b, sample in enumerate(samples)
        ]

    def _request(self, prompt: Prompt, num_samples: int, epoch: int, *kind: str) -> Request:
        id = prompt.question.id
        seeds = [row_seed(self.seed, epoch, id, *kind, n) for n in range(num_samples)]
        # The model's own distribution, untruncated: what is sampled is what is scored.
        sampling = SamplingParams(temperature=self.temperature)
        return Request(prompt, (sampling,) * num_samples, tuple(seeds), self.max_new_tokens)

    def _count(self, prompt: Prompt, own: Sequence[Completion], count: SampledCount) -> None:
        workload = self.policy.workload([prompt], [own])
        count.num_completions += len(own)
        count.num_truncated += sum(not c.finished for c in own)
        count.num_tokens += sum(c.num_tokens for c in own)
        count.flops += workload.rollout_flops if workload else 0.0


def _accuracy(completions: Sequence[Completion], question: Question) -> torch.Tensor:
    """Accuracy ``[G]`` of completions."""
    scores = [accuracy_score(c.text, question) for c in completions]
    return torch.tensor(scores, dtype=torch.float32, device="cpu")
