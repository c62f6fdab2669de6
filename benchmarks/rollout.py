"""The rollout: a step's questions sampled together, against one after the other and ``generate``.

``python -m benchmarks.rollout`` prints two tables:

- a step of the recipe (8 questions, G = 8) rolled out together by `NativeEngine`, against eight
  rollouts of one question each, in tokens a second; of a random model of 13 million parameters and
  of the embedded one. Vision passes and prefills are in both;
- G completions of one prompt and of several, against transformers' ``generate`` with
  ``num_return_sequences=G`` and on a batch of G copies of the prompt, which is what most trainers
  do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import GenerationConfig

from benchmarks.common import (
    SMALL,
    alternating_seconds,
    encode,
    engine_of,
    never_end,
    print_table,
    random_policy,
    random_sample,
    roll_out,
    write_results,
)
from benchmarks.s2d_model import load_policy
from vrts.models.engines.native import NativeEngine
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Sample

CPU = torch.device("cpu")
STEP = (8, 32, 140, 8, 64)
"""Questions, frames, height and width of a frame, G, L."""
CASES = [(1, 32, 8, 48), (1, 64, 8, 48), (4, 32, 8, 48)]
"""Questions, frames of 140x140 pixels, G, L."""
REPEATS = 3
"""Timed calls of each, of which the median counts."""


def ours(engine: NativeEngine, samples: Sequence[Sample], G: int, L: int) -> None:
    """Roll out all questions together."""
    roll_out(engine, engine.encode(samples), G, L)


def one_by_one(engine: NativeEngine, samples: Sequence[Sample], G: int, L: int) -> None:
    """Roll out one question after the other."""
    for sample in samples:
        ours(engine, [sample], G, L)


def measure_step(
    name: str, policy: TransformersPolicy, B: int, num_frames: int, side: int, G: int, L: int
) -> dict[str, float | str]:
    """Compare a step that is rolled out together with one that is not.

    Args:
        name: of the model.
        policy: whose completions never end before L tokens.
        B: questions.
        num_frames: T.
        side: height and width of a frame in pixels.
        G: completions of each question.
        L: tokens of each.
    """
    samples = [random_sample(num_frames, side, side, seed) for seed in range(B)]
    engine = engine_of(policy, policy.device)
    runs = {
        "together": partial(ours, engine, samples, G, L),
        "one by one": partial(one_by_one, engine, samples, G, L),
    }
    for run in runs.values():
        run()
    time_s = alternating_seconds(runs, REPEATS, policy.device)
    return {
        "model": name,
        "B": B,
        "P": engine.encode(samples[:1])[0].num_tokens,
        "G": G,
        "L": L,
        **{f"{kind} s": value for kind, value in time_s.items()},
        **{f"{kind} tokens/s": B * G * L / value for kind, value in time_s.items()},
        "ratio": time_s["one by one"] / time_s["together"],
    }


def generate(
    policy: TransformersPolicy, samples: list[Sample], G: int, L: int, *, copies: bool
) -> None:
    """Roll out with transformers.

    Args:
        policy: gives the model.
        samples: B questions of the same length.
        G: completions for each.
        L: tokens of each.
        copies: forward the prompt G times, rather than ask for G sequences.
    """
    encoded = [p for p in encode(policy, samples) for _ in range(G if copies else 1)]
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=L,
        min_new_tokens=L,
        num_return_sequences=1 if copies else G,
        eos_token_id=policy.processor.tokenizer.eos_token_id,
        pad_token_id=policy.processor.tokenizer.pad_token_id,
    )
    input_ids = torch.stack([p.input_ids for p in encoded]).to(policy.device)
    has_seconds = isinstance(policy.family, Qwen2_5VL)  # the others read times as text
    policy.base.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == policy.base.config.video_token_id).long() * 2,
        pixel_values_videos=torch.cat([p.patches(policy.device) for p in encoded]),
        video_grid_thw=torch.tensor([p.grid for p in encoded], device=policy.device),
        generation_config=config,
        **({"second_per_grid_ts": [1.0] * len(encoded)} if has_seconds else {}),
    )


def measure(
    policy: TransformersPolicy,
    B: int,
    num_frames: int,
    G: int,
    L: int,
    side: int = 140,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Compare with ``generate`` for one shape; no completion ends before L tokens."""
    samples = [random_sample(num_frames, side, side, seed) for seed in range(B)]
    engine = engine_of(policy, policy.device)
    runs = {
        "ours": partial(ours, engine, samples, G, L),
        "num_return_sequences": partial(generate, policy, samples, G, L, copies=False),
        "G-fold batch": partial(generate, policy, samples, G, L, copies=True),
    }
    for run in runs.values():
        run()
    time_s = alternating_seconds(runs, REPEATS, policy.device, clock)
    return {
        "B": B,
        "P": engine.encode(samples[:1])[0].num_tokens,
        "G": G,
        "L": L,
        **{f"{kind} s": value for kind, value in time_s.items()},
        "ratio": time_s["num_return_sequences"] / time_s["ours"],
        "ratio to G-fold": time_s["G-fold batch"] / time_s["ours"],
        "ours tokens/s": B * G * L / time_s["ours"],
    }


def main() -> None:
    """Measure all cases on the CPU with one thread."""
    torch.set_num_threads(1)
    policy, tiny = random_policy(SMALL, CPU, torch.float32), load_policy()
    never_end(tiny)
    steps = [measure_step("13M", policy, *STEP), measure_step("embedded", tiny, *STEP)]
    print_table("a step's rollout: together against one by one", steps)
    rows = [measure(policy, *case) for case in CASES]
    print_table("rollout: transformers against the engine", rows)
    write_results("rollout", rows, {"step": steps}, shape=SMALL, dtype="float32", repeats=REPEATS)


if __name__ == "__main__":
    main()
