"""From samples to rewarded groups of completions, as many as an update needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrts.models.groups import Groups, join
from vrts.models.grpo import Reduce
from vrts.models.policy import Policy, Prompts
from vrts.models.rewards import MIN_SCORE, Reward, accuracy_score, total_reward
from vrts.models.sampling import row_seed
from vrts.models.temporal import TemporalReward, shuffle_frames, temporal_bonus
from vrts.models.work import Sampled
from vrts.types import Question, Sample, Sampling


@dataclass(frozen=True, slots=True)
class Collected:
    """Groups to train on."""

    groups: Groups
    prompts: Prompts
    """Of these groups."""
    metrics: dict[str, float | torch.Tensor]
    """Of all groups that were sampled, to log."""
    num_tokens: int
    """Of all completions in order that were sampled."""
    sampled: Sampled
    """All that was sampled."""


class Collector:
    """Rolls a policy out and rewards what it says.

    With `num_groups` it does so until that many groups have rewards that differ, or the batch is
    used up (dynamic sampling, DAPO, Yu et al., 2025, arXiv 2503.14476, section 3.2). Processes go
    on together until each has enough, so that all of them use the model equally often.

    Args:
        policy: is asked.
        rewards: what completions are rewarded for.
        temporal: adds T-GRPO's bonus; None does not.
        num_generations: G.
        num_groups: groups to train on; None takes all of the batch.
        max_new_tokens: completions are cut off there.
        temperature: of sampling.
        seed: of sampling.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: Sequence[Reward],
        temporal: TemporalReward | None,
        num_generations: int,
        num_groups: int | None,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        self._policy = policy
        self._rewards = rewards
        self._temporal = temporal
        self._num_generations = num_generations
        self._num_groups = num_groups
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._seed = seed
        self._sampled = Sampled()

    def __call__(self, samples: Sequence[Sample], epoch: int, reduce: Reduce) -> Collected | None:
        """Sample and reward groups; every process that trains has to take part.

        Args:
            samples: of this process, all with clips; the batch.
            epoch: other seeds in each.
            reduce: averages over the processes that train together.

        Returns:
            None without samples.

        Raises:
            RewardError: a reward failed.
        """
        size = self._num_groups or len(samples)
        self._sampled = Sampled()
        waiting = list(samples)
        tried: list[Groups] = []
        prompts: Prompts | None = None
        rounds = 0
        while True:
            rounds += 1
            chunk, waiting = waiting[:size], waiting[size:]
            # A process without more samples repeats its first ones, and drops what comes of it.
            groups, asked = self._try(chunk or samples[:size], epoch, reduce)
            if chunk and groups is not None:
                tried.append(groups)
                prompts = asked
            useful = sum(int(groups.have_signal().sum()) for groups in tried)
            wanting = useful < size and bool(waiting)
            if self._num_groups is None or not self._anywhere(wanting, reduce):
                break
        if not tried or prompts is None:
            return None
        everything = join(tried)
        num_tokens = int(everything.rollout.lengths.sum())
        if rounds == 1:
            return Collected(everything, prompts, everything.metrics(), num_tokens, self._sampled)
        # Useful ones first; others only fill up, so that every process trains on as many.
        useless = (~everything.have_signal()).tolist()
        order = sorted(range(len(useless)), key=useless.__getitem__)
        chosen = everything.take(order[:size])
        prompts = self._policy.encode(chosen.samples, self._max_new_tokens)
        return Collected(chosen, prompts, everything.metrics(), num_tokens, self._sampled)

    def _try(
        self, samples: Sequence[Sample], epoch: int, reduce: Reduce
    ) -> tuple[Groups | None, Prompts | None]:
        """Sample and reward G completions of each question."""
        bonus = self._shuffled_scores(samples, epoch, reduce)
        if not samples:
            return None, None
        G = self._num_generations
        prompts = self._policy.encode(samples, self._max_new_tokens)
        questions = [s.question for s in samples for _ in range(G)]
        seeds = [row_seed(self._seed, epoch, q.id, n % G) for n, q in enumerate(questions)]
        rollout = self._policy.rollout(prompts, self._sampling(G), seeds, self._max_new_tokens)
        self._sampled.add(self._policy, prompts, rollout)
        completions = rollout.completions(self._max_new_tokens)
        total, rewards = total_reward(self._rewards, completions, questions)
        if self._temporal is not None:
            rewards[self._temporal.name] = self._bonus(rollout.texts, questions, bonus)
            total = total + rewards[self._temporal.name]
        total = total.to(rollout.logprobs.device)
        return Groups(tuple(samples), rollout, rewards, total), prompts

    def _bonus(
        self, texts: Sequence[str], questions: Sequence[Question], shuffled: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """T-GRPO's bonus ``[N]``; 0 for questions that were not asked on shuffled frames."""
        assert self._temporal is not None
        scores = _scores(texts, questions).view(-1, self._num_generations)
        bonus = torch.zeros_like(scores)
        for b, question in enumerate(questions[:: self._num_generations]):
            if question.id in shuffled:
                bonus[b] = temporal_bonus(
                    scores[b : b + 1],
                    shuffled[question.id][None],
                    self._temporal.alpha,
                    self._temporal.mu,
                    MIN_SCORE,
                )[0]
        return bonus.flatten()

    def _shuffled_scores(
        self, samples: Sequence[Sample], epoch: int, reduce: Reduce
    ) -> dict[str, torch.Tensor]:
        """Accuracy ``[G']`` of each video's question on its shuffled frames, by question id."""
        if self._temporal is None:
            return {}
        videos = [s for s in samples if s.clip is not None and not s.clip.is_image]
        if not self._anywhere(bool(videos), reduce) or not samples:
            return {}
        # Where other processes have videos and this one has pictures only, it keeps them company.
        shuffled = [
            shuffle_frames(s, row_seed(self._seed, epoch, s.question.id, "order"))
            for s in videos or samples
        ]
        G = self._temporal.num_generations or max(self._num_generations // 2, 1)
        questions = [s.question for s in shuffled for _ in range(G)]
        seeds = [
            row_seed(self._seed, epoch, q.id, "shuffled", n % G) for n, q in enumerate(questions)
        ]
        prompts = self._policy.encode(shuffled, self._max_new_tokens)
        rollout = self._policy.rollout(prompts, self._sampling(G), seeds, self._max_new_tokens)
        self._sampled.add(self._policy, prompts, rollout)
        if not videos:
            return {}
        scores = _scores(rollout.texts, questions).view(-1, G)
        return {s.question.id: row for s, row in zip(shuffled, scores, strict=True)}

    def _sampling(self, num_generations: int) -> list[Sampling]:
        return [Sampling(temperature=self._temperature)] * num_generations

    def _anywhere(self, flag: bool, reduce: Reduce) -> bool:
        """Whether it is so on any of the processes that train together."""
        device = next(self._policy.parameters()).device
        return bool(reduce(torch.tensor(float(flag), dtype=torch.float32, device=device)) > 0)


def _scores(texts: Sequence[str], questions: Sequence[Question]) -> torch.Tensor:
    """Accuracy ``[N]`` of completions."""
    pairs = zip(texts, questions, strict=True)
    scores = [accuracy_score(text, question) for text, question in pairs]
    return torch.tensor(scores, dtype=torch.float32, device="cpu")
