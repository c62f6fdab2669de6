"""Speed and memory of rollout and update: cases of `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import peak_bytes
from benchmarks.gpu_bench import Bench, Row
from benchmarks.gpu_passes import (
    encode_and_roll_out,
    naive_update,
    roll_out,
    shared_update,
    use_checkpointing,
    without_graphs,
)
from benchmarks.gpu_rates import bandwidth, decode_bytes, matmul_rate, update_flops
from benchmarks.rollout import generate
from vrts.models.qwen import QwenPolicy
from vrts.models.qwen_prompts import QwenPrompts


def rates(bench: Bench) -> Row:
    """What the card can do."""
    scale, device = bench.scale, bench.device
    flops = matmul_rate(scale.matmul_size, scale.dtype, device)
    return {"TFLOP/s": flops / 1e12, "GB/s": bandwidth(scale.bandwidth_bytes, device) / 1e9}


def decode(bench: Bench, side: tuple[int, int]) -> Row:
    """Milliseconds a step, with and without graphs, and what memory allows at best.

    Two lengths within one graph are compared: prefill and recording cancel out.
    """
    policy, prompts, scale = bench.policy, bench.prompts(side), bench.scale
    P, G, L = len(prompts.encoded[0].input_ids), scale.G, scale.L
    long_s, half_s = (bench.time(partial(roll_out, policy, prompts, G, n)) for n in (L, L // 2))
    with without_graphs():
        eager_s = [bench.time(partial(roll_out, policy, prompts, G, n), 1) for n in (L // 4, 2)]
    prefill_s = bench.time(partial(roll_out, policy, prompts, G, 1))
    step_s = (long_s - half_s) / (L - L // 2)
    return {
        "P": P,
        "G": G,
        "L": L,
        "ms a step": 1e3 * step_s,
        "without graphs": 1e3 * (eager_s[0] - eager_s[1]) / max(L // 4 - 2, 1),
        "GB a step": decode_bytes(policy, P, G, 0.75 * L) / 1e9,
        "prefill s": prefill_s,
        "recording s": long_s - prefill_s - (L - 1) * step_s,
        "tokens/s": G * L / long_s,
    }


def generation(bench: Bench, side: tuple[int, int]) -> Row:
    """A rollout from frames against transformers' own."""
    policy, samples = bench.policy, [bench.sample(side)]
    G, L = bench.scale.G, bench.scale.L
    ours_s = bench.time(partial(encode_and_roll_out, policy, samples, G, L), 1)
    policy.eval()  # in training mode transformers drops the cache when it checkpoints
    theirs_s = bench.time(partial(generate, policy, samples, G, L, copies=False), 1)
    policy.train()
    P = len(bench.prompts(side).encoded[0].input_ids)
    return {"P": P, "ours s": ours_s, "generate s": theirs_s, "ratio": theirs_s / ours_s}


def update(bench: Bench, side: tuple[int, int], checkpointing: bool, naive: bool) -> Row:
    """Time and peak memory of log-probs with gradient."""
    policy, prompts, scale = bench.policy, bench.prompts(side), bench.scale
    use_checkpointing(policy, checkpointing)
    run = partial(naive_update if naive else shared_update, policy, prompts, scale.G, scale.L)
    P = len(prompts.encoded[0].input_ids)
    row: Row = {"P": P, "G": scale.G, "L": scale.L, "checkpointing": checkpointing}
    row["pass"] = "naive" if naive else "shared"
    row["peak GB"] = peak_bytes(run, bench.device) / 1e9
    row["s"] = bench.time_warm(run, 1 if naive else 3)
    if not naive:
        row["vision s"] = bench.time(_no_grad(partial(_vision, policy, prompts)))
        row["TFLOP"] = update_flops(policy, prompts, scale.G, scale.L) / 1e12
    use_checkpointing(policy, False)
    return row


def _vision(policy: QwenPolicy, prompts: QwenPrompts) -> torch.Tensor:
    return policy.video_features(prompts.encoded)


def _no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


def update_memory(bench: Bench, G: int) -> Row:
    """Peak of the shared update, beyond weights, as G grows."""
    prompts, L = bench.prompts(bench.scale.sides[0]), bench.scale.L
    use_checkpointing(bench.policy, True)
    peak = peak_bytes(partial(shared_update, bench.policy, prompts, G, L), bench.device)
    use_checkpointing(bench.policy, False)
    P = len(prompts.encoded[0].input_ids)
    return {"P": P, "G": G, "tokens": P + G * (L - 1), "peak GB": peak / 1e9}


def profiled(bench: Bench, what: str) -> Row:
    """Where the device's time goes: the ten most expensive kernels and the share of products."""
    prompts, scale = bench.prompts(bench.scale.sides[0]), bench.scale
    runs: dict[str, Callable[[], object]] = {
        "decode": partial(roll_out, bench.policy, prompts, scale.G, scale.L // 4),
        "update": partial(shared_update, bench.policy, prompts, scale.G, scale.L),
    }
    run = runs[what]
    run()
    on_cuda = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as found:
        run()
    events = [
        (e.key, e.count, (e.self_device_time_total if on_cuda else e.self_cpu_time_total) / 1e3)
        for e in found.key_averages()
    ]
    events.sort(key=lambda event: -event[2])
    total = sum(ms for _, _, ms in events)
    products = ("gemm", "matmul", "cutlass", "nvjet", "gemv", "aten::mm", "addmm", "bmm")
    in_products = sum(ms for name, _, ms in events if any(p in name.lower() for p in products))
    return {
        "what": what,
        "device ms": total,
        "kernels": sum(count for _, count, _ in events),
        "share of matrix products": in_products / max(total, 1e-9),
        "most expensive": [[name[:90], count, ms] for name, count, ms in events[:10]],
    }
