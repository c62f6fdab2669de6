"""The objectives against a plain reading of the papers' formulas, token by token."""

import math

import pytest
import torch

from vrts.models.grpo import clipped_surrogate, group_advantages, kl_k3, masked_mean
from vrts.models.objectives import DAPO, GRPO, Completions, DrGRPO, Objective

MAX_NEW_TOKENS = 9


def plain_advantages(rewards: list[float], num_generations: int, scale: bool) -> list[float]:
    out = []
    for start in range(0, len(rewards), num_generations):
        group = rewards[start : start + num_generations]
        mean = sum(group) / len(group)
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
        out += [(r - mean) / (std + 1e-4 if scale else 1.0) for r in group]
    return out


def plain_loss(objective: Objective, c: Completions) -> torch.Tensor:
    """Loops over completions and tokens; no vectorised step in common with the package."""
    sums = []
    for i in range(len(c.advantages)):
        tokens = []
        for t in range(c.mask.shape[1]):
            if not c.mask[i, t]:
                continue
            ratio = torch.exp(c.logprobs[i, t] - c.old_logprobs[i, t])
            low, high = 1 - objective.clip_low, 1 + objective.clip_high
            bounded = torch.clamp(ratio, low, high)
            a = c.advantages[i]
            token = -torch.min(ratio * a, bounded * a)
            if objective.beta > 0:
                gap = c.reference_logprobs[i, t] - c.logprobs[i, t]
                token = token + objective.beta * (torch.exp(gap) - gap - 1)
            tokens.append(token)
        sums.append((sum(tokens), len(tokens)))
    if isinstance(objective, DrGRPO):
        return sum(s for s, _ in sums) / (len(sums) * c.max_new_tokens)
    if isinstance(objective, DAPO):
        return sum(s for s, _ in sums) / sum(n for _, n in sums)
    return sum(s / n for s, n in sums) / len(sums)


def random_completions(seed: int, reference: bool) -> Completions:
    g = torch.Generator().manual_seed(seed)
    N, L = 8, 7
    lengths = torch.randint(1, L + 1, (N,), generator=g)
    mask = torch.arange(L) < lengths[:, None]
    logprobs = -torch.rand(N, L, generator=g, dtype=torch.float64) * 3

    def near() -> torch.Tensor:
        return logprobs.detach() + 0.5 * torch.randn(N, L, generator=g, dtype=torch.float64)

    return Completions(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=near(),
        reference_logprobs=near() if reference else None,
        advantages=torch.randn(N, generator=g, dtype=torch.float64),
        mask=mask,
        max_new_tokens=MAX_NEW_TOKENS,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("cls", [GRPO, DrGRPO, DAPO])
def test_loss_and_gradient_equal_the_plain_formula(cls, beta, seed):
    objective = cls(beta=beta)
    c = random_completions(seed, reference=beta > 0)
    loss = objective(c, reduce=lambda x: x).loss
    expected = plain_loss(objective, c)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (got,) = torch.autograd.grad(loss, c.logprobs)
    (want,) = torch.autograd.grad(expected, c.logprobs)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
    assert (got[~c.mask] == 0).all()


@pytest.mark.parametrize("cls", [GRPO, DrGRPO, DAPO])
def test_processes_with_unequal_tokens_average_to_the_whole_batch(cls):
    """Mean of two processes' losses, each with the reduced divisor, is the batch's loss."""
    objective, c = cls(beta=0.0), random_completions(5, reference=False)
    whole = objective(c, reduce=lambda x: x).loss
    halves = [
        Completions(
            c.logprobs[rows], c.old_logprobs[rows], None, c.advantages[rows], c.mask[rows], 9
        )
        for rows in (slice(0, 2), slice(2, 8))
    ]
    divisors = [objective.token_weights(h.mask, 9)[1] for h in halves]
    mean = torch.stack(divisors).mean()
    losses = [objective(h, reduce=lambda _: mean).loss for h in halves]
    torch.testing.assert_close(sum(losses) / 2, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_equal_the_plain_formula(scale):
    rewards = [1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0]
    got = group_advantages(torch.tensor(rewards), 4, scale=scale)
    torch.testing.assert_close(got, torch.tensor(plain_advantages(rewards, 4, scale)))
    assert got[4:8].tolist() == [0.0] * 4


def test_objectives_differ_in_scaling_advantages():
    rewards = torch.tensor([0.0, 1.0])
    assert GRPO().advantages(rewards, 2)[1] != DrGRPO().advantages(rewards, 2)[1]


def test_clip_share_counts_held_back_tokens_only():
    logprobs = torch.tensor([[0.5, -0.5, 0.0]])
    old = torch.zeros(1, 3)
    losses, clipped = clipped_surrogate(logprobs, old, torch.tensor([1.0]), 0.2, 0.2)
    assert clipped.tolist() == [[True, False, False]]
    assert losses[0, 0] == pytest.approx(-1.2)
    _, clipped = clipped_surrogate(logprobs, old, torch.tensor([-1.0]), 0.2, 0.2)
    assert clipped.tolist() == [[False, True, False]]


def test_kl_is_zero_at_equality_and_positive_elsewhere():
    logprobs = -torch.rand(4, 5)
    assert (kl_k3(logprobs, logprobs) == 0).all()
    assert (kl_k3(logprobs, logprobs - 0.3) > 0).all()


def test_masked_mean_ignores_what_does_not_count():
    values = torch.tensor([1.0, 3.0, float("nan")])
    assert masked_mean(values, torch.tensor([True, True, False])) == 2
    assert masked_mean(values, torch.tensor([False] * 3)) == 0
