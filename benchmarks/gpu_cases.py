"""What `benchmarks.gpu` measures, case by case, the most telling ones first."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import (
    QWEN_7B,
    SMALL,
    Shape,
    peak_bytes,
    random_policy,
    random_rollout,
    random_sample,
    seconds,
    synchronize,
)
from benchmarks.gpu_passes import (
    distance,
    encode_and_roll_out,
    gradients,
    naive_update,
    never_end,
    roll_out,
    shared_update,
    use_checkpointing,
    without_graphs,
)
from benchmarks.gpu_rates import bandwidth, decode_bytes, matmul_rate, update_flops
from benchmarks.gpu_sharding import sharded
from benchmarks.naive import naive_logprobs
from benchmarks.rollout import generate
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


def cases(bench: Bench) -> Iterator[Case]:
    """All cases, most telling first; those that need another model come last."""
    sides, scale = bench.scale.sides, bench.scale
    yield Case("rates", "card", 10, partial(rates, bench))
    yield Case("exactness", "float32", 15, partial(exact_float32, bench))
    yield Case("exactness", "half precision", 15, partial(exact_half, bench))
    yield Case("exactness", "sampled log-probs", 30, partial(exact_sampled, bench))
    for side in sides:
        yield Case("decode", f"{side}", 20, partial(decode, bench, side))
        yield Case("generate", f"{side}", 30, partial(generation, bench, side))
    for side, checkpointing, naive in product(sides, (False, True), (False, True)):
        name = f"{side}, {'naive' if naive else 'shared'}, checkpointing {checkpointing}"
        num_tokens = scale.num_frames // 2 * side[0] * side[1] / 28**2
        expected_s = 3 + num_tokens * (2.5e-3 if naive else 0.5e-3)
        yield Case("update", name, expected_s, partial(update, bench, side, checkpointing, naive))
    for G in scale.group_sizes:
        yield Case("update memory", f"G = {G}", 4, partial(update_memory, bench, G))
    yield Case("profile", "decode", 15, partial(profiled, bench, "decode"))
    yield Case("profile", "update", 15, partial(profiled, bench, "update"))
    for dtype in (torch.bfloat16, torch.float32):
        yield Case("full fine-tuning", f"{dtype}", 40, partial(full_fine_tuning, bench, dtype))
    yield Case("whole step", "TRL", 0, dict, missing=_trl_missing())
    missing = None
    if find_spec("vrts.models.sharding") is None:
        missing = "vrts.models.sharding is not in this version"
    yield Case("sharding", "FSDP2, one process", 40, partial(one_process, bench), missing=missing)


def _trl_missing() -> str:
    if find_spec("trl") is None:
        return "trl is not installed"
    return "benchmarks.step compares with TRL on a CPU; run it by itself"


def rates(bench: Bench) -> Row:
    """What the card can do."""
    scale, device = bench.scale, bench.device
    flops = matmul_rate(scale.matmul_size, scale.dtype, device)
    return {"TFLOP/s": flops / 1e12, "GB/s": bandwidth(scale.bandwidth_bytes, device) / 1e9}


# ---- exactness


def exact_float32(bench: Bench) -> Row:
    """Small model: shared against naive log-probs and gradients; sampled log-probs and tokens."""
    policy = bench.make(bench.scale.small_shape, torch.float32)
    prompts = policy.encode([bench.sample(bench.scale.sides[-1])], bench.scale.L)
    with without_graphs():
        eager = roll_out(policy, prompts, bench.scale.G, bench.scale.L)
    rollout = roll_out(policy, prompts, bench.scale.G, bench.scale.L)
    shared = policy.score(prompts, rollout, 1.0).logprobs
    naive = naive_logprobs(policy, prompts, rollout.completion_ids)
    logprob_error = _largest(shared - naive)
    sampled_error = _largest(shared - rollout.logprobs)
    gradient_error = distance(gradients(policy, shared), gradients(policy, naive))
    same_tokens = torch.equal(eager.completion_ids, rollout.completion_ids)
    return {
        "log-probs": logprob_error,
        "gradients, relative": gradient_error,
        "sampled log-probs": sampled_error,
        "tokens with and without graphs": "equal" if same_tokens else "DIFFERENT",
        "ok": logprob_error <= 1e-4
        and gradient_error <= 1e-4
        and sampled_error <= 1e-3
        and same_tokens,
    }


def exact_half(bench: Bench) -> Row:
    """Small model in half precision: how far shared and naive passes are from float32."""
    scale, side = bench.scale, bench.scale.sides[-1]
    exact = bench.make(scale.small_shape, torch.float32)
    rounded = bench.make(scale.small_shape, scale.dtype)
    # the same rounded weights in both: what is compared is computing
    exact.load_state_dict(rounded.state_dict())
    rollout = random_rollout([scale.L] * scale.G, 256, bench.device)
    of_exact, of_rounded = (p.encode([bench.sample(side)], scale.L) for p in (exact, rounded))
    want = naive_logprobs(exact, of_exact, rollout.completion_ids)
    naive = naive_logprobs(rounded, of_rounded, rollout.completion_ids)
    shared = rounded.score(of_rounded, rollout, 1.0).logprobs
    errors = [float((x - want).detach().norm() / want.detach().norm()) for x in (shared, naive)]
    wanted = gradients(exact, want)
    slopes = [distance(gradients(rounded, x), wanted) for x in (shared, naive)]
    return {
        "shared log-probs": errors[0],
        "naive log-probs": errors[1],
        "shared gradients": slopes[0],
        "naive gradients": slopes[1],
        "ok": errors[0] <= 1.2 * errors[1] and slopes[0] <= 1.2 * slopes[1],
    }


def exact_sampled(bench: Bench) -> Row:
    """The large model in half precision: log-probs when sampled and when scored."""
    prompts = bench.prompts(bench.scale.sides[-1])
    rollout = roll_out(bench.policy, prompts, bench.scale.G, bench.scale.L)
    with torch.no_grad():
        scored = bench.policy.score(prompts, rollout, 1.0).logprobs
        naive = naive_logprobs(bench.policy, prompts, rollout.completion_ids[:1])
    error = (scored - rollout.logprobs).abs()
    between_passes = float((scored[:1] - naive).abs().mean())
    return {
        "mean difference, nats": float(error.mean()),
        "largest": float(error.max()),
        "mean of shared and naive": between_passes,
        "ok": float(error.mean()) <= max(3 * between_passes, 0.02),
    }


def _largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


# ---- rollout


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


# ---- update


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
        row["TFLOP"] = update_flops(policy, P, scale.G, scale.L) / 1e12
    use_checkpointing(policy, False)
    return row


def _vision(policy: QwenPolicy, prompts: QwenPrompts) -> torch.Tensor:
    return policy._video_features(prompts.patches, prompts.grids)


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


def full_fine_tuning(bench: Bench, dtype: torch.dtype) -> Row:
    """Peak memory of a whole step of full fine-tuning with AdamW, without a reference.

    In float32 computing is in half precision by autocast, as with the Trainer's ``bf16-mixed``.
    """
    bench.release()
    scale, device = bench.scale, bench.device
    policy = bench.make(scale.shape, dtype)
    use_checkpointing(policy, True)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.01, fused=True)
    mixed = dtype == torch.float32

    def step() -> None:
        with torch.autocast(device.type, scale.dtype) if mixed else nullcontext():
            prompts = policy.encode([bench.sample(scale.sides[-1])], scale.L)
            rollout = roll_out(policy, prompts, scale.G, scale.L)
            loss = -policy.score(prompts, rollout, 1.0).logprobs.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the optimizer's state is there from the first step on
    before = float(torch.cuda.memory_allocated()) if device.type == "cuda" else 0.0
    peak = before + peak_bytes(step, device)
    return {
        "weights": str(dtype),
        "parameters, 1e9": sum(p.numel() for p in policy.parameters()) / 1e9,
        "frames": scale.num_frames,
        "G": scale.G,
        "L": scale.L,
        "peak GB": peak / 1e9,
    }


def one_process(bench: Bench) -> Row:
    """Rollout and update, sharded over one process, against not sharded.

    Sharded weights are decoded without graphs.
    """
    bench.release()
    scale, side = bench.scale, bench.scale.sides[-1]
    policy = bench.make(scale.shape, scale.dtype)
    use_checkpointing(policy, True)

    def measured() -> tuple[float, float]:
        prompts = policy.encode([bench.sample(side)], scale.L)
        rollout_s = bench.time(partial(roll_out, policy, prompts, scale.G, scale.L // 4), 1)
        return rollout_s, bench.time(partial(shared_update, policy, prompts, scale.G, scale.L), 1)

    plain_s = measured()
    with sharded(policy, scale.dtype):
        sharded_s = measured()
    return {
        "rollout s": plain_s[0],
        "sharded rollout s": sharded_s[0],
        "update s": plain_s[1],
        "sharded update s": sharded_s[1],
    }


# ---- why


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
