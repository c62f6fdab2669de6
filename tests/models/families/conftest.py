"""The families that every test here is about, each by a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.models.conftest import make_sample
from tests.models.families.tiny import (
    SQUARE,
    build_qwen2_5_vl,
    build_qwen3_5,
    build_qwen3_vl,
    build_smolvlm,
)
from tests.models.naive import random_samples
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Sample


@dataclass(frozen=True)
class Case:
    """A family as tests take it."""

    name: str
    build: Callable[[Path], None]
    side: int
    """Pixels of a side of one vision token, or of frames where these are squares."""
    squares: bool = False
    """Whether its frames are squares."""

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Pixels of a frame of so many tokens, or of the only size that it may have."""
        return (self.side, self.side) if self.squares else (rows * self.side, columns * self.side)


CASES = [
    Case("qwen2_5_vl", build_qwen2_5_vl, 28),
    Case("qwen3_vl", build_qwen3_vl, 32),
    Case("qwen3_5", build_qwen3_5, 32),
    Case("smolvlm", build_smolvlm, SQUARE, squares=True),
]


@dataclass(frozen=True)
class FamilyModel:
    """A tiny random model of a family."""

    case: Case
    folder: Path

    def policy(self, **options) -> TransformersPolicy:
        """A loaded float32 policy; options are those of `TransformersPolicy`."""
        options = {"prompt": PromptTemplate(preamble=""), "dtype": "float32", **options}
        policy = TransformersPolicy(str(self.folder), **options)
        policy.load()
        return policy

    def samples(self, generator: torch.Generator, count: int) -> list[Sample]:
        """Random samples, the last one about an image."""
        image = make_sample(count, 1, self.case.size(2, 1), "Which colour has it?")
        image = replace(image, question=replace(image.question, is_image=True))
        tokens = (1, 1) if self.case.squares else (2, 4)
        return [*random_samples(generator, count - 1, self.case.side, tokens), image]


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def family_model(request, tmp_path_factory) -> FamilyModel:
    """Of each family in turn."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    case.build(folder)
    return FamilyModel(case, folder)
