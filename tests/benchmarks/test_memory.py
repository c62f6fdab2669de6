import pytest
import torch

from benchmarks.common import peak_bytes
from benchmarks.memory import allocator_peak, fit_line


def test_the_peak_is_that_of_what_is_held_at_the_same_time():
    def run():
        first = torch.zeros(1000)  # 4000 bytes
        second = torch.zeros(500)  # 6000 held
        del first
        third = torch.zeros(800)  # 2000 + 3200
        return second, third

    assert allocator_peak(run) == 6000


def test_what_autograd_saves_and_its_gradients_count():
    weight = torch.randn(64, 32, requires_grad=True)
    data = torch.randn(16, 64)

    def run():
        (data @ weight).exp().sum().backward()

    # exp saves its result; backward makes the product's gradient beside it, and the weight's
    out, gradient = 16 * 32 * 4, 64 * 32 * 4
    assert allocator_peak(run) >= out + gradient
    assert allocator_peak(run) <= 4 * out + gradient
    assert weight.grad is not None


def test_temporaries_within_an_operation_count():
    data = torch.randn(1000)

    def run():
        return torch.sort(data).values.sum()

    # values and indices, of which the caller keeps neither
    assert allocator_peak(run) >= 1000 * (4 + 8)


def test_memory_held_before_does_not_count():
    held = torch.zeros(10_000)
    peak = peak_bytes(lambda: held.sum(), torch.device("cpu"))
    assert 0 < peak < held.nbytes


def test_a_line_is_found_and_its_worst_point_named():
    assert fit_line([1, 2, 5], [7.0, 9.0, 15.0]) == pytest.approx((5.0, 2.0, 0.0))
    intercept, slope, off = fit_line([0, 1, 2], [0.0, 4.0, 2.0])
    assert (intercept, slope) == pytest.approx((1.0, 1.0))
    assert off == pytest.approx(2.0 / 4.0)
