"""Rates from hand-made times."""

import math
from dataclasses import replace

import pytest

from vrts.callbacks.monitoring.rates import Interval, over_ranks, rates, tell_waiting
from vrts.models.grpo.rollouts import SampledCount, StepWork

WORKLOAD = Workload(
    num_prompt_tokens=300,
    num_completion_tokens=100,
    vision_flops=10.0,
    forward_flops=100.0,
    backward_flops=200.0,
    trains_vision=False,
)
STEP = StepWork(
    waiting_s=0.9,
    rollout_s=2.0,
    num_questions=2,
    num_frames=64,
    sampled=SampledCount(num_tokens=400, flops=110.0),
    update=[WORKLOAD],
    reference=[WORKLOAD],
)


def interval(*steps: StepWork) -> Interval:
    found = Interval()
    for work in steps:
        found.add(work, data_s=1.0, batch_s=4.0)
    return found


def test_rates_of_two_steps_by_hand():
    found = rates(replace(interval(STEP, STEP), memory_gb=3.0, reserved_gb=4.0), 1000.0)
    assert found == pytest.approx(
        {
            "step_s": 10.0,
            "data_s": 2.0,
            "rollout_s": 4.0,
            "waiting_s": 0.0,
            "update_s": 4.0,  # 4 - 2, twice
            "data_share": 0.2,
            "rollout_share": 0.4,
            "rollout_tokens_per_s": 800 / 4,
            "update_tokens_per_s": 800 / 4,
            "frames_per_s": 12.8,
            "questions_per_s": 0.4,
            "memory_gb": 3.0,
            "reserved_gb": 4.0,
            # reference 100, forward 100, backward 200
            "mfu_update": 2 * 400 / 4.0 / 1000.0,
            "mfu_step": 2 * 510 / 10.0 / 1000.0,
        }
    )


def test_every_micro_batch_of_every_update_counts():
    work = replace(STEP, update=[WORKLOAD, WORKLOAD, WORKLOAD])
    found = interval(work)
    assert (found.rollout_s, found.update_s) == (2.0, 2.0)
    assert found.update_flops == 3 * 300 + 100
    assert found.completion_tokens == 400
    assert found.update_tokens == 3 * 400


def test_the_trained_vision_tower_is_counted_in_every_pass():
    work = replace(WORKLOAD, trains_vision=True)
    assert (work.rollout_flops, work.scoring_flops, work.update_flops) == (110, 110, 310)


def test_without_a_peak_there_is_no_mfu_and_without_work_no_rate():
    assert not any(name.startswith("mfu") for name in rates(interval(STEP), None))
    found = rates(interval(StepWork()), 1000.0)
    assert "mfu_update" not in found
    assert "update_tokens_per_s" not in found
    assert math.isnan(found["rollout_tokens_per_s"])
    assert found["questions_per_s"] == 0.0


def test_ranks_are_named_beside_their_mean_and_the_worst():
    ranks = [
        {"step_s": 1.0, "frames_per_s": 5.0, "rollout_tokens_per_s": math.nan},
        {"step_s": 3.0, "frames_per_s": 7.0, "rollout_tokens_per_s": 8.0},
    ]
    assert over_ranks(ranks, 2) == {
        "step_s": 2.0,
        "step_s/max": 3.0,
        "step_s/rank0": 1.0,
        "step_s/rank1": 3.0,
        "frames_per_s": 6.0,
        "frames_per_s/min": 5.0,
        "frames_per_s/rank0": 5.0,
        "frames_per_s/rank1": 7.0,
        "rollout_tokens_per_s": 8.0,
        "rollout_tokens_per_s/min": 8.0,
        "rollout_tokens_per_s/rank1": 8.0,
    }
    assert "step_s/rank0" not in over_ranks(ranks, 1)
    assert over_ranks(ranks[:1], 16) == {"step_s": 1.0, "frames_per_s": 5.0}


def test_waiting_for_the_slowest_is_not_updating():
    fast = Interval(step_s=10, data_s=1, rollout_s=2, update_s=7)
    slow = Interval(step_s=10, data_s=1, rollout_s=4, waiting_s=1, update_s=4)
    first, second = tell_waiting([fast, slow])
    assert (first.waiting_s, first.update_s) == (3, 4)
    assert (second.waiting_s, second.update_s) == (1, 4)
    assert tell_waiting([fast]) == [fast]
