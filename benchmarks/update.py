"""The update: every prompt forwarded once for its G completions, against G whole passes.

``python -m benchmarks.update`` prints time, floating point operations and peak memory of log-probs
with gradient, and how the measured ratio compares with the token count's ``G(P+L) / (P+G·L)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.common import (
    SMALL,
    flops,
    peak_bytes,
    random_policy,
    random_rollout,
    random_sample,
    report,
    seconds,
)
from vrts.models.qwen import QwenPolicy
from vrts.types import Rollout, Sample

CASES = [(32, 1, 48), (32, 4, 48), (32, 8, 48), (32, 16, 48), (64, 8, 48), (32, 8, 96)]
"""Frames of 140x140 pixels (25 tokens a pair of them), G, L."""


def naive_backward(policy: QwenPolicy, samples: list[Sample], rollout: Rollout) -> None:
    """Log-probs with gradient as published trainers take them: all of it G times.

    Vision tower, prompt and completion run for every row; logits are kept at completion
    positions alone, so that the comparison is of sharing and of nothing else.
    """
    G = len(rollout.completion_ids) // len(samples)
    for row, mask in enumerate(rollout.completion_mask):
        ids = rollout.completion_ids[row][mask]
        prompt = policy.encode([samples[row // G]], 1).encoded[0]
        P, L = len(prompt.input_ids), len(ids)
        steps = prompt.next_position + torch.arange(L)
        logits = policy.base(
            input_ids=torch.cat([prompt.input_ids, ids])[None],
            position_ids=torch.cat([prompt.positions, steps.expand(3, -1)], 1)[:, None],
            pixel_values_videos=prompt.patches,
            video_grid_thw=torch.tensor([prompt.grid]),
            use_cache=False,
            logits_to_keep=torch.arange(P - 1, P + L - 1),
        ).logits[0]
        logprobs = logits.float().log_softmax(-1).gather(-1, ids[:, None])
        (-logprobs.sum()).backward()


def shared_backward(policy: QwenPolicy, samples: list[Sample], rollout: Rollout) -> None:
    """Log-probs with gradient as `QwenPolicy` takes them, its one vision pass included."""
    prompts = policy.encode(samples, 1)
    (-policy.score(prompts, rollout, 1.0).logprobs.sum()).backward()


def measure(policy: QwenPolicy, num_frames: int, G: int, L: int, repeats: int) -> dict[str, float]:
    """Compare both for one shape.

    Args:
        policy: on the device to measure.
        num_frames: T of the one prompt.
        G: completions.
        L: tokens of each.
        repeats: timed calls of each, of which the median counts.
    """
    device = policy.device
    samples = [random_sample(num_frames, 140, 140, seed=0)]
    P = len(policy.encode(samples, 1).encoded[0].input_ids)
    rollout = random_rollout([L] * G, 256, device)

    def run(backward: Callable[[QwenPolicy, list[Sample], Rollout], None]) -> None:
        backward(policy, samples, rollout)
        policy.zero_grad(set_to_none=True)

    naive, shared = partial(run, naive_backward), partial(run, shared_backward)
    naive_s, shared_s = seconds(naive, repeats, device), seconds(shared, repeats, device)
    formula = G * (P + L) / (P + G * L)
    naive_flop, shared_flop = flops(naive), flops(shared)
    return {
        "P": P,
        "G": G,
        "L": L,
        "naive s": naive_s,
        "shared s": shared_s,
        "ratio": naive_s / shared_s,
        "G(P+L)/(P+GL)": formula,
        "share of it": naive_s / shared_s / formula,
        "naive GFLOP": naive_flop / 1e9,
        "shared GFLOP": shared_flop / 1e9,
        "FLOP ratio": naive_flop / shared_flop,
        "naive MB": peak_bytes(naive, device) / 1e6,
        "shared MB": peak_bytes(shared, device) / 1e6,
    }


def main() -> None:
    """Measure all cases on the CPU with one thread."""
    torch.set_num_threads(1)
    policy = random_policy(SMALL, torch.device("cpu"), torch.float32)
    rows = [measure(policy, *case, repeats=3) for case in CASES]
    report("update", rows, shape=SMALL, dtype="float32")


if __name__ == "__main__":
    main()
