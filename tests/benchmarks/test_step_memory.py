"""What bounds the memory of a step."""

import pytest

from benchmarks import step_memory
from benchmarks.step_memory import measure
from tests.benchmarks.conftest import TINY


@pytest.fixture
def peak(monkeypatch):
    monkeypatch.setattr(step_memory, "NUM_FRAMES", 4)
    monkeypatch.setattr(step_memory, "SIDE", 56)
    return lambda *case: measure(TINY, *case)


def test_the_peak_grows_with_the_micro_batch_and_not_with_the_step(peak):
    one, four, whole = peak(1, 1), peak(4, 1), peak(4, 4)
    # three further questions cost no more than their keys, values and frames
    assert four["peak MB"] < one["peak MB"] + four["KV MB"] - one["KV MB"] + 0.5
    assert four["peak MB"] < 1.3 * one["peak MB"]
    assert whole["peak MB"] > 2 * four["peak MB"]
