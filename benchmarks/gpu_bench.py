"""What the cases of `benchmarks.gpu` share: sizes, the model, and what a case is."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.common import (
    QWEN_7B,
    SMALL,
    Shape,
    random_policy,
    random_sample,
    seconds,
    synchronize,
)
from benchmarks.gpu_passes import never_end, use_checkpointing
from vrts.models.qwen import QwenPolicy
from vrts.models.qwen_prompts import QwenPrompts
from vrts.types import Sample

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    shape: Shape
    small_shape: Shape
    """Of exactness checks."""
    dtype: torch.dtype
    num_frames: int
    sides: tuple[tuple[int, int], ...]
    """Height and width of frames in pixels, for each prompt length; the first one is used where
    one is enough."""
    G: int
    L: int
    group_sizes: tuple[int, ...]
    matmul_size: int
    bandwidth_bytes: int
    slowness: float
    """Factor of the expected times; 0 runs everything."""


FULL = Scale(
    shape=QWEN_7B,
    small_shape=SMALL,
    dtype=torch.bfloat16,
    num_frames=32,
    # 16 pairs of frames of 256, 756 and 121 tokens
    sides=((448, 448), (756, 784), (308, 308)),
    G=8,
    L=256,
    group_sizes=(1, 2, 4, 8, 16),
    matmul_size=8192,
    bandwidth_bytes=4 << 30,
    slowness=1.0,
)
_TINY_SHAPE = Shape(64, 2, 4, 2, 128, 32, 2)
TINY = Scale(
    shape=_TINY_SHAPE,
    small_shape=_TINY_SHAPE,
    dtype=torch.bfloat16,
    num_frames=4,
    sides=((56, 84), (84, 84), (56, 56)),
    G=2,
    L=12,
    group_sizes=(1, 2),
    matmul_size=64,
    bandwidth_bytes=1 << 16,
    slowness=0.0,
)


@dataclass
class Bench:
    """Device, sizes and the model, which is made when it is first needed."""

    device: torch.device
    scale: Scale
    _policy: QwenPolicy | None = None
    _prompts: dict[tuple[int, int], QwenPrompts] = field(default_factory=dict)

    @property
    def policy(self) -> QwenPolicy:
        """The model in the computing dtype, in training mode."""
        if self._policy is None:
            self._policy = self.make(self.scale.shape, self.scale.dtype)
        return self._policy

    def make(self, shape: Shape, dtype: torch.dtype) -> QwenPolicy:
        """A model of its own."""
        policy = random_policy(shape, self.device, dtype, gradient_checkpointing=True).train()
        use_checkpointing(policy, False)
        never_end(policy)
        return policy

    def release(self) -> None:
        """Give the model's memory back."""
        self._policy = None
        self._prompts.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sample(self, side: tuple[int, int]) -> Sample:
        """The question whose frames have this size."""
        return random_sample(self.scale.num_frames, *side, seed=0)

    def prompts(self, side: tuple[int, int]) -> QwenPrompts:
        """The same, encoded."""
        if side not in self._prompts:
            self._prompts[side] = self.policy.encode([self.sample(side)], self.scale.L)
        return self._prompts[side]

    def time(self, run: Callable[[], Any], repeats: int = 2) -> float:
        """Median seconds of a call."""
        return seconds(run, repeats, self.device)

    def time_warm(self, run: Callable[[], Any], repeats: int) -> float:
        """The same of a call that has been made before."""
        times = []
        for _ in range(repeats):
            synchronize(self.device)
            start_s = time.perf_counter()
            run()
            synchronize(self.device)
            times.append(time.perf_counter() - start_s)
        return statistics.median(times)


@dataclass(frozen=True, slots=True)
class Case:
    """One row to measure."""

    section: str
    name: str
    expected_s: float
    run: Callable[[], Row]
    missing: str | None = None
    """What is missing to run it."""
    on_request: bool = False
    """Whether it runs only where its section is asked for, beside the nine minutes."""
