"""Steps that are not finite: skipped, counted, and the end of the run after too many."""

import math

import pytest
import torch

from vrts.models.grpo.guards import DivergenceError, NonFiniteGuard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_is_noticed(value):
    guard = NonFiniteGuard(limit=9)
    assert not guard.is_bad(torch.tensor(1.0))
    assert guard.is_bad(torch.tensor(value))
    assert not guard.is_bad(torch.tensor(0.0))
    assert guard.total == 1


def test_only_steps_in_a_row_stop_the_run():
    guard = NonFiniteGuard(limit=2)
    for norm in (math.nan, 1.0, math.nan, 1.0, math.nan):
        guard.is_bad(torch.tensor(norm))
    with pytest.raises(DivergenceError, match=r"2 optimizer steps in a row.*max_nonfinite_steps"):
        guard.is_bad(torch.tensor(math.nan))
