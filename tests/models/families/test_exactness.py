"""Every family's shared pass against transformers' own model, on other random inputs each run."""

import os

import pytest
import torch

from tests.models.engines.running import make_engine, make_requests, mask_of, sampled_logprobs
from tests.models.naive import (
    keep_float64,
    plain_distributions,
    plain_logprobs,
    random_completions,
    to_float64,
)
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.vlm.loading import Lora
from vrts.types import SamplingParams

LORA = {"lora": Lora(rank=4, alpha=8)}
MODES = {"full": {}, "vision": {"freeze_vision": False}, "lora": LORA}
PAIRWISE = [
    ("full", True, torch.float32),
    ("full", False, torch.float64),
    ("vision", False, torch.float32),
    ("vision", True, torch.float64),
    ("lora", True, torch.float32),
    ("lora", False, torch.float64),
]
"""What is trained, whether with checkpointing, and in what: every two of them come together."""


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded differently in each run; `initial_seed` tells."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))


@pytest.mark.parametrize(("mode", "checkpointing", "dtype"), PAIRWISE)
def test_shared_pass_equals_plain_forwards(
    family_model, mode, checkpointing, dtype, generator, monkeypatch
):
    """Ragged prompts and completions of several questions, an image among the videos."""
    policy = family_model.policy(gradient_checkpointing=checkpointing, **MODES[mode]).train()
    perturb_adapter(policy)
    double = dtype == torch.float64
    if double:
        to_float64(policy)
        keep_float64(monkeypatch)
    prompts = policy.network().encode(family_model.samples(generator, 3))
    lengths = [*torch.randint(1, 13, (2, 3), generator=generator).tolist(), [1, 1, 5]]
    completions = random_completions(policy, lengths, generator)
    mask = mask_of(completions)
    # random weights of each token, so that a wrong gradient cannot cancel out
    weights = torch.randn(mask.shape, generator=generator, dtype=dtype)[mask]

    def gradients(logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        (logprobs * weights).sum().backward()
        return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    got = policy.logprobs(prompts, completions, 0.8).logprobs[mask]
    found = gradients(got)
    want = torch.cat(plain_logprobs(policy, prompts, completions, 0.8))
    expected = gradients(want)

    seed = generator.initial_seed()
    assert (got - want).abs().max() <= (1e-12 if double else 1e-5), seed
    assert found.keys() == expected.keys()
    assert all("lora" in name for name in found) == (mode == "lora")
    tolerance = 1e-10 if double else 2e-5
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in found.items():
        difference = (gradient - expected[name]).norm()
        assert difference <= tolerance * max(expected[name].norm(), 1e-2 * scale), (name, seed)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_sampled_logprobs_are_those_of_the_update(family_model, mode, generator):
    policy = family_model.policy(**MODES[mode]).eval()
    perturb_adapter(policy)
    policy.network().end_ids = torch.arange(0, policy.network().vocab_size, 25)
    engine = make_engine(policy, max_rows=7)
    prompts = engine.encode(family_model.samples(generator, 3))
    requests = make_requests(prompts, [SamplingParams(temperature=0.7)] * 4, 40)
    completions = [result.completions for result in engine.generate(requests)]
    assert len({c.num_tokens for group in completions for c in group}) > 3, "ragged"
    sampled, mask = sampled_logprobs(completions), mask_of(completions)
    updated = policy.train().logprobs(prompts, completions, 0.7).logprobs
    seed = generator.initial_seed()
    assert (updated[mask] - sampled).abs().max() <= 2e-5, seed
    plain = torch.cat(plain_logprobs(policy, prompts, completions, 0.7))
    assert (plain - sampled).abs().max() <= 2e-5, seed


def test_bfloat16_is_no_further_from_float32_than_plain_forwards_are(family_model, generator):
    policy = family_model.policy().eval()
    for parameter in policy.parameters():
        parameter.data = parameter.data.bfloat16().float()
    lengths = torch.randint(20, 61, (3, 6), generator=generator).tolist()
    completions = random_completions(policy, lengths, generator)
    samples, mask = family_model.samples(generator, 3), mask_of(completions)

    def distances(low: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, low):
            prompts = policy.network().encode(samples)
            shared = policy.logprobs(prompts, completions, 1.0).logprobs[mask]
            return shared, torch.cat(plain_logprobs(policy, prompts, completions))

    exact, _ = distances(low=False)
    shared, naive = distances(low=True)
    ours, theirs = (shared - exact).abs().mean(), (naive - exact).abs().mean()
    seed = generator.initial_seed()
    assert theirs > 1e-3, "bfloat16 must make a difference, or the test shows nothing"
    assert ours <= 1.25 * theirs, (float(ours), float(theirs), seed)


def test_entropy_is_that_of_the_plain_distribution(family_model, generator):
    policy = family_model.policy().eval()
    prompts = policy.network().encode(family_model.samples(generator, 2))
    completions = random_completions(policy, [[3, 9], [1, 4]], generator)
    got = policy.logprobs(prompts, completions, 1.3).entropy[mask_of(completions)]
    plain = torch.cat(plain_distributions(policy, prompts, completions, 1.3))
    finite = plain.masked_fill(plain.isinf(), 0.0)
    want = -(plain.exp() * finite).sum(-1)
    assert (got - want).abs().max() <= 1e-5, generator.initial_seed()
