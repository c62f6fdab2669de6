"""What tests sample with: a native engine on a policy's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vrts.models.engines.engine import Request, Result, ShouldStop
from vrts.models.engines.native import NativeEngine
from vrts.models.policy import Policy, Prompt
from vrts.types import Completion, Sample, SamplingParams

CPU = torch.device("cpu")


def make_engine(
    policy: Policy, dtype: torch.dtype | None = None, device: torch.device = CPU, **options
) -> NativeEngine:
    """An engine that is ready; it follows weights that it shares, and others at its `sync`."""
    engine = NativeEngine(**options)
    engine.attach(policy, device, dtype, will_shard=False)
    engine.sync(policy)
    return engine


def make_requests(
    prompts: Sequence[Prompt],
    sampling: Sequence[SamplingParams],
    length: int,
    seed: int = 0,
    should_stop: ShouldStop | None = None,
) -> list[Request]:
    """For each prompt the same sampling, and seeds that count on."""
    G = len(sampling)
    return [
        Request(
            prompt,
            tuple(sampling),
            tuple(range(seed + b * G, seed + (b + 1) * G)),
            length,
            should_stop,
        )
        for b, prompt in enumerate(prompts)
    ]


def sample(
    policy: Policy,
    samples: Sequence[Sample],
    sampling: Sequence[SamplingParams],
    length: int,
    seed: int = 0,
    should_stop: ShouldStop | None = None,
    **options,
) -> tuple[list[Prompt], list[tuple[Completion, ...]]]:
    """Prompts and the completions of each, by an engine of their own."""
    engine = make_engine(policy, **options)
    prompts = engine.encode(samples)
    results = engine.generate(make_requests(prompts, sampling, length, seed, should_stop))
    return prompts, [completions_of(result) for result in results]


def completions_of(result: Result) -> tuple[Completion, ...]:
    """The completions of a request that has not failed."""
    assert result.error is None
    return result.completions


def tokens_of(completion: Completion) -> list[int]:
    """Its tokens."""
    assert completion.token_ids is not None
    assert len(completion.token_ids) == completion.num_tokens
    return completion.token_ids.tolist()


def mask_of(completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """bool ``[N, L]``, True for the tokens of N completions."""
    lengths = torch.tensor([c.num_tokens for group in completions for c in group])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def sampled_logprobs(completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """float32 ``[tokens]``, when they were sampled, completion after completion."""
    return torch.cat([c.logprobs for group in completions for c in group])
