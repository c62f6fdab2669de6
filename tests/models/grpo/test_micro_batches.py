"""Micro-batches, and the correction of what an engine's log-probs differ by."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.grpo.test_functional import ALL, MAX_NEW_TOKENS, plain_loss
from vrts.models.grpo.functional import importance_weights
from vrts.models.grpo.micro_batches import ImportanceCorrection, MicroBatch
from vrts.models.grpo.objectives import GSPO, Objective
from vrts.models.grpo.rollouts import Group
from vrts.types import Completion, InputError

G = 4
CPU = torch.device("cpu")
CORRECTIONS = [
    ImportanceCorrection(level="token", cap=1.1),
    ImportanceCorrection(level="sequence", cap=1.5),
    ImportanceCorrection(cap=math.inf),
]


class Step:
    """Groups with random completions of 1 to 7 tokens, sampled by an engine that is off.

    Args:
        seed: of all numbers.
        num_groups: how many.
        gap: standard deviation of how far the engine's log-probs are off, in nats.
        drift: that of how far earlier updates have moved the policy.
    """

    def __init__(self, seed: int, num_groups: int = 3, gap: float = 0.3, drift: float = 0.2):
        g = torch.Generator().manual_seed(seed)
        self.old, self.now, self.reference, self.groups = [], [], [], []
        for _ in range(num_groups):
            lengths = torch.randint(1, 8, (G,), generator=g).tolist()
            old = [-3 * torch.rand(length, generator=g) for length in lengths]
            self.old += old
            self.now += [x + drift * torch.randn(len(x), generator=g) for x in old]
            self.reference += [x + 0.5 * torch.randn(len(x), generator=g) for x in old]
            completions = tuple(
                Completion(
                    "x" * len(x),
                    len(x),
                    MAX_NEW_TOKENS,
                    finished=bool(torch.rand((), generator=g) < 0.8),
                    logprobs=x + gap * torch.randn(len(x), generator=g),
                )
                for x in old
            )
            advantages = torch.randn(G, generator=g)
            self.groups.append(Group(None, None, completions, {}, advantages, advantages))
        self.rows = [c for group in self.groups for c in group.completions]
        for x in self.now:
            x.requires_grad_()

    def inputs(self, start=0, end=None, correction=None, mask_truncated=False):
        """The micro-batch of some groups in the second update, and its inputs."""
        micro_batch = MicroBatch(self.groups[start:end], CPU, mask_truncated, correction)
        rows = slice(start * G, None if end is None else end * G)

        def padded(values):
            return torch.nn.utils.rnn.pad_sequence(values[rows], batch_first=True)

        micro_batch.reference_logprobs = padded(self.reference)
        micro_batch.inputs(padded(self.old), MAX_NEW_TOKENS)  # the first update
        return micro_batch, micro_batch.inputs(padded(self.now), MAX_NEW_TOKENS)

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.cat(torch.autograd.grad(loss, self.now, retain_graph=True))

    def plain_weights(self, correction: ImportanceCorrection) -> list[list[float]]:
        """By the formula, number by number."""
        weights = []
        for c, old in zip(self.rows, self.old, strict=True):
            gaps = [a - b for a, b in zip(old.tolist(), c.logprobs.tolist(), strict=True)]
            if correction.level == "sequence":
                gaps = [sum(gaps)] * len(gaps)
            weights.append([min(math.exp(gap), correction.cap) for gap in gaps])
        return weights


def loss_of(objective: Objective, inputs) -> torch.Tensor:
    return objective(inputs, objective.divisor(inputs.mask, MAX_NEW_TOKENS)).loss


def test_completions_are_padded_and_truncated_ones_left_out():
    step = Step(3, num_groups=2)
    micro_batch, inputs = step.inputs()
    lengths = [c.num_tokens for c in step.rows]
    assert micro_batch.mask.sum(1).tolist() == inputs.mask.sum(1).tolist() == lengths
    assert micro_batch.advantages.tolist() == [
        a for group in step.groups for a in group.advantages.tolist()
    ]
    assert inputs.importance_weights is None
    assert micro_batch.sampling_sums.keys() == {"sampling/logprob_diff"}
    expected = sum(
        (old - c.logprobs).abs().sum() for old, c in zip(step.old, step.rows, strict=True)
    )
    assert micro_batch.sampling_sums["sampling/logprob_diff"] == pytest.approx(float(expected))
    masked, _ = step.inputs(mask_truncated=True)
    assert {c.finished for c in step.rows} == {True, False}
    assert masked.mask.sum(1).tolist() == [c.finished and c.num_tokens for c in step.rows]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("cls", ALL)
def test_corrected_loss_and_gradient_equal_the_plain_formula(cls, beta, correction, seed):
    objective = cls(beta=beta)
    # GSPO's clips are so narrow that only nearby policies are inside of them
    step = Step(seed, drift=1e-4 if cls is GSPO else 0.2)
    micro_batch, inputs = step.inputs(correction=correction)
    weights = step.plain_weights(correction)
    loss, expected = loss_of(objective, inputs), plain_loss(objective, inputs, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    found, want = step.gradient(loss), step.gradient(expected)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, step.gradient(plain_loss(objective, inputs)), rtol=0.01)
    every = [w for row in weights for w in row]
    sums = micro_batch.sampling_sums
    assert sums["sampling/importance_ratio_mean"] == pytest.approx(sum(every), rel=1e-5)
    num_capped = sum(w == correction.cap for w in every)
    assert sums["sampling/importance_ratio_capped"] == num_capped
    assert num_capped > 0 or correction.cap == math.inf


@settings(max_examples=5, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("correction", CORRECTIONS[:2])
@pytest.mark.parametrize("cls", ALL)
def test_any_division_into_micro_batches_gives_the_same(cls, correction, data):
    step = Step(data.draw(st.integers(0, 99)), num_groups=5)
    mask_truncated = data.draw(st.booleans())
    objective = cls(beta=0.1)
    options = {"correction": correction, "mask_truncated": mask_truncated}
    one, inputs = step.inputs(**options)
    divisor = objective.divisor(inputs.mask, MAX_NEW_TOKENS)
    want = objective(inputs, divisor).loss
    cuts = sorted(data.draw(st.sets(st.integers(1, 4))))
    parts = [
        step.inputs(start, end, **options)
        for start, end in zip([0, *cuts], [*cuts, 5], strict=True)
    ]
    found = torch.stack([objective(inputs, divisor).loss for _, inputs in parts]).sum()
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(step.gradient(found), step.gradient(want), rtol=1e-6, atol=1e-6)
    for name, value in one.sampling_sums.items():
        total = sum(float(micro_batch.sampling_sums[name]) for micro_batch, _ in parts)
        assert total == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cls", ALL)
def test_an_engine_that_agrees_is_not_corrected_to_the_bit(cls, level):
    step = Step(5, gap=0.0)
    objective = cls(beta=0.1)
    _, off = step.inputs()
    micro_batch, on = step.inputs(correction=ImportanceCorrection(cap=1.0, level=level))
    assert (on.importance_weights == 1).all()
    assert torch.equal(loss_of(objective, on), loss_of(objective, off))
    assert torch.equal(
        step.gradient(loss_of(objective, on)), step.gradient(loss_of(objective, off))
    )
    sums = micro_batch.sampling_sums
    assert sums["sampling/importance_ratio_mean"] == micro_batch.mask.sum()
    assert sums["sampling/importance_ratio_capped"] == 0


def test_log_probs_that_are_far_apart_give_finite_weights():
    log_ratios = torch.tensor([[500.0, -500.0, 3.0], [500.0, 500.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights, capped = importance_weights(log_ratios, mask, 2.0, "token")
    assert weights.tolist() == [[2, 0, 2], [2, 1, 1]]
    assert capped.tolist() == [[True, False, True], [True, False, False]]
    assert not weights.requires_grad
    weights, capped = importance_weights(log_ratios, mask, 2.0, "sequence")
    assert weights.tolist() == [[2] * 3, [2] * 3]
    assert capped.all()


def test_an_engine_without_log_probs_is_refused_for_a_correction_alone():
    step = Step(0, num_groups=1)
    (group,) = step.groups
    group.completions = tuple(replace(c, logprobs=None) for c in group.completions)
    with pytest.raises(InputError, match=r"model\.importance_correction needs the log-probs"):
        step.inputs(correction=ImportanceCorrection())
    micro_batch, inputs = step.inputs()
    assert loss_of(ALL[0](), inputs).isfinite()
    assert micro_batch.sampling_sums["sampling/logprob_diff"].isnan(), "it is not known"


@pytest.mark.parametrize("cap", [0.99, 0.0, -1.0, math.nan])
def test_a_cap_below_one_is_refused(cap):
    with pytest.raises(InputError, match="cap must be 1 or more"):
        ImportanceCorrection(cap)
