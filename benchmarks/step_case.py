"""What both sides of `benchmarks.step` share: the case, its frames, the reward, what is noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-6, 0.01, 1.0
"""Of `torch.optim.AdamW` and the gradient's norm; TRL clips by default."""
TEXT = "What is seen in this video, and in what order do things happen?"
SIDE = 224
"""Height and width of a frame in pixels, Video-RTS's short side in training; 64 tokens."""
PATCHES = (SIDE // 14) ** 2


@dataclass(frozen=True)
class Case:
    """One shape of a step."""

    num_images: int
    """Frames of a question, as TRL is given them."""
    B: int
    """Questions."""
    G: int
    L: int
    checkpointing: bool = False
    """Gradient checkpointing of both sides."""
    lora_rank: int = 0
    """Of both sides' adapters; 0 trains all of the language model."""
    device: str = "cpu"
    """Or ``cuda``, where both compute in bfloat16."""

    @property
    def dtype(self) -> str:
        """Of the weights as they are loaded."""
        return "float32" if self.device == "cpu" else "bfloat16"


def frame_images(case: Case, question: int) -> torch.Tensor:
    """Random frames, uint8 ``[T, C, H, W]``, of one of the B questions."""
    generator = torch.Generator().manual_seed(question)
    shape = (case.num_images, 3, SIDE, SIDE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def variety(text: str) -> float:
    """How many different characters a text has: a reward that differs within a group."""
    return float(len(set(text)))


def trl_settings(case: Case, num_steps: int, vision_ids: list[int]) -> dict[str, Any]:
    """What is set in TRL's ``GRPOConfig``; the rest are its defaults.

    A step's completions are all generated together, and the update is made question by question.

    Args:
        case: the shape.
        num_steps: that will be made.
        vision_ids: tokens that vrts never samples, the one that ends a completion among them.
    """
    return {
        # equal shapes
        "per_device_train_batch_size": case.G,
        "gradient_accumulation_steps": case.B,
        "steps_per_generation": case.B,
        "shuffle_dataset": False,
        "num_generations": case.G,
        "max_completion_length": case.L,
        "generation_kwargs": {"min_new_tokens": case.L, "suppress_tokens": vision_ids},
        "max_steps": num_steps,
        # equal work
        "beta": 0.0,
        "loss_type": "grpo",
        "bf16": case.device != "cpu",
        "gradient_checkpointing": case.checkpointing,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP_NORM,
        # where it runs, and nothing beside the step
        "use_cpu": case.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class VisionPasses:
    """Notes what the vision tower is given in a step.

    Args:
        visual: the tower.
        case: the shape.
    """

    def __init__(self, visual: torch.nn.Module, case: Case) -> None:
        self.size = case.num_images * PATCHES
        """Patches of one video."""
        self._first: torch.Tensor | None = None
        self._num_patches = 0
        visual.register_forward_pre_hook(self._note, with_kwargs=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Count what a copy of the tower is given, such as the engine's, here too."""
        return self

    def _note(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a forward pass."""
        patches = args[0] if args else kwargs["hidden_states"]
        self._first = patches if self._first is None else self._first
        self._num_patches += len(patches)

    def facts(self) -> dict[str, Any]:
        """The patches of one video, and how often a video was forwarded; the next step begins."""
        assert self._first is not None
        passes = self._num_patches / self.size
        facts = {"patches": self._first[: self.size].numpy(), "vision passes": passes}
        self._first, self._num_patches = None, 0
        return facts
