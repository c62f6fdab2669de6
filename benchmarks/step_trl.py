"""TRL's side of `benchmarks.step`: its ``GRPOTrainer``, nothing of it changed."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.step_case import (
    LEARNING_RATE,
    TEXT,
    WEIGHT_DECAY,
    Case,
    VisionPasses,
    frame_images,
    trl_settings,
    variety,
)
from benchmarks.turns import Turn
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.vlm.loading import Lora


def images(case: Case, question: int) -> list[Image.Image]:
    """A question's frames as images."""
    return [
        Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frame_images(case, question)
    ]


class StepClock(TrainerCallback):
    """Marks the beginning and the end of TRL's steps."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.P = 0
        self.lengths: list[int] = []
        self.passes: VisionPasses | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The images are there."""
        self.turn.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The optimizer has made its step."""
        assert self.passes is not None
        self.turn.end({"P": self.P, "lengths": self.lengths, **self.passes.facts()})


def trl_steps(turn: Turn, folder: str, case: Case, num_steps: int) -> None:
    """Train with TRL."""
    torch.set_num_threads(1)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=case.dtype)
    model.model.visual.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    clock = StepClock(turn)
    rows = [
        {"prompt": [{"role": "user", "content": TEXT}], "images": images(case, b)}
        for b in range(case.B)
    ]
    content = [{"type": "image", "image": image} for image in images(case, 0)]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": TEXT}]}]
    encoded = processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    clock.P = len(encoded["input_ids"][0])
    clock.passes = VisionPasses(model.model.visual, case)

    def reward(
        completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        clock.lengths = [len(ids) for ids in completion_ids]
        return [variety(completion[0]["content"]) for completion in completions]

    vision_ids = Qwen2_5VL(model.config, processor).suppressed_ids()
    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(output, **trl_settings(case, num_steps, vision_ids)),
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            callbacks=[clock],
            peft_config=_adapter(case),
            optimizers=(_optimizer(model, case), None),
        )
        trainer.train()


def _adapter(case: Case) -> LoraConfig | None:
    """That of vrts."""
    if not case.lora_rank:
        return None
    lora = Lora(case.lora_rank, 2 * case.lora_rank)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def _optimizer(model: torch.nn.Module, case: Case) -> torch.optim.Optimizer | None:
    """That of vrts; None where TRL makes its own, AdamW too, after it has added the adapter."""
    if case.lora_rank:
        return None
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
