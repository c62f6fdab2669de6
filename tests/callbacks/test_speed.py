"""Rates and causes from hand-made times."""

import math
from dataclasses import replace

import pytest

from vrts.callbacks.lag import Limits, Setup, find_causes
from vrts.callbacks.speed import Interval, over_ranks, rates, tell_waiting
from vrts.models.flops import Workload
from vrts.models.work import BatchWork, Sampled

WORKLOAD = Workload(
    num_prompt_tokens=300,
    num_completion_tokens=100,
    vision_flops=10.0,
    forward_flops=100.0,
    backward_flops=200.0,
    trains_vision=False,
)
BATCH = BatchWork(
    waiting_s=0.9,
    rollout_s=2.0,
    rollout_waiting_s=0.5,
    num_questions=2,
    num_frames=64,
    sampled=Sampled(num_completions=8, num_truncated=1, num_tokens=400, flops=110.0),
    update=WORKLOAD,
    has_reference=True,
)


def interval(*batches: BatchWork) -> Interval:
    found = Interval()
    for work in batches:
        found.add(work, data_s=1.0, batch_s=4.0)
    return found


def test_rates_of_two_batches_by_hand():
    found = rates(replace(interval(BATCH, BATCH), memory_gb=3.0, reserved_gb=4.0), 1000.0)
    assert found == pytest.approx(
        {
            "step_s": 10.0,
            "data_s": 2.0,
            "rollout_s": 4.0,
            "waiting_s": 1.0,
            "update_s": 3.0,  # 4 - 2 - 0.5, twice
            "data_share": 0.2,
            "rollout_share": 0.4,
            "rollout_tokens_per_s": 800 / 4,
            "update_tokens_per_s": 800 / 3,
            "frames_per_s": 12.8,
            "questions_per_s": 0.4,
            "memory_gb": 3.0,
            "reserved_gb": 4.0,
            # reference 100, forward 100, backward 200
            "mfu_update": 2 * 400 / 3.0 / 1000.0,
            "mfu_step": 2 * 510 / 10.0 / 1000.0,
        }
    )


def test_a_further_update_has_no_rollout_and_no_reference():
    again = BatchWork(waiting_s=0.3, update=WORKLOAD)
    found = interval(BATCH, again)
    assert (found.rollout_s, found.waiting_s, found.update_s) == (2.0, 0.5, 1.5 + 4.0)
    assert found.update_flops == 400 + 300
    assert found.completions == 8


def test_the_trained_vision_tower_is_counted_in_every_pass():
    work = replace(WORKLOAD, trains_vision=True)
    assert (work.rollout_flops, work.scoring_flops, work.update_flops) == (110, 110, 310)


def test_without_a_peak_there_is_no_mfu_and_without_work_no_rate():
    assert not any(name.startswith("mfu") for name in rates(interval(BATCH), None))
    found = rates(interval(BatchWork()), 1000.0)
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


def test_the_total_keeps_the_newest_memory():
    parts = [Interval(step_s=1, memory_gb=2), Interval(step_s=3, memory_gb=5, reserved_gb=6)]
    assert Interval.total(parts) == Interval(step_s=4, memory_gb=5, reserved_gb=6)


LIMITS = Limits(data_share=0.2, rollout_share=0.8, lag=1.5)
SETUP = Setup(2, has_cache=False, max_new_tokens=768, gathers_each_token=False, ranks_per_node=2)
WELL = Interval(
    step_s=10, data_s=1, rollout_s=5, update_s=4, completions=80, truncated=8, completion_tokens=8e3
)


def kinds(ranks, setup=SETUP):
    return [cause.kind for cause in find_causes(ranks, LIMITS, setup)]


def message(ranks, setup=SETUP):
    (cause,) = find_causes(ranks, LIMITS, setup)
    return cause.message


def test_nothing_is_said_where_all_is_well():
    assert kinds([WELL]) == []
    assert kinds([WELL] * 4) == []
    assert kinds([Interval()] * 2) == [], "ranks that did nothing"
    assert kinds([replace(WELL, data_s=2.0)]) == [], "at the limit"


def test_slow_data_is_named_with_remedies():
    late = replace(WELL, data_s=4.3)
    text = message([late])
    assert text.startswith("waiting for data takes 43% of the time: ")
    assert "raise data.num_workers, 2 a rank now" in text
    assert "data.cache" in text
    text = message([late], replace(SETUP, num_workers=0, has_cache=True))
    assert "set data.num_workers above 0" in text
    assert "data.cache" not in text


def test_one_rank_with_slow_data_is_named():
    found = find_causes([WELL, WELL, replace(WELL, data_s=8.0), WELL], LIMITS, SETUP)
    assert [cause.kind for cause in found] == ["data", "rank/2/data_s"]
    assert "80% of the time on rank 2 (node 1)" in found[0].message
    assert found[1].message.startswith(
        "rank 2 (node 1) holds the others up: waiting for data takes it 8.00 s, the median rank "
        "1.00 s"
    )


def test_a_slow_device_is_named():
    ranks = [WELL, replace(WELL, step_s=20, rollout_s=9.0), WELL]
    text = message(ranks)
    assert text.startswith("rank 1 (node 0) holds the others up: the rollout takes it 9.00 s")
    assert "nvidia-smi" in text
    assert kinds([WELL, replace(WELL, rollout_s=8.0), WELL]) == [], "half of the usual 6 s"


def test_of_two_ranks_the_slow_one_is_named():
    assert kinds([WELL, replace(WELL, step_s=14, rollout_s=9.0)]) == ["rank/1/rollout_s"]
    assert kinds([replace(WELL, step_s=14, rollout_s=9.0), WELL]) == ["rank/0/rollout_s"]
    assert kinds([WELL, replace(WELL, step_s=12, rollout_s=7.0)]) == [], "a third of the usual 6 s"


def test_a_rollout_that_lasts_too_long_is_named_with_its_reason():
    long = replace(WELL, rollout_s=8.7, data_s=0.1)
    text = message([long])
    assert text.startswith("the rollout takes 87% of the time: a rollout lasts until its longest")
    assert "8 of 80 completions were cut off at model.max_new_tokens = 768" in text
    assert "the mean has 100 tokens" in text
    assert kinds([replace(long, truncated=0)]) == ["rollout"]
    assert kinds([replace(long, truncated=60)]) == ["rollout"]
    assert kinds([replace(long, completion_tokens=40e3)]) == ["rollout"]
    assert kinds([long], replace(SETUP, gathers_each_token=True)) == ["rollout/gathers"]
    assert kinds([replace(long, completions=0)]) == []
