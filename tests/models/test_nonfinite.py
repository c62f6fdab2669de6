"""Steps that are not finite: skipped, counted, and the end of the run after too many."""

import math

import pytest
import torch
from torch import nn

from vrts.models.nonfinite import DivergenceError, NonFiniteGuard


def alone(x: torch.Tensor) -> torch.Tensor:
    return x


def parameter(gradient: float) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([0.0, gradient, 1.0])
    return p


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_or_gradient_is_noticed(value):
    guard = NonFiniteGuard(limit=9)
    guard.watch(torch.tensor(1.0))
    assert not guard.is_bad([parameter(1.0)], alone)
    guard.watch(torch.tensor(value))
    guard.watch(torch.tensor(1.0))
    assert guard.is_bad([parameter(1.0)], alone)
    assert guard.is_bad([parameter(value)], alone)
    assert not guard.is_bad([parameter(1.0), nn.Parameter(torch.zeros(1))], alone)
    assert guard.total == 2


def test_a_bad_step_of_another_process_counts():
    assert NonFiniteGuard(limit=9).is_bad([parameter(1.0)], lambda x: (x + 1) / 2)


def test_only_steps_in_a_row_stop_the_run():
    guard = NonFiniteGuard(limit=2)
    for gradient in (math.nan, 1.0, math.nan, 1.0, math.nan):
        guard.is_bad([parameter(gradient)], alone)
    with pytest.raises(DivergenceError, match=r"2 optimizer steps in a row.*max_nonfinite_steps"):
        guard.is_bad([parameter(math.nan)], alone)
