import os

import pytest

from benchmarks.turns import take_turns


def count(turn, start, num_steps):
    for step in range(num_steps):
        turn.begin()
        turn.end({"step": start + step, "process": os.getpid()})


def fail(turn):
    turn.begin()
    raise ValueError("out of order")


def stop(turn):
    pass


def test_each_side_steps_in_a_process_of_its_own_and_the_first_step_is_left_out():
    steps = take_turns({"a": (count, (0, 3)), "b": (count, (10, 3))}, 2)
    assert [facts["step"] for _, facts in steps["a"]] == [1, 2]
    assert [facts["step"] for _, facts in steps["b"]] == [11, 12]
    processes = {facts["process"] for made in steps.values() for _, facts in made}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert all(s >= 0 and facts["CPU s"] >= 0 for made in steps.values() for s, facts in made)


def test_a_failure_is_told_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)b failed.*ValueError: out of order"):
        take_turns({"a": (count, (0, 2)), "b": (fail, ())}, 1)


def test_a_side_that_ends_too_early_is_named():
    with pytest.raises(RuntimeError, match="b ended without a step"):
        take_turns({"a": (count, (0, 2)), "b": (stop, ())}, 1)
