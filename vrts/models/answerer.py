"""Answering with a policy, whether each process has the whole of it or only a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from vrts.models.answering import RoundPlan, ask
from vrts.models.policy import Policy, Prompts
from vrts.models.sharding import announce, keep_company
from vrts.types import Prediction, Round, Sample, Sampling
from vrts.voting import decide, fail


class Answerer:
    """Asks a policy questions.

    Args:
        policy: is asked.
        sampling: how tokens are drawn, where no callback sets another plan.
        max_new_tokens: completions are cut off there.
        seed: of the sampling; see `ask`.
    """

    def __init__(self, policy: Policy, sampling: Sampling, max_new_tokens: int, seed: int) -> None:
        self.plan = RoundPlan((sampling,))
        """How questions are asked; a callback may set it."""
        self.known_prompts: Prompts | None = None
        """Of the last round, where the next one may take features from it."""
        self._policy = policy
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._mesh: DeviceMesh | None = None
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def prepare(
        self, mesh: DeviceMesh | None, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Take note of how the coming run computes.

        Args:
            mesh: one-dimensional, that the weights are sharded over; None where they are not.
            autocast: makes the context of the run's precision. A callback may ask from outside of
                a step, where Lightning's own is not on.
        """
        self._mesh = mesh
        self._autocast = autocast

    def check(self, sample: Sample) -> Sample:
        """Give a sample back, without its clip and with the reason where it cannot be asked."""
        if sample.clip is None:
            return sample
        reason = self._policy.refuses(sample, self._max_new_tokens)
        return sample if reason is None else Sample(sample.question, error=reason)

    def answer(self, samples: Sequence[Sample], plan: RoundPlan) -> list[Round]:
        """Ask questions whose clips are at hand.

        Args:
            samples: all with clips, and checked.
            plan: how they are asked.

        Returns:
            One round for each sample; see `ask`.
        """
        if not samples:
            return []
        if self._mesh is not None:
            announce(self._mesh)
        with self._autocast():
            prompts = self._policy.encode(samples, self._max_new_tokens, self.known_prompts)
            self.known_prompts = prompts if plan.reuse_features else None
            return ask(self._policy, samples, prompts, plan, self._seed, self._max_new_tokens)

    def predict(self, batch: Sequence[Sample]) -> list[Prediction]:
        """Ask each question in one round, with the frames that its sample has."""
        self.known_prompts = None
        checked = [self.check(sample) for sample in batch]
        asked = [sample for sample in checked if sample.clip is not None]
        rounds = iter(self.answer(asked, self.plan))
        return [
            fail(sample.question, sample.error)
            if sample.clip is None
            else decide(sample.question, [next(rounds)], self.plan.rule, sample.clip)
            for sample in checked
        ]

    def keep_company(self) -> None:
        """Gather sharded weights along with processes that still have something to ask."""
        if self._mesh is None:
            return
        with self._autocast():
            keep_company(self._policy, self._mesh, self._max_new_tokens)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the answering side of a prediction run, as plain JSON values.

        Sampling is that of `plan`, whoever has set it.
        """
        if self._policy.is_recorded:
            return self._policy.fingerprint()
        first, *others = self.plan.sampling
        alike = all(sampling == first for sampling in others)
        return {
            **self._policy.fingerprint(),
            "max_new_tokens": self._max_new_tokens,
            **(asdict(first) if alike else {"sampling": list(map(asdict, self.plan.sampling))}),
            "seed": self._seed,
        }
