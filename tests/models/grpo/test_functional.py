"""The objectives against a plain reading of the papers' formulas, token by token."""

import contextlib
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.models.grpo.advantages import BatchScaled, Centred, GroupScaled, LeaveOneOut
from vrts.models.grpo.functional import MAX_KL, MAX_LOG_RATIO, clipped_surrogate, kl_k3
from vrts.models.grpo.objectives import (
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    RLOO,
    DrGRPO,
    LossInputs,
    LossTerms,
    Objective,
)

MAX_NEW_TOKENS = 9
ALL = [GRPO, DrGRPO, DAPO, GSPO, CISPO, RLOO]


def alone(x: torch.Tensor) -> torch.Tensor:
    """The mean over one process."""
    return x


def step(objective: Objective, c: LossInputs) -> LossTerms:
    """The terms of completions that are all of a step."""
    return objective(c, objective.divisor(c.mask, c.max_new_tokens))


def plain_loss(
    objective: Objective, c: LossInputs, weights: list[list[float]] | None = None
) -> torch.Tensor:
    """Loops over completions and tokens; no vectorised step in common with the package.

    Args:
        objective: what is computed.
        c: of these completions.
        weights: of an importance correction, for each completion's tokens.
    """
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    sums = []
    for i in range(len(c.advantages)):
        a = c.advantages[i]
        kept = [t for t in range(c.mask.shape[1]) if c.mask[i, t]]
        gaps = [c.logprobs[i, t] - c.old_logprobs[i, t] for t in kept]
        tokens = []
        for t, gap in zip(kept, gaps, strict=True):
            ratio = torch.exp(gap)
            if isinstance(objective, GSPO):
                ratio = torch.exp(sum(gaps) / len(gaps))
            if isinstance(objective, CISPO):
                weight = min(max(ratio.item(), low), high)
                token = -weight * a * c.logprobs[i, t]
            else:
                token = -torch.min(ratio * a, torch.clamp(ratio, low, high) * a)
            if weights is not None:
                token = weights[i][t] * token
            if objective.beta > 0:
                kl = c.reference_logprobs[i, t] - c.logprobs[i, t]
                # from 10 nats on a token's estimate counts as 10, without a gradient
                token = token + objective.beta * torch.clamp(torch.exp(kl) - kl - 1, max=10.0)
            tokens.append(token)
        sums.append((sum(tokens), len(tokens)))
    if isinstance(objective, DrGRPO):
        return sum(s for s, _ in sums) / (len(sums) * c.max_new_tokens)
    if isinstance(objective, DAPO):
        return sum(s for s, _ in sums) / sum(n for _, n in sums)
    if isinstance(objective, RLOO):
        return sum(s for s, _ in sums) / len(sums)
    return sum(s / n for s, n in sums if n) / len(sums)


def random_completions(seed: int, reference: bool, spread: float = 0.5) -> LossInputs:
    g = torch.Generator().manual_seed(seed)
    N, L = 8, 7
    lengths = torch.randint(1, L + 1, (N,), generator=g)
    mask = torch.arange(L) < lengths[:, None]
    logprobs = -torch.rand(N, L, generator=g, dtype=torch.float64) * 3

    def near() -> torch.Tensor:
        return logprobs.detach() + spread * torch.randn(N, L, generator=g, dtype=torch.float64)

    return LossInputs(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=near(),
        reference_logprobs=near() if reference else None,
        advantages=torch.randn(N, generator=g, dtype=torch.float64),
        mask=mask,
        max_new_tokens=MAX_NEW_TOKENS,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("cls", ALL)
def test_loss_and_gradient_equal_the_plain_formula(cls, beta, seed):
    objective = cls(beta=beta)
    # GSPO's clips are so narrow that only nearby policies are inside of them
    c = random_completions(seed, beta > 0, 1e-3 if cls is GSPO else 0.5)
    loss = step(objective, c).loss
    expected = plain_loss(objective, c)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (got,) = torch.autograd.grad(loss, c.logprobs)
    (want,) = torch.autograd.grad(expected, c.logprobs)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
    assert (got[~c.mask] == 0).all()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("cls", ALL)
def test_any_division_of_a_step_gives_its_loss_and_gradient(cls, data):
    """Micro-batches on one and more ranks, which average their gradients; ragged lengths."""
    beta = data.draw(st.sampled_from([0.0, 0.1]))
    objective, c = cls(beta=beta), random_completions(data.draw(st.integers(0, 99)), beta > 0)
    N = len(c.mask)
    cuts = sorted(data.draw(st.sets(st.integers(1, N - 1))))
    bounds = list(zip([0, *cuts], [*cuts, N], strict=True))
    num_ranks = data.draw(st.integers(1, 3))
    rank_of = [data.draw(st.integers(0, num_ranks - 1)) for _ in bounds]
    full = step(objective, c)
    (want,) = torch.autograd.grad(full.loss, c.logprobs)
    parts = [
        dataclasses.replace(
            c,
            **{
                name: value[start:end]
                for name in (
                    "logprobs", "old_logprobs", "reference_logprobs", "advantages", "mask"
                )
                if (value := getattr(c, name)) is not None
            },
        )
        for start, end in bounds
    ]  # fmt: skip
    divisors = torch.zeros(num_ranks)
    for rank, part in zip(rank_of, parts, strict=True):
        divisors[rank] += objective.divisor(part.mask, c.max_new_tokens)
    found = [objective(part, divisors.mean()) for part in parts]
    loss = torch.stack([terms.loss for terms in found]).sum() / num_ranks
    (got,) = torch.autograd.grad(loss, c.logprobs)
    torch.testing.assert_close(loss, full.loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    first, *others = found
    for other in others:
        first.add(other)
    for name, value in full.metrics().items():
        if name != "loss":
            torch.testing.assert_close(first.metrics()[name], value, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("cls", ALL)
def test_masked_completions_have_neither_loss_nor_gradient(cls):
    c = random_completions(3, False, 1e-4)
    c.mask[2] = False
    objective = cls(beta=0.0)
    loss = step(objective, c).loss
    torch.testing.assert_close(loss, plain_loss(objective, c))
    (gradient,) = torch.autograd.grad(loss, c.logprobs)
    assert (gradient[2] == 0).all()
    assert gradient[3].abs().sum() > 0


@pytest.mark.parametrize("cls", ALL)
def test_the_first_update_is_reinforce(cls):
    """At ratio 1 every objective's gradient is minus the advantage, times the token's weight."""
    c = random_completions(4, reference=False)
    c = dataclasses.replace(c, old_logprobs=c.logprobs.detach())
    objective = cls(beta=0.0)
    terms = step(objective, c)
    (got,) = torch.autograd.grad(terms.loss, c.logprobs)
    weights, divisor = objective.token_weights(c.mask, MAX_NEW_TOKENS)
    torch.testing.assert_close(got, -c.advantages[:, None] * weights / divisor)
    assert terms.clipped == 0


def test_cispo_keeps_the_gradient_of_clipped_tokens_and_ppo_does_not():
    c = LossInputs(
        logprobs=torch.tensor([[0.0, 0.0]], requires_grad=True),
        old_logprobs=torch.tensor([[-5.0, 0.0]]),
        reference_logprobs=None,
        advantages=torch.tensor([1.0]),
        mask=torch.ones(1, 2, dtype=torch.bool),
        max_new_tokens=2,
    )
    for objective, expected in ((CISPO(clip_high=1.0), -1.0), (DAPO(), 0.0)):
        terms = step(objective, c)
        (gradient,) = torch.autograd.grad(terms.loss, c.logprobs)
        assert gradient[0, 0] == pytest.approx(expected)
        assert terms.clipped == 0.5 * terms.num_tokens
        assert terms.metrics()["clip_ratio"] == 0.5


def plain_advantages(rewards: list[float], num_generations: int, kind: str) -> list[float]:
    everything = sum(rewards) / len(rewards)
    batch_std = math.sqrt(sum((r - everything) ** 2 for r in rewards) / len(rewards))
    out = []
    for start in range(0, len(rewards), num_generations):
        group = rewards[start : start + num_generations]
        mean = sum(group) / len(group)
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
        for i, r in enumerate(group):
            others = group[:i] + group[i + 1 :]
            out.append(
                {
                    "group": (r - mean) / (std + 1e-4),
                    "batch": (r - mean) / (batch_std + 1e-4),
                    "centred": r - mean,
                    "leave one out": r - sum(others) / len(others),
                }[kind]
            )
    return out


KINDS = {
    "group": GroupScaled,
    "batch": BatchScaled,
    "centred": Centred,
    "leave one out": LeaveOneOut,
}


def random_rewards(seed: int) -> torch.Tensor:
    """Five groups of four; the second one agrees on a value that floats cannot hold."""
    rewards = torch.randn(20, generator=torch.Generator().manual_seed(seed)) + 2
    rewards[4:8] = 0.1
    return rewards


def grouped(rewards: torch.Tensor) -> torch.Tensor:
    """``[B, 4]``, also of none."""
    return rewards.view(len(rewards) // 4, 4)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_advantages_equal_the_plain_formula(kind, seed):
    rewards = random_rewards(seed)
    got = KINDS[kind]()(grouped(rewards), alone).flatten()
    want = torch.tensor(plain_advantages(rewards.tolist(), 4, kind))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert got[4:8].tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [(4, 16), (20, 0), (8, 12)])
def test_advantages_of_two_processes_are_those_of_one(kind, shares):
    """The processes run in turn; each takes the means that the other's values complete."""
    rewards = random_rewards(7)
    parts = rewards.split(list(shares))
    advantages = KINDS[kind]()
    done: list[torch.Tensor] = []
    while True:
        pending: list[torch.Tensor] = []

        def run(part: torch.Tensor, pending: list[torch.Tensor] = pending) -> torch.Tensor:
            answers = iter(done)

            def all_reduce_mean(x: torch.Tensor) -> torch.Tensor:
                answer = next(answers, None)
                if answer is None:
                    pending.append(x)
                    raise StopAsyncIteration
                return answer

            return advantages(grouped(part), all_reduce_mean)

        results = []
        for part in parts:
            with contextlib.suppress(StopAsyncIteration):
                results.append(run(part))
        if not pending:
            break
        assert len(pending) == 2, "a process did not take part"
        done.append(sum(pending) / 2)
    torch.testing.assert_close(torch.cat(results), advantages(grouped(rewards), alone))
    assert len(done) == (2 if kind == "batch" else 0)


def test_objectives_have_the_advantages_of_their_papers_and_take_others():
    kinds = {cls: type(cls().advantages) for cls in ALL}
    assert kinds[DrGRPO] is Centred
    assert kinds[RLOO] is LeaveOneOut
    assert {kinds[cls] for cls in (GRPO, DAPO, GSPO, CISPO)} == {GroupScaled}
    for cls in ALL:
        assert type(cls(advantages=BatchScaled()).advantages) is BatchScaled


def test_clip_ratio_counts_held_back_tokens_only():
    log_ratios = torch.tensor([[0.5, -0.5, 0.0]])
    losses, clipped = clipped_surrogate(log_ratios, torch.tensor([1.0]), 0.2, 0.2)
    assert clipped.tolist() == [[True, False, False]]
    assert losses[0, 0] == pytest.approx(-1.2)
    _, clipped = clipped_surrogate(log_ratios, torch.tensor([-1.0]), 0.2, 0.2)
    assert clipped.tolist() == [[False, True, False]]


def test_kl_is_zero_at_equality_and_positive_elsewhere():
    logprobs = -torch.rand(4, 5)
    assert (kl_k3(logprobs, logprobs) == 0).all()
    assert (kl_k3(logprobs, logprobs - 0.3) > 0).all()


@pytest.mark.parametrize("gap", [20.0, 89.0, 500.0, -20.0, -89.0, -500.0])
@pytest.mark.parametrize("cls", ALL)
def test_a_far_policy_gives_a_finite_loss_and_gradient(cls, gap):
    """float32, where the exponential of 89 is infinite; one token of four is far."""
    logprobs = torch.full((2, 2), -1.0)
    logprobs[0, 0] += gap
    logprobs.requires_grad_()
    old = torch.full((2, 2), -1.0)
    mask = torch.ones(2, 2, dtype=torch.bool)
    c = LossInputs(logprobs, old, old - gap / 2, torch.tensor([1.0, -1.0]), mask, 2)
    terms = step(cls(beta=0.04), c)
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    assert math.isfinite(terms.loss)
    assert gradient.isfinite().all()
    assert abs(terms.loss) < 1e4 or abs(gap) == 20
    assert 0 <= terms.metrics()["kl"] <= MAX_KL
    assert terms.clamped > 0


def test_the_clamp_ratio_counts_what_is_beyond_the_bounds():
    logprobs = torch.tensor([[-1.0, -1.0, -1.0, -1.0]], requires_grad=True)
    mask = torch.ones(1, 4, dtype=torch.bool)
    far = MAX_LOG_RATIO + 1
    old = torch.tensor([[-1.0, -1.0 - far, -1.0, -1.0]])
    reference = torch.tensor([[-1.0, -1.0, 1.5, 1.0]])  # k3 of 2.5 is 8.7, of 2.0 it is 4.4
    c = LossInputs(logprobs, old, reference, torch.tensor([1.0]), mask, 4)
    assert step(GRPO(beta=0.1), c).metrics()["clamp_ratio"] == 0.25
    near = dataclasses.replace(c, reference_logprobs=reference + torch.tensor([0, 0, 0.5, 0]))
    assert step(GRPO(beta=0.1), near).metrics()["clamp_ratio"] == 0.5
    assert step(GRPO(beta=0.0), near).metrics()["clamp_ratio"] == 0.25


def test_within_the_bounds_nothing_changes():
    d = torch.linspace(-5, 2, 50, dtype=torch.float64)
    torch.testing.assert_close(kl_k3(torch.zeros_like(d), d), d.exp() - d - 1)
