"""The supervised warm-up that makes the embedded checkpoint.

It stands for the instruct model that Video-RTS starts from: afterwards the model knows the answer
format, sees unreliably, and says so and guesses where it does not see the evidence.
``make warmup`` runs it; the checkpoint that it made is in ``assets/tiny``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tools.tiny.lessons import Lesson, VideoQuestion, teach
from tools.tiny.model import PIXELS, build_model_folder
from tools.tiny.perception import train_vision
from vrts.data.readers.video_rts import VideoR1Reader
from vrts.data.video.frames import UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.demo.questions import FLASH, OBJECT, QuestionKind
from vrts.demo.scenes import NUM_FRAMES
from vrts.demo.videos import make_dataset
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate

OUTPUT = Path("assets/tiny")
REPORT_STEPS = 25
PROMPT = PromptTemplate(preamble="", multiple_choice="")
"""The small model is asked without the long instructions that large models need."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All settings of a warm-up."""

    seed: int = 1
    """Of the initialisation, the videos and all draws."""
    num_videos: int = 1000
    batch_size: int = 32
    """Questions in a step."""
    vision_steps: int = 150
    vision_learning_rate: float = 2e-3
    # Look-ups must be certain before reading begins: reinforcement learning teaches what to see
    # much faster than it teaches to look up. How long reading is taught decides how unreliable
    # the model stays; 50 steps more and single answers are right 71 % of the time on 16 frames.
    lessons: Sequence[Lesson] = (
        Lesson("look-up", 350, 4e-3, (2,), num_lookups=4, perceives=False, final_rate=0.2),
        Lesson("reading", 150, 2e-3, (4, 8, 16), num_lookups=2),
    )


def load_pool(
    folder: Path,
    num_videos: int,
    seed: int,
    kinds: Sequence[QuestionKind] = (OBJECT, FLASH),
) -> list[VideoQuestion]:
    """Make videos and questions, and decode all frames once.

    Args:
        folder: gets the files.
        num_videos: videos to make.
        seed: of the data set.
        kinds: of question.
    """
    annotations = make_dataset(folder, num_videos, seed, kinds)
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    questions = VideoR1Reader(str(annotations)).read()
    decoder = PyAVDecoder()
    sampler = UniformSampler()
    resolution = Resolution(min_pixels=PIXELS, max_pixels=PIXELS)
    frames = {
        path: decoder.decode(path, NUM_FRAMES, sampler, resolution).frames
        for path in dict.fromkeys(q.video for q in questions)
    }
    return [VideoQuestion(q, row, frames[q.video]) for q, row in zip(questions, rows, strict=True)]


def warm_up(output: Path, recipe: Recipe, report: Callable[[str], None] = print) -> None:
    """Make a checkpoint; the same for the same recipe, machine and library versions.

    Args:
        output: folder to write.
        recipe: all settings.
        report: is told how it goes, a line at a time.
    """
    rng = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    build_model_folder(output, recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        pool = load_pool(Path(folder), recipe.num_videos, recipe.seed)
    policy = TransformersPolicy(str(output), prompt=PROMPT, freeze_vision=False, dtype="float32")
    policy.load()
    start_s = time.perf_counter()
    stages = {
        "vision": train_vision(policy, recipe.vision_steps, recipe.vision_learning_rate, rng),
        **{x.name: teach(policy, pool, x, recipe.batch_size, rng) for x in recipe.lessons},
    }
    for name, steps in stages.items():
        recent: deque[float] = deque(maxlen=REPORT_STEPS)
        for step, loss in enumerate(steps, start=1):
            recent.append(loss)
            if step % REPORT_STEPS == 0:
                seconds = time.perf_counter() - start_s
                report(f"{name}: step {step}, loss {np.mean(recent):.3f}, {seconds:.0f} s")
    policy.save_pretrained(output)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up(OUTPUT, Recipe())
