"""Drawing tokens: truncation against plain loops, and what is drawn against the distribution."""

import dataclasses
import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.conftest import make_sample
from tests.models.naive import plain_distributions
from vrts.models.sampling import RowSampler, row_seed, row_uniforms, truncate
from vrts.types import InputError, Sampling


def plain_truncation(probs: list[float], top_p: float, top_k: int) -> list[float]:
    """Token after token from the most likely one, until k or the share p are reached."""
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    order = order[: top_k or len(order)]
    total, kept, reached = sum(probs[token] for token in order), set(), 0.0
    for token in order:
        if kept and top_p < 1 and reached >= top_p * total:
            break
        kept.add(token)
        reached += probs[token]
    return [p if token in kept else 0.0 for token, p in enumerate(probs)]


@given(st.integers(0, 2**31), st.integers(1, 30), st.floats(0.01, 1.0), st.integers(0, 40))
def test_truncation_is_top_k_and_then_top_p(seed, V, top_p, top_k):
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(2, V, generator=generator, dtype=torch.float64)).softmax(-1)
    got = truncate(
        probs, torch.tensor([[top_p], [1.0]], dtype=torch.float64), torch.tensor([[top_k], [0]])
    )
    assert got[0].tolist() == plain_truncation(probs[0].tolist(), top_p, top_k)
    assert torch.equal(got[1], probs[1]), "a row without truncation beside one with it"


@pytest.mark.parametrize("name", ["temperature", "presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} must be a finite number"):
        Sampling(**{name: value})


@pytest.mark.parametrize("temperature", [-1.0, 1e-7, 1e-40, 1e-300])
def test_temperatures_that_leave_no_distribution_are_refused(temperature):
    with pytest.raises(InputError, match="temperature must be 0"):
        Sampling(temperature=temperature)


def test_a_top_k_beyond_the_vocabulary_is_all_of_it():
    logits, uniforms = torch.randn(2, 9), torch.tensor([0.3, 0.9], dtype=torch.float64)
    rows = torch.arange(2)
    drawn = [
        RowSampler([Sampling(top_k=top_k)] * 2, 9, torch.device("cpu"))(logits, uniforms, rows)
        for top_k in (10**19, 0)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_row_has_the_same_numbers_whatever_stands_beside_it():
    seeds = [row_seed(0, "a", n) for n in range(5)]
    assert len(set(seeds)) == 5
    together = row_uniforms(seeds, 9)
    assert together.min() >= 0
    assert together.max() < 1
    for n, seed in enumerate(seeds):
        assert torch.equal(row_uniforms([seed], 9)[0], together[n])
        assert torch.equal(row_uniforms([seed], 4)[0], together[n, :4])


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.6), Sampling(1.4), Sampling(1.0, 0.7), Sampling(0.8, 1, 20)]
)
def test_first_tokens_are_drawn_from_the_models_distribution(load_policy, sampling):
    """Thousands of rows of one token against the distribution that transformers gives."""
    seed, G = int.from_bytes(os.urandom(3), "big"), 4000
    policy = load_policy().eval()
    prompts = policy.encode([make_sample(seed, 4, (56, 56), "Which colour?")], 1)
    seeds = [row_seed(seed, g) for g in range(G)]
    rollout = policy.rollout(prompts, [sampling] * G, seeds, 1)
    first = dataclasses.replace(
        rollout,
        completion_ids=rollout.completion_ids[:1],
        completion_mask=rollout.completion_mask[:1],
    )
    with torch.no_grad():
        untruncated = plain_distributions(policy, prompts, first, sampling.temperature)[0][0]
    drawn = rollout.completion_ids[:, 0]
    assert (rollout.logprobs[:, 0] - untruncated[drawn]).abs().max() < 1e-5, seed

    probs = untruncated.exp().double()
    probs = torch.tensor(plain_truncation(probs.tolist(), sampling.top_p, sampling.top_k))
    probs = (probs / probs.sum()).double()
    counts = drawn.bincount(minlength=len(probs)).double()
    rare = probs * G < 5
    assert counts[probs == 0].sum() == 0, (seed, "outside of what is left")
    expected = torch.cat([probs[~rare] * G, (probs[rare].sum() * G)[None].clamp(min=1)])
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    chi2 = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi2 < freedom + 6 * (2 * freedom) ** 0.5 + 6, (seed, float(chi2), freedom)
