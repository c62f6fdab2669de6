"""What a rollout tells about training, by hand, and the log-probs that its updates share."""

import pytest
import torch
from vrts.models.experience import Experience
from vrts.models.groups import Groups

from tests.callbacks.plugins import ask
from vrts.models.policy import Prompts
from vrts.types import Rollout, Sample

LENGTHS = (3, 1, 4, 4)
"""Of four completions, two for each of two questions."""


@pytest.fixture
def experience() -> Experience:
    mask = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    rollout = Rollout(
        completion_ids=torch.ones(4, 4, dtype=torch.int64),
        completion_mask=mask,
        logprobs=torch.zeros(4, 4),
        finished=torch.tensor([True, True, True, False]),
        texts=("a", "b", "c", "d"),
    )
    questions = (ask("p", "v.mp4"), ask("q", "v.mp4"))
    groups = Groups(
        samples=tuple(Sample(q) for q in questions),
        rollout=rollout,
        rewards={
            "accuracy": torch.tensor([1.0, 0.0, 1.0, 1.0]),
            "format": torch.tensor([1.0, 1.0, 0.0, 0.0]),
        },
        total=torch.tensor([1.5, 0.5, 1.0, 1.0]),
    )
    return Experience(
        groups=groups,
        prompts=Prompts(questions),
        advantages=torch.tensor([0.7, -0.7, 0.0, 0.0]),
        mask=mask & rollout.finished[:, None],
        reference_logprobs=None,
        metrics=groups.metrics(),
    )


def test_metrics_by_hand(experience):
    assert experience.groups.num_generations == 2
    assert experience.groups.have_signal().tolist() == [True, False]
    assert experience.groups.metrics() == {
        "reward/accuracy": 0.75,
        "reward/format": 0.5,
        "reward/total": 1.0,
        "reward_std": pytest.approx((0.5**0.5 + 0) / 2),  # sqrt((0.25 + 0.25) / (2 - 1)) and 0
        "zero_advantage_groups": 0.5,
        "sampled_groups": 2.0,
        "completion_length": 3.0,
        "truncated": 0.25,
    }


def test_the_first_update_sets_the_old_logprobs_for_all(experience):
    first = torch.full((4, 4), -1.0, requires_grad=True)
    made = experience.completions(first * 1, max_new_tokens=9)
    assert torch.equal(made.old_logprobs, first)
    assert not made.old_logprobs.requires_grad
    assert made.logprobs.requires_grad
    second = experience.completions(torch.full((4, 4), -2.0), max_new_tokens=9)
    assert (second.logprobs == -2).all()
    assert (second.old_logprobs == -1).all()


def test_the_gap_is_that_of_sampling_and_first_update_over_tokens_that_count(experience):
    rows = [[-0.5, -2.0, 0.0, 9.0], [1.0, 9, 9, 9], [0.0, 0.0, 0.0, -1.5], [9.0] * 4]
    experience.completions(torch.tensor(rows), max_new_tokens=9)  # 0 when they were sampled
    gap = (0.5 + 2 + 1 + 1.5) / 8  # 9 stands where nothing counts
    assert float(experience.metrics["rollout_logprob_gap"]) == pytest.approx(gap)
    experience.completions(torch.zeros(4, 4), max_new_tokens=9)
    assert float(experience.metrics["rollout_logprob_gap"]) == pytest.approx(gap), (
        "not of later ones"
    )


def test_completions_carry_what_the_objective_needs(experience):
    experience.reference_logprobs = torch.full((4, 4), -3.0)
    made = experience.completions(torch.zeros(4, 4), max_new_tokens=9)
    assert made.reference_logprobs is experience.reference_logprobs
    assert made.advantages is experience.advantages
    assert made.mask is experience.mask, "not that of the rollout, which has truncated ones too"
    assert made.max_new_tokens == 9


def test_the_record_is_question_major(experience):
    record = experience.record()
    assert [q.id for q in record.questions] == ["p", "p", "q", "q"]
    assert record.texts == ("a", "b", "c", "d")
    assert record.rewards is experience.groups.rewards
    assert record.advantages is experience.advantages
