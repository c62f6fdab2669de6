"""Drawing tokens: truncation against plain loops, and what is drawn against the distribution."""

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.conftest import make_sample
from tests.models.engines.running import make_engine, sampled_logprobs
from tests.models.naive import plain_distributions
from vrts.models.engines.engine import Request
from vrts.models.engines.sampling import RowSampler, row_seed, row_uniforms, truncate
from vrts.types import InputError, SamplingParams


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
    assert torch.equal(got[1], probs[1]), "a row without truncation next to one with it"


@pytest.mark.parametrize("name", ["temperature", "presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} must be a finite number"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("temperature", [-1.0, 1e-7, 1e-40, 1e-300])
def test_temperatures_that_leave_no_distribution_are_refused(temperature):
    with pytest.raises(InputError, match="temperature must be 0"):
        SamplingParams(temperature=temperature)


def test_a_top_k_beyond_the_vocabulary_is_all_of_it():
    logits, uniforms = torch.randn(2, 9), torch.tensor([0.3, 0.9], dtype=torch.float64)
    rows = torch.arange(2)
    drawn = []
    for top_k in (10**19, 0):
        sampler = RowSampler(2, 9, torch.device("cpu"))
        sampler.truncates = True
        sampler.enter(rows, [SamplingParams(top_k=top_k)] * 2)
        drawn.append(sampler(logits, uniforms, rows))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_row_draws_the_same_whatever_the_others_need():
    """To the bit: without penalties and truncation they change nothing."""
    logits = 4 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(3)
    plain = RowSampler(3, 50, torch.device("cpu"))
    full = RowSampler(3, 50, torch.device("cpu"))
    other = SamplingParams(0.7, 0.9, 5, presence_penalty=2.0, frequency_penalty=1.0)
    plain.enter(rows, [SamplingParams(), SamplingParams(0.0), SamplingParams(1.3)])
    full.enter(rows, [SamplingParams(), other, SamplingParams(1.3)])
    full.truncates = full.penalises = True
    for number in torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)):
        uniforms = number.expand(3)
        a, b = plain(logits, uniforms, rows), full(logits, uniforms, rows)
        assert torch.equal(a[0][[0, 2]], b[0][[0, 2]])
        assert torch.equal(a[1][[0, 2]], b[1][[0, 2]])


def test_a_seed_gives_the_same_numbers_however_many_are_drawn():
    seeds = [row_seed(0, "a", n) for n in range(5)]
    rows = torch.stack([row_uniforms(seed, 9) for seed in seeds])
    assert len(set(seeds)) == len({tuple(row.tolist()) for row in rows}) == 5
    assert rows.min() >= 0
    assert rows.max() < 1
    for seed, row in zip(seeds, rows, strict=True):
        assert torch.equal(row_uniforms(seed, 9), row)
        assert torch.equal(row_uniforms(seed, 4), row[:4])


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(0.6),
        SamplingParams(1.4),
        SamplingParams(1.0, 0.7),
        SamplingParams(0.8, 1, 20),
    ],
)
def test_first_tokens_are_drawn_from_the_models_distribution(load_policy, sampling):
    """Thousands of rows of one token against the distribution that transformers gives."""
    seed, G = int.from_bytes(os.urandom(3), "big"), 4000
    policy = load_policy().eval()
    engine = make_engine(policy, max_rows=1000)
    (prompt,) = engine.encode([make_sample(seed, 4, (56, 56), "Which colour?")])
    seeds = tuple(row_seed(seed, g) for g in range(G))
    (result,) = engine.generate([Request(prompt, (sampling,) * G, seeds, 1)])
    with torch.no_grad():
        untruncated = plain_distributions(
            policy, [prompt], [result.completions[:1]], sampling.temperature
        )[0][0]
    drawn = torch.cat([c.token_ids for c in result.completions])
    assert (sampled_logprobs([result.completions]) - untruncated[drawn]).abs().max() < 1e-5, seed

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
