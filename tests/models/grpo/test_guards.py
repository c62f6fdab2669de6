"""Runs that learn nothing are warned of; steps that are not finite are skipped, and end a run."""

import math
import warnings

import pytest
import torch

from vrts.models.grpo.guards import PATIENCE, DivergenceError, NonFiniteGuard, RewardWatch


def step(**values: float) -> dict[str, float]:
    return {"reward_std": 0.0, "truncated": 0.25, "reward/format": 0.0} | values


def watched(*steps: dict[str, float]) -> str | None:
    watch = RewardWatch()
    for metrics in steps:
        watch.update(metrics)
    return watch.warning()


def test_a_format_that_no_completion_had_is_reported_with_the_likely_causes():
    found = watched(step(), step(truncated=0.75))
    assert found.startswith("in 2 steps no completion had the format that model.rewards ask for")
    assert "completions are cut off (50% were; raise model.max_new_tokens)" in found
    assert "special tokens" in found


def test_rewards_that_never_differed_are_reported():
    assert "in 1 steps rewards never differed" in watched(step(**{"reward/format": 1.0}))
    assert "rewards never differed" in watched({"reward_std": 0.0, "truncated": 0.0})


@pytest.mark.parametrize("last", [{"reward_std": 0.1, "reward/format": 0.1}, {}])
def test_one_good_step_is_enough_and_none_is_no_reason(last):
    assert watched(*[step(**last)] * bool(last), *[step()] * bool(last)) is None


def test_steps_without_a_usable_video_do_not_count():
    assert watched(step(reward_std=math.nan), {"loss": 0.0}) is None


def test_it_warns_once():
    watch = RewardWatch()
    for _ in range(PATIENCE - 1):
        watch.update(step())
    with pytest.warns(UserWarning, match="no completion had the format"):
        watch.update(step())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.update(step())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_is_noticed(value):
    guard = NonFiniteGuard(limit=9)
    assert not guard.must_skip(torch.tensor(1.0))
    assert guard.must_skip(torch.tensor(value))
    assert not guard.must_skip(torch.tensor(0.0))
    assert guard.total == 1


def test_only_steps_in_a_row_stop_the_run():
    guard = NonFiniteGuard(limit=2)
    for norm in (math.nan, 1.0, math.nan, 1.0, math.nan):
        guard.must_skip(torch.tensor(norm))
    with pytest.raises(DivergenceError, match=r"2 optimizer steps in a row.*max_nonfinite_steps"):
        guard.must_skip(torch.tensor(math.nan))
