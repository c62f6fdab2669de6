"""SIGKILL at random moments of training runs, which are resumed each time."""

import pytest

from benchmarks.kills import forked, kill_and_resume


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spread", "num_kills", "at_swaps", "without_last"),
    [
        ("one process", 2, 0, 0),
        ("two ranks, DDP", 1, 0, 0),
        ("two ranks, FSDP2", 1, 1, 1),
        ("two ranks, FSDP2, saved in the background", 1, 1, 1),
    ],
)
def test_a_run_that_was_killed_comes_to_the_same(
    tmp_path, spread, num_kills, at_swaps, without_last
):
    with forked(tmp_path) as job:
        tally = kill_and_resume(job, tmp_path / "runs", spread, num_kills, seed=1)
    assert (tally.kills, tally.differing, tally.hung) == (num_kills, [], 0)
    assert tally.starts == tally.kills + tally.runs
    # the first kills of a sharded run come while the older checkpoint is removed
    assert (tally.at_swaps, tally.without_last) == (at_swaps, without_last)
