"""Kernels of a decoding step, counted in the graph that is recorded of it; needs no GPU.

``python -m benchmarks.kernels`` decodes with models of two depths on a pretended CUDA device (see
``tests/pretended_cuda.py``) and writes ``results/kernels.json``: what a layer takes, what the rest
of a step takes, and what that makes for the 28 layers of the 7B. Launching them is what bounds
decoding without graphs; with graphs each still costs some two microseconds. Operators that write
memory are counted, each a kernel; a few are two on a device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch

from benchmarks.common import QWEN_7B, Shape, random_policy, random_sample, report
from tests.pretended_cuda import pretended_cuda
from vrts.models.engines.engine import Request
from vrts.models.engines.native import NativeEngine
from vrts.models.vlm.loading import Lora, add_lora
from vrts.types import SamplingParams

SHAPE = Shape(64, 2, 4, 2, 128, 32, 2)
NUM_SAMPLES, NUM_TOKENS = 3, 20


@dataclass(frozen=True, slots=True)
class Case:
    """How the weights are held."""

    name: str
    lora: bool = False
    merge_lora: bool = False
    weights: torch.dtype = torch.bfloat16


CASES = (
    Case("bfloat16"),
    Case("float32 weights, bf16-mixed", weights=torch.float32),
    Case("LoRA on bfloat16, bf16-mixed", lora=True),
    Case("LoRA merged for sampling", lora=True, merge_lora=True),
)


def step_kernels(case: Case, num_layers: int) -> Counter[str]:
    """Operators of one recorded decoding step, of G completions of one prompt.

    Args:
        case: how the weights are held.
        num_layers: of the language model.
    """
    with pretended_cuda() as device:
        shape = replace(SHAPE, num_layers=num_layers)
        policy = random_policy(shape, torch.device("cpu"), case.weights)
        if case.lora:
            policy.model = add_lora(policy.model, Lora(rank=4))
        policy.eval().to("cuda")
        engine = NativeEngine(merge_lora=case.merge_lora)
        engine.attach(policy, torch.device("cuda"), torch.bfloat16, will_shard=False)
        engine.sync(policy)
        (prompt,) = engine.encode([random_sample(4, 56, 56, seed=1)])
        sampling = (SamplingParams(),) * NUM_SAMPLES
        engine.add(Request(prompt, sampling, tuple(range(NUM_SAMPLES)), NUM_TOKENS))
        while engine.num_pending:
            engine.step()
        if device.violations or not device.graphs:
            raise RuntimeError(f"{case.name}: no step was recorded: {device.violations}")
        return Counter(device.graphs[0].kernels)


def row(case: Case) -> dict[str, str | int]:
    """What a case takes."""
    shallow, deep = (step_kernels(case, n).total() for n in (2, 3))
    layer, rest = deep - shallow, shallow - 2 * (deep - shallow)
    step = QWEN_7B.num_layers * layer + rest
    return {"case": case.name, "a layer": layer, "beside layers": rest, "a step of the 7B": step}


def main() -> None:
    """Count and write."""
    report("kernels", [row(case) for case in CASES], shape=SHAPE, num_samples=NUM_SAMPLES)


if __name__ == "__main__":
    main()
