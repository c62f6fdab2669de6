"""Whether results are exact on the device: cases of `benchmarks.gpu`."""

from __future__ import annotations

import torch

from benchmarks.common import random_rollout
from benchmarks.gpu_bench import Bench, Row
from benchmarks.gpu_passes import distance, gradients, roll_out, without_graphs
from benchmarks.naive import naive_logprobs


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
        "shared from float32, mean nats": float((shared - want).detach().abs().mean()),
        "shared from float32, largest": _largest(shared - want),
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
