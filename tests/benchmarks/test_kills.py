"""SIGKILL at random moments of training runs, which are resumed each time."""

import pytest

from benchmarks.kills import forked, kill_and_resume


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize(("num_ranks", "num_kills"), [(1, 3), (2, 2)])
def test_a_run_that_was_killed_comes_to_the_same(tmp_path, num_ranks, num_kills):
    with forked(tmp_path) as job:
        tally = kill_and_resume(job, tmp_path / "runs", num_ranks, num_kills, seed=1)
    assert (tally.kills, tally.differing, tally.hung) == (num_kills, [], 0)
    assert tally.starts == tally.kills + tally.runs
