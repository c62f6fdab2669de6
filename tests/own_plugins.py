"""Plug-ins as a user would write them; every one of another kind."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vrts.data.decoding import Decoder
from vrts.data.readers import Reader
from vrts.data.sampling import FrameSampler
from vrts.models.objectives import GRPO
from vrts.models.rewards import Reward
from vrts.types import Clip, Question


class LengthReward(Reward):
    """Longer completions are better."""

    @property
    def name(self) -> str:
        return "length"

    def score(self, completions: Sequence[str], questions: Sequence[Question]) -> list[float]:
        return [len(text) / 100 for text in completions]


class NoKL(GRPO):
    def __init__(self) -> None:
        super().__init__(beta=0.0)


class OneQuestionReader(Reader):
    def read(self) -> list[Question]:
        video = str(Path(__file__))
        return [Question(str(i), "Why?", video, options=("a", "b"), answer="A") for i in range(2)]


class FirstFrames(FrameSampler):
    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        return list(range(num_frames))


class GreyDecoder(Decoder):
    def decode(self, path, num_frames, sampler, resolution) -> Clip:
        indices = tuple(sampler.indices(100, num_frames, 10.0))
        assert indices == (0, 1, 2, 3)
        frames = torch.full((len(indices), 3, 56, 56), 128, dtype=torch.uint8)
        return Clip(frames, indices, 10.0, 100)
