"""Speed and memory of rollout and update: cases of `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import engine_of, peak_bytes, roll_out
from benchmarks.gpu_bench import Bench, Row
from benchmarks.gpu_passes import naive_update, shared_update, use_checkpointing
from benchmarks.gpu_rates import bandwidth, decode_bytes, matmul_rate, update_flops
from benchmarks.rollout import generate, ours
from vrts.models.engines.native import NativeEngine
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.policy import TransformersPolicy


def rates(bench: Bench) -> Row:
    """What the card can do."""
    scale, device = bench.scale, bench.device
    flops = matmul_rate(scale.matmul_size, scale.dtype, device)
    return {"TFLOP/s": flops / 1e12, "GB/s": bandwidth(scale.bandwidth_bytes, device) / 1e9}


def decode(bench: Bench, side: tuple[int, int], lora: bool = False) -> Row:
    """Milliseconds a step, with and without graphs, and what memory allows at best.

    Two lengths within one graph are compared: prefill and recording cancel out.
    """
    bench.adapt(lora)
    prompt, scale = bench.prompt(side), bench.scale
    P, G, L = prompt.num_tokens, scale.G, scale.L

    def run(engine: NativeEngine, num_tokens: int, repeats: int = 2) -> float:
        return bench.time(partial(roll_out, engine, [prompt], G, num_tokens), repeats)

    long_s, half_s, prefill_s = (run(bench.engine, n) for n in (L, L // 2, 1))
    eager = engine_of(bench.policy, bench.device, scale.dtype, cuda_graphs=False)
    eager_s = [run(eager, n, 1) for n in (L // 4, 2)]
    step_s = (long_s - half_s) / (L - L // 2)
    return {
        "P": P,
        "G": G,
        "L": L,
        "adapter": lora,
        "ms a step": 1e3 * step_s,
        "without graphs": 1e3 * (eager_s[0] - eager_s[1]) / max(L // 4 - 2, 1),
        "GB a step": decode_bytes(bench.policy, P, G, 0.75 * L) / 1e9,
        "prefill s": prefill_s,
        "recording s": long_s - prefill_s - (L - 1) * step_s,
        "tokens/s": G * L / long_s,
    }


def step_rollout(bench: Bench) -> Row:
    """A step's questions sampled together, from frames, against one after the other."""
    bench.adapt(True)
    scale = bench.scale
    sample, (B, G, L) = bench.sample(scale.sides[-1]), (scale.B, scale.G, scale.L)
    together_s, one_s = (
        bench.time(partial(ours, bench.engine, [sample] * n, G, L), 1) for n in (B, 1)
    )
    return {
        "B": B,
        "P": bench.prompt(scale.sides[-1]).num_tokens,
        "G": G,
        "L": L,
        "together s": together_s,
        "one question s": one_s,
        "ratio": B * one_s / together_s,
        "tokens/s": B * G * L / together_s,
    }


def generation(bench: Bench, side: tuple[int, int]) -> Row:
    """A rollout from frames against transformers' own."""
    bench.adapt(False)
    policy, samples = bench.policy, [bench.sample(side)]
    G, L = bench.scale.G, bench.scale.L
    ours_s = bench.time(partial(ours, bench.engine, samples, G, L), 1)
    policy.eval()  # in training mode transformers drops the cache when it checkpoints
    theirs_s = bench.time(partial(generate, policy, samples, G, L, copies=False), 1)
    policy.train()
    P = bench.prompt(side).num_tokens
    return {"P": P, "ours s": ours_s, "generate s": theirs_s, "ratio": theirs_s / ours_s}


def update(
    bench: Bench, side: tuple[int, int], checkpointing: bool, naive: bool, lora: bool = False
) -> Row:
    """Time and peak memory of log-probs with gradient."""
    bench.adapt(lora)
    policy, prompt, scale = bench.policy, bench.prompt(side), bench.scale
    use_checkpointing(policy, checkpointing)
    one = partial(naive_update if naive else shared_update, policy, prompt, scale.G, scale.L)
    row: Row = {"P": prompt.num_tokens, "G": scale.G, "L": scale.L, "checkpointing": checkpointing}
    row |= {"pass": "naive" if naive else "shared", "adapter": lora}

    def run() -> None:
        with bench.computing():
            one()

    row["peak GB"] = peak_bytes(run, bench.device) / 1e9
    row["s"] = bench.time_warm(run, 1 if naive else 3)
    if not naive:
        row["vision s"] = bench.time(partial(_vision, policy, prompt))
        row["TFLOP"] = update_flops(policy, prompt, scale.G, scale.L) / 1e12
        row["MFU"] = row["TFLOP"] / row["s"] / bench.peak_tflops
        row["MFU is of TFLOP/s"] = bench.peak_tflops
    use_checkpointing(policy, False)
    return row


@torch.no_grad()
def _vision(policy: TransformersPolicy, prompt: VideoPrompt) -> torch.Tensor:
    return policy.family.features(policy.base, prompt.patches(policy.device), [prompt.grid])


def update_memory(bench: Bench, G: int) -> Row:
    """Peak of the shared update, beyond weights, as G grows."""
    bench.adapt(False)
    prompt, L = bench.prompt(bench.scale.sides[0]), bench.scale.L
    use_checkpointing(bench.policy, True)
    with bench.computing():
        peak = peak_bytes(partial(shared_update, bench.policy, prompt, G, L), bench.device)
    use_checkpointing(bench.policy, False)
    P = prompt.num_tokens
    return {"P": P, "G": G, "tokens": P + G * (L - 1), "peak GB": peak / 1e9}


def profiled(bench: Bench, what: str) -> Row:
    """Where the device's time goes: the ten most expensive kernels and the share of products."""
    bench.adapt(True)
    prompt, scale = bench.prompt(bench.scale.sides[0]), bench.scale
    runs: dict[str, Callable[[], Any]] = {
        "decode": partial(roll_out, bench.engine, [prompt], scale.G, scale.L // 4),
        "update": partial(shared_update, bench.policy, prompt, scale.G, scale.L),
    }
    on_cuda = bench.device.type == "cuda"
    with bench.computing():
        runs[what]()
        kind = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
        with profile(activities=[kind]) as found:
            runs[what]()
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
