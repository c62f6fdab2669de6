"""The rollout: one vision pass and one prefill a prompt, against transformers' own generation.

``python -m benchmarks.rollout`` prints the time of G completions of one prompt and of several:
by `QwenPolicy.rollout`, by ``generate(num_return_sequences=G)`` and by ``generate`` on a batch of
G copies of the prompt, which is what most trainers do.
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import GenerationConfig

from benchmarks.common import SMALL, random_policy, random_sample, report, seconds
from vrts.models.qwen import QwenPolicy
from vrts.models.sampling import row_seed
from vrts.types import Sample, Sampling

CASES = [(1, 32, 8, 48), (1, 64, 8, 48), (4, 32, 8, 48)]
"""Questions, frames of 140x140 pixels, G, L."""


def ours(policy: QwenPolicy, samples: list[Sample], G: int, L: int) -> None:
    """Roll out with a shared prompt."""
    seeds = [row_seed(n) for n in range(len(samples) * G)]
    policy.rollout(policy.encode(samples, L), [Sampling()] * G, seeds, L)


def generate(policy: QwenPolicy, samples: list[Sample], G: int, L: int, *, copies: bool) -> None:
    """Roll out with transformers.

    Args:
        policy: gives the model.
        samples: B questions of the same length.
        G: completions for each.
        L: tokens of each.
        copies: forward the prompt G times, rather than ask for G sequences.
    """
    repeats = G if copies else 1
    encoded = [policy.encode([s], L).encoded[0] for s in samples for _ in range(repeats)]
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
    policy.base.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == policy.base.config.video_token_id).long() * 2,
        pixel_values_videos=torch.cat([p.patches_on(policy.device) for p in encoded]),
        video_grid_thw=torch.tensor([p.grid for p in encoded], device=policy.device),
        second_per_grid_ts=[1.0] * len(encoded),
        generation_config=config,
    )


def measure(policy: QwenPolicy, B: int, num_frames: int, G: int, L: int) -> dict[str, float]:
    """Compare the three for one shape; no completion ends before L tokens."""
    samples = [random_sample(num_frames, 140, 140, seed) for seed in range(B)]
    P = len(policy.encode(samples[:1], 1).encoded[0].input_ids)
    ours_s = seconds(partial(ours, policy, samples, G, L), 3, policy.device)
    sequences_s, copies_s = (
        seconds(partial(generate, policy, samples, G, L, copies=copies), 3, policy.device)
        for copies in (False, True)
    )
    return {
        "B": B,
        "P": P,
        "G": G,
        "L": L,
        "ours s": ours_s,
        "num_return_sequences s": sequences_s,
        "G-fold batch s": copies_s,
        "ratio": sequences_s / ours_s,
        "ratio to G-fold": copies_s / ours_s,
        "ours tokens/s": B * G * L / ours_s,
    }


def main() -> None:
    """Measure all cases on the CPU with one thread."""
    torch.set_num_threads(1)
    policy = random_policy(SMALL, torch.device("cpu"), torch.float32)
    rows = [measure(policy, *case) for case in CASES]
    report("rollout", rows, shape=SMALL, dtype="float32")


if __name__ == "__main__":
    main()
