"""Supervised lessons on video questions: given completions are made likelier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from tools.tiny.targets import lookup_targets, warmup_target
from vrts.data.video.frames import UniformSampler
from vrts.demo.scenes import FPS, NUM_FRAMES
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Clip, Completion, Question, Sample


@dataclass(frozen=True, slots=True)
class VideoQuestion:
    """A question with its annotation row and all frames of its video."""

    question: Question
    row: Mapping[str, Any]
    """See `vrts.demo.questions.question_row`."""
    frames: torch.Tensor
    """uint8 ``[32, C, H, W]``."""

    def frame_indices(self, num_frames: int) -> tuple[int, ...]:
        """Frames that a data module would show."""
        return tuple(UniformSampler().indices(NUM_FRAMES, num_frames, FPS))

    def sample(self, num_frames: int) -> Sample:
        """The sample that a data module would make of the video file."""
        indices = self.frame_indices(num_frames)
        clip = Clip(self.frames[list(indices)], indices, float(FPS), NUM_FRAMES)
        return Sample(self.question, clip)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A part of the warm-up."""

    name: str
    num_steps: int
    learning_rate: float
    """Reached after `WARMUP_STEPS` steps."""
    levels: tuple[int, ...]
    """Numbers of frames that a clip may have, each as likely."""
    num_lookups: int
    """Targets for each question that name any option; of them only the answer is learnt."""
    perceives: bool = True
    """Whether there is also a target that tells what the frames show, and vision is trained."""
    final_rate: float = 1.0
    """The learning rate falls linearly to this share of it."""


WARMUP_STEPS = 30


def as_completions(tokenizer: Any, texts: Sequence[str]) -> list[Completion]:
    """Give texts the form of completions, as if they had been sampled, their end token included.

    Args:
        tokenizer: of the model.
        texts: N completions.
    """
    rows = [
        torch.tensor(
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        )
        for text in texts
    ]
    return [Completion(t, len(r), len(r), token_ids=r) for t, r in zip(texts, rows, strict=True)]


def learnt_tokens(
    completions: Sequence[Completion], whole: torch.Tensor, answer_id: int
) -> torch.Tensor:
    """Which tokens are learnt: whole rows, and of the others what follows ``<answer>``.

    Args:
        completions: N of them, with one ``<answer>`` each.
        whole: bool ``[N]``.
        answer_id: id of the token ``<answer>``.

    Returns:
        bool ``[N, L]``.
    """
    ids = pad_sequence([c.token_ids for c in completions if c.token_ids is not None], True, -1)
    opened = (ids == answer_id).cumsum(1)
    follows = opened - (ids == answer_id).long() > 0
    return (ids >= 0) & (whole[:, None] | follows)


def draw_batch(
    pool: Sequence[VideoQuestion], lesson: Lesson, batch_size: int, rng: np.random.Generator
) -> tuple[list[Sample], list[str], torch.Tensor]:
    """Draw questions, frames and targets.

    Returns:
        B samples, their N targets, and bool ``[N]``: whether a target is learnt as a whole.
    """
    samples: list[Sample] = []
    targets: list[tuple[str, bool]] = []
    for index in rng.choice(len(pool), batch_size, replace=False).tolist():
        item = pool[index]
        num_frames = int(rng.choice(lesson.levels))
        samples.append(item.sample(num_frames))
        if lesson.perceives:
            text = warmup_target(item.row, item.frame_indices(num_frames), rng)
            targets.append((text, True))
        lookups = lookup_targets(item.row, lesson.num_lookups, rng)
        targets += [(text, False) for text in lookups]
    texts, whole = zip(*targets, strict=True)
    return samples, list(texts), torch.tensor(whole)


def teach(
    policy: TransformersPolicy,
    pool: Sequence[VideoQuestion],
    lesson: Lesson,
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Give one lesson.

    Args:
        policy: loaded; changed in place.
        pool: what to draw from, at least `batch_size` questions.
        lesson: what to teach.
        batch_size: questions in a step.
        rng: draws questions, frames and guesses.

    Yields:
        The loss of each step, in nats a token.
    """
    tokenizer = policy.processor.tokenizer
    answer_id = tokenizer.convert_tokens_to_ids("<answer>")
    policy.freeze_vision = not lesson.perceives
    optimizer = torch.optim.AdamW(
        policy.parameters(), lesson.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    for step in range(lesson.num_steps):
        decay = 1 - (1 - lesson.final_rate) * step / lesson.num_steps
        rate = lesson.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * decay
        optimizer.param_groups[0]["lr"] = rate
        samples, texts, whole = draw_batch(pool, lesson, batch_size, rng)
        completions = as_completions(tokenizer, texts)
        G = len(completions) // len(samples)
        groups = [completions[i : i + G] for i in range(0, len(completions), G)]
        logprobs = policy.logprobs(policy.network().encode(samples), groups, 1.0).logprobs
        learnt = learnt_tokens(completions, whole, answer_id)
        loss = -logprobs.where(learnt, 0.0).sum() / learnt.sum()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        yield float(loss.detach())
