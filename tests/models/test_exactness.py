"""The shared pass against plain forwards of every completion, on other random inputs each run."""

import os

import pytest
import torch
from torch import nn

from tests.models.conftest import make_sample
from tests.models.engines.running import make_engine, make_requests, mask_of, sampled_logprobs
from tests.models.naive import (
    keep_float64,
    plain_distributions,
    plain_logprobs,
    random_completions,
    random_samples,
    to_float64,
)
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.vlm.loading import Lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import SamplingParams

OPTIONS = {
    "full": {},
    "untied": {},
    "vision": {"freeze_vision": False},
    "lora": {"lora": Lora(rank=4, alpha=8)},
}
PAIRWISE = [
    ("full", True, torch.float32),
    ("full", False, torch.float64),
    ("untied", False, torch.float32),
    ("untied", True, torch.float64),
    ("vision", True, torch.float32),
    ("vision", False, torch.float64),
    ("lora", False, torch.float32),
    ("lora", True, torch.float64),
]
"""What is trained, whether with checkpointing, and in what: every two of them come together."""


@pytest.fixture
def seed() -> int:
    """Another one in each run; assertions name it."""
    return int.from_bytes(os.urandom(4), "big")


def random_batch(policy: TransformersPolicy, generator: torch.Generator, max_length: int = 12):
    """One to three questions, G of one to four; those of the last question have one token."""
    B, G = (int(torch.randint(1, n + 1, (), generator=generator)) for n in (3, 4))
    prompts = policy.network().encode(random_samples(generator, B + 1))
    lengths = torch.randint(1, max_length + 1, (B, G), generator=generator).tolist()
    return prompts, random_completions(policy, [*lengths, [1] * G], generator)


def make_policy(load_policy, mode: str, dtype: torch.dtype, **options) -> TransformersPolicy:
    policy = load_policy(**OPTIONS[mode], **options).train()
    perturb_adapter(policy)
    if mode == "untied":
        head = policy.base.lm_head
        head.weight = nn.Parameter(head.weight.detach().flip(0).clone())
    return to_float64(policy) if dtype == torch.float64 else policy


def gradients(policy: TransformersPolicy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("mode", "checkpointing", "dtype"), PAIRWISE)
def test_shared_pass_equals_plain_forwards(
    load_policy, mode, checkpointing, dtype, seed, monkeypatch
):
    generator = torch.Generator().manual_seed(seed)
    policy = make_policy(load_policy, mode, dtype, gradient_checkpointing=checkpointing)
    double = dtype == torch.float64
    temperature = float(0.5 + torch.rand((), generator=generator))
    if double:
        keep_float64(monkeypatch)
    prompts, completions = random_batch(policy, generator)
    mask = mask_of(completions)
    # Random weights of each token, so that a wrong gradient cannot cancel out.
    weights = torch.randn(mask.shape, generator=generator, dtype=dtype)[mask]

    scores = policy.logprobs(prompts, completions, temperature)
    assert scores.logprobs.dtype == dtype
    assert not scores.logprobs[~mask].any()
    got = scores.logprobs[mask]
    found = gradients(policy, (got * weights).sum())

    distributions = torch.cat(plain_distributions(policy, prompts, completions, temperature))
    ids = torch.cat([c.token_ids for group in completions for c in group])
    want = distributions.gather(-1, ids[:, None])[:, 0]
    expected = gradients(policy, (want * weights).sum())

    assert (got - want).abs().max() <= (1e-12 if double else 1e-5), seed
    finite = distributions.masked_fill(distributions.isinf(), 0.0)
    entropy = -(distributions.exp() * finite).sum(-1)
    assert (scores.entropy[mask] - entropy).abs().max() <= (1e-11 if double else 1e-5), seed
    assert not scores.entropy.requires_grad

    assert found.keys() == expected.keys()
    assert any("visual" in name for name in found) == (mode == "vision")
    assert all("lora" in name for name in found) == (mode == "lora")
    assert any("lm_head" in name for name in found) == (mode == "untied")
    tolerance = 1e-10 if double else 1e-5
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in found.items():
        difference = (gradient - expected[name]).norm()
        assert difference <= tolerance * max(expected[name].norm(), 1e-2 * scale), (name, seed)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_is_no_further_from_float32_than_plain_forwards_are(load_policy, how, seed):
    """The same weights in each: rounded to bfloat16 before anything is compared."""
    generator = torch.Generator().manual_seed(seed)
    policy = load_policy().eval()
    for parameter in policy.parameters():
        parameter.data = parameter.data.bfloat16().float()
    lengths = torch.randint(20, 61, (3, 6), generator=generator).tolist()
    completions = random_completions(policy, lengths, generator)
    samples = random_samples(generator, 3)
    mask = mask_of(completions)
    assert mask.sum() >= 360

    def compare(low: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, low and how == "autocast"):
            prompts = policy.network().encode(samples)
            shared = policy.logprobs(prompts, completions, 1.0).logprobs[mask]
            return shared, torch.cat(plain_logprobs(policy, prompts, completions))

    exact, _ = compare(low=False)
    if how == "weights":
        policy.bfloat16()
    shared, naive = compare(low=True)
    ours, theirs = (shared - exact).abs().mean(), (naive - exact).abs().mean()
    assert theirs > 1e-3, "bfloat16 must make a difference, or the test shows nothing"
    assert ours <= 1.25 * theirs, (float(ours), float(theirs), seed)


def test_logits_exist_at_completion_positions_alone_and_in_chunks(load_policy, seed):
    policy = load_policy(head_chunk_size=7)
    generator = torch.Generator().manual_seed(seed)
    prompts, completions = random_batch(policy, generator, max_length=20)
    rows: list[int] = []
    policy.base.lm_head.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    with torch.no_grad():
        policy.logprobs(prompts, completions, 1.0)
    assert sum(rows) == int(mask_of(completions).sum()), seed
    assert max(rows) <= 7, seed


def test_empty_completions_are_scored(load_policy, seed):
    """Every completion ends with its first token, so that prompts alone are forwarded."""
    policy = load_policy().eval()
    generator = torch.Generator().manual_seed(seed)
    prompts = policy.network().encode(random_samples(generator, 2))
    completions = random_completions(policy, [[1] * 3] * 2, generator)
    got = policy.logprobs(prompts, completions, 1.0).logprobs
    assert got.shape == (6, 1)
    want = torch.stack(plain_logprobs(policy, prompts, completions))
    assert (got - want).abs().max() <= 1e-5, seed


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_the_update_and_of_plain_forwards(
    load_policy, mode, temperature, seed
):
    """Clips far longer than high or wide; ragged prompts; finished rows leave on the way."""
    policy = make_policy(load_policy, mode, torch.float32).eval()
    vocab = policy.base.config.text_config.vocab_size
    policy.network().end_ids = torch.arange(0, vocab, 25)  # every 25th token, on average
    samples = [
        make_sample(seed % 1000, 40, (56, 56), "What colour is the circle after seven seconds?"),
        make_sample(seed % 1000 + 1, 24, (56, 84), "Which?"),
        make_sample(seed % 1000 + 2, 64, (84, 56), "What does the square do, and where to?"),
    ]
    engine = make_engine(policy)
    prompts = engine.encode(samples)
    for prompt in prompts:
        video = prompt.positions[:, prompt.input_ids == policy.base.config.video_token_id]
        time, height, width = (video.max(1).values - video.min(1).values).tolist()
        assert time > 20 * max(height, width), "or errors of position would not show"

    requests = make_requests(prompts, [SamplingParams(temperature=temperature)] * 5, 64, seed)
    completions = [result.completions for result in engine.generate(requests)]
    count = engine.count
    assert count.rows < 15 * count.steps, "no rows were dropped: the test shows nothing"
    assert len({c.num_tokens for group in completions for c in group}) > 3, "ragged"

    sampled, mask = sampled_logprobs(completions), mask_of(completions)
    updated = policy.train().logprobs(prompts, completions, temperature).logprobs
    assert updated.requires_grad
    assert (updated[mask] - sampled).abs().max() <= 2e-5, seed
    plain = torch.cat(plain_logprobs(policy, prompts, completions, temperature))
    assert (plain - sampled).abs().max() <= 2e-5, seed
