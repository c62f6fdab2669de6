"""A small random Qwen2.5-VL, and samples of different length with random frames."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.runs import build_model, make_videos
from tools.tiny.model import build_model_folder
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Question, Sample


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model_folder(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def varied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose completions differ in length."""
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video) -> dict[str, str]:
    return make_videos(tmp_path_factory.mktemp("videos"), make_video)


@pytest.fixture
def load_policy(model_folder: Path):
    """Make a loaded float32 policy; options are those of `TransformersPolicy`."""

    def load(path: Path = model_folder, **options) -> TransformersPolicy:
        template = options.pop("prompt", PromptTemplate(preamble=""))
        policy = TransformersPolicy(str(path), prompt=template, dtype="float32", **options)
        policy.load()
        return policy

    return load


def make_sample(index: int, num_frames: int, size: tuple[int, int], text: str) -> Sample:
    """A question about random frames; `fps` spreads them so far that time exceeds space."""
    generator = torch.Generator().manual_seed(index)
    frames = torch.randint(0, 256, (num_frames, 3, *size), generator=generator, dtype=torch.uint8)
    clip = Clip(frames, tuple(range(0, num_frames * 10, 10)), fps=3.3, num_source_frames=97)
    question = Question(f"q{index}", text, "none.mp4", options=("red", "green", "blue"), gold="A")
    return Sample(question, clip)


@pytest.fixture
def samples() -> list[Sample]:
    """Three questions whose prompts differ in frames, frame size and words."""
    return [
        make_sample(0, 8, (56, 56), "What colour is the circle?"),
        make_sample(1, 4, (56, 112), "What colour does the square that moves to the left have?"),
        make_sample(2, 6, (84, 56), "Which?"),
    ]
