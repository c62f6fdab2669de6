"""A training run on two processes, of which one is killed, and which is resumed."""

import pytest

from benchmarks.kills import forked, kill_and_resume


@pytest.mark.slow
def test_a_run_that_was_killed_comes_to_the_same(tmp_path):
    """At the worst moment: the older checkpoint is gone, and the newer one has no name yet.

    `tests.callbacks.checkpoints.test_crashes` goes through all other moments.
    """
    with forked(tmp_path) as job:
        tally = kill_and_resume(job, tmp_path / "runs", "two ranks, FSDP2", num_kills=1, seed=1)
    assert (tally.kills, tally.differing, tally.hung) == (1, [], 0)
    assert tally.starts == tally.kills + tally.runs
    assert (tally.at_swaps, tally.without_last) == (1, 1)
