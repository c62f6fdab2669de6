"""What samples completions. Plug-in point ``model.engine``.

The policy is what is trained and scored, the engine is what samples. Requests go in, and groups of
completions come out as they end, in any order:

    engine.add(request)             # one prompt, G completions of it
    for result in engine.step():    # some decoding; the groups that have ended
        ...
    engine.sync(policy)             # after each optimizer step

No engine communicates with other ranks between two calls of `sync`: each decodes at its own pace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vrts.models.policy import Policy, Prompt
from vrts.types import Completion, InputError, Sample, SamplingParams

ShouldStop = Callable[[Sequence[str | None], Sequence[float]], bool]
"""From the texts of a request's G completions (None for those that have not ended) and their mean
token log-probs (meaningless where there is no text) to whether the others are not needed."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt, to be completed G times."""

    prompt: Prompt
    sampling: tuple[SamplingParams, ...]
    """G of them, one for each completion."""
    seeds: tuple[int, ...]
    """G of them; a completion depends on its prompt, its sampling and its seed, and on nothing that
    is decoded next to it."""
    max_new_tokens: int
    should_stop: ShouldStop | None = None
    """Called whenever completions have ended and others have not; may cancel those."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The completions of a request."""

    request: Request
    completions: tuple[Completion, ...]
    """G of them, in the order of the request; empty where there is an error."""
    error: str | None = None
    """Why there are none, without naming the question, or None."""


class Engine(ABC):
    """Samples completions of prompts."""

    def check(  # noqa: B027 most engines have nothing to check
        self, policy: Policy, device: torch.device, temperature: float | None
    ) -> None:
        """Find out what cannot work, before anything is loaded.

        Args:
            policy: not loaded yet.
            device: of the run.
            temperature: of training; None where nothing is trained.

        Raises:
            InputError: the engine cannot sample from it, or not here.
        """

    @abstractmethod
    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """Prepare to sample from a policy that has been loaded and not sharded yet. Idempotent.

        Args:
            policy: to sample from, once `sync` has been called.
            device: of the run.
            dtype: to compute in; None for that of the weights.
            will_shard: whether the policy's weights are about to be sharded.

        Raises:
            InputError: the engine cannot sample from it, or there is no room for its weights.
        """

    @abstractmethod
    def sync(self, policy: Policy) -> None:
        """Take over the policy's weights; where they are sharded every rank has to call it."""

    @abstractmethod
    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """Turn questions and their clips into prompts; one pass of the vision tower each.

        Args:
            samples: all with clips, none of them refused by the policy.
            known: a prompt about the same video, whose vision features are reused where the same
                frames are shown. The result is the same without it.
        """

    @abstractmethod
    def has_room(self) -> bool:
        """Whether a request that is added now would begin soon, so that it should be encoded."""

    @abstractmethod
    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InputError: it would not fit even alone; the message does not name the question.
        """

    @property
    @abstractmethod
    def num_pending(self) -> int:
        """Requests that were added and have not come out."""

    @abstractmethod
    def step(self) -> list[Result]:
        """Decode for a while, and return the requests that have ended, in any order."""

    @abstractmethod
    def cancel(self) -> None:
        """Drop all that is pending."""

    @abstractmethod
    def release(self) -> None:
        """Free what is only needed while sampling, such as the KV cache."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Complete requests together, and return the results in their order.

        Raises:
            InputError: one of them would not fit even alone.
        """
        for request in requests:
            try:
                self.add(request)
            except InputError as error:
                raise InputError(f"question {request.prompt.question.id}: {error}") from error
        results = {id(result.request): result for result in self._drain()}
        return [results[id(request)] for request in requests]

    def _drain(self) -> Iterator[Result]:
        while self.num_pending:
            yield from self.step()

    def fingerprint(self) -> dict[str, Any]:
        """What completions depend on in addition to policy, sampling and seeds, as plain JSON."""
        return {}
