"""vrts's side of `benchmarks.step`: its module under Lightning's trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.step_case import (
    CLIP_NORM,
    LEARNING_RATE,
    TEXT,
    WEIGHT_DECAY,
    Case,
    VisionPasses,
    frame_images,
    variety,
)
from benchmarks.turns import Turn
from vrts.data.stream import Batch
from vrts.models.grpo.objectives import GRPO
from vrts.models.module import VideoQAModule
from vrts.models.rewards import Reward
from vrts.models.vlm.loading import Lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Completion, ProblemType, Question, Sample


class Variety(Reward):
    """`variety` for vrts."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    @property
    def name(self) -> str:
        """``variety``."""
        return "variety"

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """See `Reward.score`."""
        self.lengths = [completion.num_tokens for completion in completions]
        return [variety(completion.text) for completion in completions]


class SameQuestions(LightningDataModule):
    """The same questions at every step."""

    def __init__(self, samples: Sequence[Sample], num_steps: int) -> None:
        super().__init__()
        self._samples, self.steps_per_epoch = samples, num_steps
        self.batch_size = len(samples)
        self.readers: dict[str, None] = {"val": None}  # nothing is validated

    def questions(self, split: str) -> list[Question]:
        """All of them."""
        return [sample.question for sample in self._samples]

    def mark_trained(self, batch: Batch) -> None:
        """Do nothing: such a run is not resumed."""

    def train_dataloader(self) -> DataLoader[Batch]:
        """A batch for each step."""
        batches: Any = [Batch(self._samples)] * self.steps_per_epoch
        return DataLoader(batches, batch_size=None)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Leave the frames where they are, as vrts's own data module does."""
        return batch


def vrts_sample(case: Case, question: int) -> Sample:
    """A question for vrts, with as many tokens and exactly the same patches as TRL's.

    An image fills a temporal patch by being repeated, so every frame comes twice. Every image but
    the first one brings a start and an end token, for which further words stand in.
    """
    frames = frame_images(case, question).repeat_interleave(2, dim=0)
    T = len(frames)
    clip = Clip(frames, tuple(range(T)), fps=2.0, num_source_frames=T)
    text = TEXT + " and" * (case.num_images - 1)
    id, video = f"q{question}", f"{question}.mp4"
    return Sample(Question(id, text, video, ProblemType.FREE_FORM, gold=""), clip)


class StepClock(Callback):
    """Marks the beginning and the end of vrts's steps."""

    def __init__(self, turn: Turn, facts: Callable[[], dict[str, Any]]) -> None:
        self._turn, self._facts = turn, facts

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._turn.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The optimizer has made its step."""
        self._turn.end(self._facts())


def vrts_steps(turn: Turn, folder: str, case: Case, num_steps: int) -> None:
    """Train with vrts."""
    torch.set_num_threads(1)
    policy = TransformersPolicy(
        folder,
        PromptTemplate(preamble="", free_form=""),
        lora=Lora(case.lora_rank, 2 * case.lora_rank) if case.lora_rank else None,
        dtype=case.dtype,  # type: ignore[arg-type]
        gradient_checkpointing=case.checkpointing,
    )
    policy.load()
    passes = VisionPasses(policy.base.model.visual, case)
    samples, reward = [vrts_sample(case, b) for b in range(case.B)], Variety()
    P = policy.network().encode(samples[:1])[0].num_tokens
    passes.facts()
    module = VideoQAModule(
        policy,
        rewards=[reward],
        objective=GRPO(beta=0.0),
        optimizer=lambda params: torch.optim.AdamW(
            params, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        ),
        num_generations=case.G,
        max_new_tokens=case.L,
        max_grad_norm=CLIP_NORM,
    )

    def facts() -> dict[str, Any]:
        rollout_s = float(trainer.callback_metrics["train/rollout_s"])
        return {"P": P, "lengths": reward.lengths, "rollout s": rollout_s, **passes.facts()}

    trainer = Trainer(
        accelerator=case.device,
        precision="32-true" if case.device == "cpu" else "bf16-mixed",
        devices=1,
        max_steps=num_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepClock(turn, facts)],
    )
    trainer.fit(module, datamodule=SameQuestions(samples, num_steps))
