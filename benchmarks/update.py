"""The update: every prompt forwarded once for its G completions, against G complete passes.

``python -m benchmarks.update`` (some minutes on a CPU) compares log-probs with gradient:

- shared: `TransformersPolicy.logprobs`, with one pass of the prompt, and one of the vision tower
  before it;
- naive: vision tower, prompt and completion for every completion, which is what trainers do that
  do not share. The head is the same, at completion positions alone, so that the comparison is of
  sharing and of nothing else. Time is taken row by row, which on a CPU is faster than one batch of
  G rows; memory of both;
- prefix_grouper: the library that shares a prompt too (`benchmarks.grouper`; it comes with
  ``pip install --editable '.[bench]'``). Of the text model alone, with the same features and head,
  with and without gradient checkpointing.

The first table has time, floating point operations and peak memory, and how the ratio of times
compares with the token count's ``G(P+L) / (P+G·L)``; the second one those of prefix_grouper. The
third one has peak memory as G grows: of the shared pass it is a constant and so many bytes a
completion token, of a naive batch so many bytes a token of all ``G(P+L)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch

from benchmarks.common import (
    SMALL,
    alternating_seconds,
    encode,
    flops,
    peak_bytes,
    print_table,
    random_completions,
    random_policy,
    random_sample,
    write_results,
)
from benchmarks.memory import fit_line
from benchmarks.naive import naive_backward, naive_rows, token_rows
from vrts.models.policy import Prompt
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Completion, Sample

CASES = [(24, 1, 48), (24, 4, 48), (24, 8, 48), (24, 16, 48), (48, 8, 48), (24, 8, 96)]
"""Frames of 140x140 pixels (25 tokens a pair of them), G, L."""
REPEATS = 5
"""Timed calls of each, of which the median counts."""
MEMORY_FRAMES, MEMORY_LENGTHS, MEMORY_GROUPS = 24, (24, 48), (1, 2, 4, 8, 16)
"""Frames, L and G whose peaks are compared."""


def formula(P: int, L: int, G: int) -> float:
    """How many times as many tokens naive passes forward as a shared one."""
    return G * (P + L) / (P + G * L)


def text_backward(
    policy: TransformersPolicy, prompts: Sequence[Prompt], completions: tuple[Completion, ...]
) -> None:
    """Gradient of each prompt's completions, from features that prompts have already."""
    groups = [completions] * len(prompts)
    (-policy.logprobs(prompts, groups, 1.0).logprobs.sum()).backward()


def shared_backward(
    policy: TransformersPolicy, samples: Sequence[Sample], completions: tuple[Completion, ...]
) -> None:
    """The same from frames, the one vision pass included."""
    text_backward(policy, encode(policy, samples), completions)


def passes(
    policy: TransformersPolicy, num_frames: int, G: int, L: int
) -> tuple[int, dict[str, Callable[[], None]]]:
    """The passes of one shape, each of which drops its gradient at the end.

    Args:
        policy: on the device to measure.
        num_frames: T of the one prompt.
        G: completions.
        L: tokens of each.

    Returns:
        P, and the calls by their names.
    """
    samples = [random_sample(num_frames, 140, 140, seed=0)]
    (prompt,) = encode(policy, samples)
    completions = random_completions([L] * G, 256)
    ids = token_rows(completions, policy.device)

    def run(backward: Callable[..., None], *args: Any) -> None:
        backward(policy, *args)
        policy.zero_grad(set_to_none=True)

    found: dict[str, Callable[[], None]] = {
        "naive": partial(run, naive_rows, prompt, ids),
        "naive batch": partial(run, naive_backward, prompt, ids),
        "shared": partial(run, shared_backward, samples, completions),
        "shared text": partial(run, text_backward, [prompt], completions),
    }
    if find_spec("prefix_grouper") is not None:
        from benchmarks.grouper import grouper_backward

        found["prefix_grouper"] = partial(run, grouper_backward, prompt, ids)
    return prompt.num_tokens, found


def measure(policy: TransformersPolicy, num_frames: int, G: int, L: int) -> dict[str, float]:
    """Compare naive and shared passes of one shape; the arguments are those of `passes`."""
    P, runs = passes(policy, num_frames, G, L)
    # counting and tracing warm up
    flop = {name: flops(runs[name]) for name in ("naive", "shared")}
    peak = {name: peak_bytes(runs[name], policy.device) for name in ("naive", "shared")}
    timed = {name: runs[name] for name in ("naive", "shared")}
    time_s = alternating_seconds(timed, REPEATS, policy.device)
    ratio = time_s["naive"] / time_s["shared"]
    return {
        "P": P,
        "G": G,
        "L": L,
        "naive s": time_s["naive"],
        "shared s": time_s["shared"],
        "ratio": ratio,
        "G(P+L)/(P+GL)": formula(P, L, G),
        "share of it": ratio / formula(P, L, G),
        "naive GFLOP": flop["naive"] / 1e9,
        "shared GFLOP": flop["shared"] / 1e9,
        "FLOP ratio": flop["naive"] / flop["shared"],
        "naive MB": peak["naive"] / 1e6,
        "shared MB": peak["shared"] / 1e6,
    }


def measure_grouper(
    policy: TransformersPolicy, checkpointing: bool, num_frames: int, G: int, L: int
) -> dict[str, float]:
    """Compare prefix_grouper and vrts on the text model.

    Args:
        policy: on the device to measure.
        checkpointing: whether it has gradient checkpointing.
        num_frames: like `G` and `L`, see `passes`.
        G: completions.
        L: tokens of each.
    """
    P, runs = passes(policy, num_frames, G, L)
    both = {"vrts": runs["shared text"], "prefix_grouper": runs["prefix_grouper"]}
    peak = {name: peak_bytes(run, policy.device) for name, run in both.items()}
    time_s = alternating_seconds(both, REPEATS, policy.device)
    return {
        "P": P,
        "G": G,
        "L": L,
        "checkpointing": checkpointing,
        **{f"{name} s": time_s[name] for name in both},
        "time ratio": time_s["prefix_grouper"] / time_s["vrts"],
        **{f"{name} MB": peak[name] / 1e6 for name in both},
        "memory ratio": peak["vrts"] / peak["prefix_grouper"],
    }


def memory_growth(
    name: str, tokens: Sequence[int], peaks: Sequence[float], unit: str
) -> dict[str, Any]:
    """How a peak grows: the line through its points, and how far they are from it.

    ``least`` and ``most`` are a further token's bytes between one G and the next.

    Args:
        name: of the pass.
        tokens: that the peak is held against, one number for each point.
        peaks: in bytes.
        unit: what `tokens` counts.
    """
    constant, per_token, off = fit_line(tokens, peaks)
    points = list(zip(tokens, peaks, strict=True))
    steps = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairwise(points)]
    return {
        "pass": name,
        "grows with": unit,
        "constant MB": constant / 1e6,
        "kB a token": per_token / 1e3,
        "least": min(steps) / 1e3,
        "most": max(steps) / 1e3,
        "off the line %": 100 * off,
    }


def measure_memory(policy: TransformersPolicy) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Peak memory over G.

    Returns:
        A row for each L and G, and how each pass's peaks grow.
    """
    rows: list[dict[str, Any]] = []
    for L in MEMORY_LENGTHS:
        for G in MEMORY_GROUPS:
            P, runs = passes(policy, MEMORY_FRAMES, G, L)
            row: dict[str, Any] = {"P": P, "G": G, "L": L, "G·L": G * L, "G(P+L)": G * (P + L)}
            for name in ("shared", "naive batch"):
                # one naive L is enough, and takes the most memory
                wanted = name == "shared" or max(MEMORY_LENGTHS) == L
                row[f"{name} MB"] = peak_bytes(runs[name], policy.device) / 1e6 if wanted else None
            rows.append(row)
    growth = [
        memory_growth(
            f"shared, L = {L}",
            [r["G·L"] for r in rows if r["L"] == L],
            [1e6 * r["shared MB"] for r in rows if r["L"] == L],
            "G·L",
        )
        for L in MEMORY_LENGTHS
    ]
    batched = [r for r in rows if r["naive batch MB"] is not None]
    growth.append(
        memory_growth(
            "naive batch",
            [r["G(P+L)"] for r in batched],
            [1e6 * r["naive batch MB"] for r in batched],
            "G(P+L)",
        )
    )
    return rows, growth


def main() -> None:
    """Measure all cases on the CPU with one thread."""
    if find_spec("prefix_grouper") is None:
        sys.exit(
            "benchmarks.update compares with prefix_grouper, which is not installed; in the "
            "repository, run .venv/bin/pip install --editable '.[bench]'"
        )
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    policy = random_policy(SMALL, cpu, torch.float32)
    rows = [measure(policy, *case) for case in CASES]
    print_table("update: naive against shared", rows)
    checkpointed = random_policy(SMALL, cpu, torch.float32, gradient_checkpointing=True).train()
    both = enumerate((policy, checkpointed))
    grouper = [measure_grouper(p, bool(on), *case) for on, p in both for case in CASES]
    print_table("update of the text model: prefix_grouper against vrts", grouper)
    memory, growth = measure_memory(policy)
    print_table("peak memory of the update", memory)
    print_table("how it grows with G", growth)
    sections = {"prefix_grouper": grouper, "memory": memory, "memory growth": growth}
    write_results(
        "update",
        rows,
        sections,
        shape=SMALL,
        dtype="float32",
        repeats=REPEATS,
        prefix_grouper=version("prefix_grouper"),
    )


if __name__ == "__main__":
    main()
