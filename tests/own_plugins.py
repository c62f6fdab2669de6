"""Plug-ins as a user would write them; every one of another kind."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vrts.data.readers.base import Reader
from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import WHOLE, FrameSampler
from vrts.models.engines.engine import Result
from vrts.models.engines.native import NativeEngine
from vrts.models.grpo.objectives import GRPO
from vrts.models.rewards import Reward
from vrts.types import Clip, Completion, InputError, Question
from vrts.voting import Vote


class CharactersReward(Reward):
    """Longer completions are better."""

    @property
    def name(self) -> str:
        return "length"

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        return [len(completion.text) / 100 for completion in completions]


def brevity(completions: Sequence[Completion], questions: Sequence[Question]) -> list[float]:
    """A plain function as a reward."""
    assert len(completions) == len(questions)
    return [1 / (1 + completion.num_tokens) for completion in completions]


class DyingReward(CharactersReward):
    """Ends the second process of a run, as running out of memory does."""

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        if os.environ.get("LOCAL_RANK") == "1":
            os._exit(9)
        return super().score(completions, questions)


class FailingReward(CharactersReward):
    """Fails in one process of a run.

    Args:
        rank: in which.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = str(rank)

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        if os.environ.get("LOCAL_RANK", "0") == self.rank:
            raise InputError(f"process {self.rank} cannot continue")
        return super().score(completions, questions)


class OwnTemporalReward(CharactersReward):
    """A reward whose name vrts has taken."""

    @property
    def name(self) -> str:
        return "temporal"


class NoKL(GRPO):
    def __init__(self) -> None:
        super().__init__(beta=0.0)


class Broken(GRPO):
    """A loss that is not finite in chosen updates of one rank.

    Args:
        value: the loss there.
        calls: which updates, counted from 0.
        rank: on which rank.
    """

    def __init__(self, value: float, calls: list[int], rank: int = 0) -> None:
        super().__init__(beta=0.0)
        self.value, self.calls, self.rank = value, calls, rank
        self.count = -1

    def surrogate(self, completions):
        losses, clipped = super().surrogate(completions)
        self.count += 1
        if self.count in self.calls and self.rank == int(os.environ.get("LOCAL_RANK", "0")):
            losses = losses * self.value
        return losses, clipped


class DistortedEngine(NativeEngine):
    """Samples as ever, and reports other log-probs, as one with other kernels does.

    Args:
        shift: added to each, in nats.
        noise: standard deviation of what else is added, the same for the same tokens.
    """

    def __init__(self, shift: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.shift, self.noise = float(shift), float(noise)

    def step(self) -> list[Result]:
        return [
            replace(result, completions=tuple(map(self._distorted, result.completions)))
            for result in super().step()
        ]

    def _distorted(self, completion: Completion) -> Completion:
        generator = torch.Generator().manual_seed(int(completion.token_ids.sum()))
        noise = self.noise * torch.randn(completion.num_tokens, generator=generator)
        return replace(completion, logprobs=completion.logprobs + self.shift + noise)


class SteepVote(Vote):
    """Votes of completions that the model was less sure of fall off.

    Args:
        steepness: how fast.
    """

    def __init__(self, steepness: float) -> None:
        self.steepness = float(steepness)

    def weight(self, mean_logprob: float) -> float:
        return math.exp(self.steepness * mean_logprob)


class OneQuestionReader(Reader):
    def read(self) -> list[Question]:
        video = str(Path(__file__))
        return [Question(str(i), "Why?", video, options=("a", "b"), gold="A") for i in range(2)]


class FirstFrames(FrameSampler):
    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        return list(range(num_frames))


class GreyDecoder(Decoder):
    def decode(self, path, num_frames, sampler, resolution, window=WHOLE) -> Clip:
        indices = tuple(sampler.indices(100, num_frames, 10.0))
        assert indices == (0, 1, 2, 3)
        frames = torch.full((len(indices), 3, 56, 56), 128, dtype=torch.uint8)
        return Clip(frames, indices, 10.0, 100)


class UnusableReward(Reward):
    """Does what it must not.

    Args:
        fault: ``length`` for a score too few, ``nan``, or ``raise``.
    """

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    @property
    def name(self) -> str:
        return "unusable"

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        if self.fault == "raise":
            raise KeyError("colour")
        scores = [1.0] * len(completions)
        return scores[1:] if self.fault == "length" else [*scores[1:], float(self.fault)]
