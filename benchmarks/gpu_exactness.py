"""Whether results are exact on the device: cases of `benchmarks.gpu`."""

from __future__ import annotations

import torch

from benchmarks.common import encode, engine_of, random_completions, roll_out
from benchmarks.gpu_bench import Bench, Row
from benchmarks.gpu_passes import distance, gradients, scored
from benchmarks.naive import naive_logprobs, token_rows
from vrts.types import Completion


def exact_float32(bench: Bench) -> Row:
    """Small model: shared against naive log-probs and gradients; sampled log-probs and tokens."""
    scale, device = bench.scale, bench.device
    policy = bench.make(scale.small_shape, torch.float32)
    engines = [engine_of(policy, device, cuda_graphs=graphs) for graphs in (True, False)]
    (prompt,) = encode(policy, [bench.sample(scale.sides[-1])])
    (completions,), (eager,) = (roll_out(e, [prompt], scale.G, scale.L) for e in engines)
    shared, naive = scored(policy, prompt, completions)
    logprob_error = _largest(shared - naive)
    sampled_error = _largest(shared - _sampled(completions, device))
    gradient_error = distance(gradients(policy, shared), gradients(policy, naive))
    same_tokens = torch.equal(token_rows(completions, device), token_rows(eager, device))
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
    completions = random_completions([scale.L] * scale.G, 256)
    samples = [bench.sample(side)]
    (of_exact,), (of_rounded,) = (encode(p, samples) for p in (exact, rounded))
    want = naive_logprobs(exact, of_exact, token_rows(completions, bench.device))
    shared, naive = scored(rounded, of_rounded, completions)
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
    prompt = bench.prompt(bench.scale.sides[-1])
    (completions,) = roll_out(bench.engine, [prompt], bench.scale.G, bench.scale.L)
    with torch.no_grad(), bench.computing():
        shared = bench.policy.logprobs([prompt], [completions], 1.0).logprobs
        first = token_rows(completions[:1], bench.device)
        naive = naive_logprobs(bench.policy, prompt, first)
    error = (shared - _sampled(completions, bench.device)).abs()
    between_passes = float((shared[:1] - naive).abs().mean())
    return {
        "mean difference, nats": float(error.mean()),
        "largest": float(error.max()),
        "mean of shared and naive": between_passes,
        "ok": float(error.mean()) <= max(3 * between_passes, 0.02),
    }


def _sampled(completions: tuple[Completion, ...], device: torch.device) -> torch.Tensor:
    """Log-probs ``[G, L]`` as they were sampled."""
    return torch.stack([c.logprobs for c in completions if c.logprobs is not None]).to(device)


def _largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())
