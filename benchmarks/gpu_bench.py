"""What the cases of `benchmarks.gpu` share: sizes, the model, and what a case is."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    QWEN_7B,
    SMALL,
    Shape,
    encode,
    engine_of,
    random_policy,
    random_sample,
    seconds,
    synchronize,
)
from benchmarks.gpu_passes import use_checkpointing
from benchmarks.gpu_rates import matmul_rate
from benchmarks.step import write_model
from vrts.callbacks.monitoring.throughput import peak_flops
from vrts.demo.videos import make_dataset
from vrts.models.engines.native import NativeEngine
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.loading import Lora, add_lora
from vrts.models.vlm.policy import TransformersPolicy
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
    B: int
    """Questions of a step."""
    G: int
    L: int
    group_sizes: tuple[int, ...]
    lora_rank: int
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
    B=8,
    G=8,
    L=256,
    group_sizes=(1, 4, 16),
    lora_rank=64,
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
    B=2,
    G=2,
    L=12,
    group_sizes=(1, 2),
    lora_rank=4,
    matmul_size=64,
    bandwidth_bytes=1 << 16,
    slowness=0.0,
)


@dataclass
class Bench:
    """Device, sizes and the model, which is made when it is first needed."""

    device: torch.device
    scale: Scale
    is_adapted: bool = False
    """Whether the model has a LoRA adapter."""
    _policy: TransformersPolicy | None = None
    _engine: NativeEngine | None = None
    _prompts: dict[tuple[int, int], VideoPrompt] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def policy(self) -> TransformersPolicy:
        """The model in the computing dtype, in training mode."""
        if self._policy is None:
            self._policy = self.make(self.scale.shape, self.scale.dtype)
            if self.is_adapted:
                self._policy.model = add_lora(self._policy.model, Lora(self.scale.lora_rank))
        return self._policy

    @property
    def engine(self) -> NativeEngine:
        """What samples from it."""
        if self._engine is None:
            self._engine = engine_of(self.policy, self.device, self.scale.dtype)
        return self._engine

    def make(self, shape: Shape, dtype: torch.dtype) -> TransformersPolicy:
        """A model of its own."""
        policy = random_policy(shape, self.device, dtype, gradient_checkpointing=True).train()
        use_checkpointing(policy, False)
        return policy

    def computing(self) -> AbstractContextManager[None]:
        """Context of passes with gradient: autocast, as ``bf16-mixed`` has it."""
        return torch.autocast(self.device.type, self.scale.dtype)

    @cached_property
    def peak_tflops(self) -> float:
        """What MFU is a share of: the data sheet's, or of a card without one the measured rate."""
        peak = None
        if self.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(self.device), "bf16-mixed")
        rate = peak or matmul_rate(self.scale.matmul_size, self.scale.dtype, self.device)
        return rate / 1e12

    def adapt(self, is_adapted: bool) -> None:
        """Go on with a model that has an adapter, or with one that has none."""
        if self.is_adapted != is_adapted:
            self.release()
            self.is_adapted = is_adapted

    def release(self) -> None:
        """Give the model's memory back."""
        self._policy = self._engine = None
        self._prompts.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def folder(self) -> Path:
        """Has videos and their questions, and models that were saved; removed at the end."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
            make_dataset(Path(self._folder.name) / "data", num_videos=self.scale.B, seed=5)
        return Path(self._folder.name)

    def model_folder(self, shape: Shape) -> Path:
        """Where a random model of a shape lies in bfloat16, written when it is first asked for."""
        self.release()
        path = self.folder / f"model-{shape.hidden_size}"
        if not path.exists():
            write_model(path, shape, self.device, torch.bfloat16)
            self.release()
        return path

    def sample(self, side: tuple[int, int]) -> Sample:
        """The question whose frames have this size."""
        return random_sample(self.scale.num_frames, *side, seed=0)

    def prompt(self, side: tuple[int, int]) -> VideoPrompt:
        """The same, encoded."""
        if side not in self._prompts:
            (self._prompts[side],) = encode(self.policy, [self.sample(side)])
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
