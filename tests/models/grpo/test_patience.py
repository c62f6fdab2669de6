"""Warnings of runs that learn nothing."""

import math
import warnings

import pytest

from vrts.models.grpo.guards import PATIENCE, RewardWatch


def step(**values: float) -> dict[str, float]:
    return {"reward_std": 0.0, "truncated": 0.25, "reward/format": 0.0} | values


def watched(*steps: dict[str, float]) -> str | None:
    watch = RewardWatch()
    for metrics in steps:
        watch.see(metrics)
    return watch.warning()


def test_a_format_that_no_completion_had_is_told_with_the_likely_causes():
    found = watched(step(), step(truncated=0.75))
    assert found.startswith("in 2 steps no completion had the format that model.rewards ask for")
    assert "completions are cut off (50% were; raise model.max_new_tokens)" in found
    assert "special tokens" in found


def test_rewards_that_never_differed_are_told():
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
        watch.see(step())
    with pytest.warns(UserWarning, match="no completion had the format"):
        watch.see(step())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.see(step())
