"""SIGKILL at random moments of training runs, which are resumed each time."""

import pytest

from benchmarks.kills import forked, kill_and_resume


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("spread", "num_kills", "at_swaps"),
    [("one process", 3, 0), ("two ranks, DDP", 2, 0), ("two ranks, FSDP2", 2, 2)],
)
def test_a_run_that_was_killed_comes_to_the_same(tmp_path, spread, num_kills, at_swaps):
    with forked(tmp_path) as job:
        tally = kill_and_resume(job, tmp_path / "runs", spread, num_kills, seed=1)
    assert (tally.kills, tally.differing, tally.hung) == (num_kills, [], 0)
    assert tally.starts == tally.kills + tally.runs
    # the first kills of a sharded run come between the two renames of a save
    assert (tally.at_swaps, tally.between_swaps) == (at_swaps, at_swaps)
