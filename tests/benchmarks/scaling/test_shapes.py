"""Bytes that a device without values holds are those that a real allocator would."""

import gc

import pytest
import torch

from benchmarks.scaling.shapes import BLOCK, shapes_only

MB = 2**20


@pytest.fixture
def device():
    with shapes_only(24e9) as found:
        yield found


def make(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="cuda")


def test_what_is_held_is_counted_by_storage(device):
    a = make(MB)
    assert device.held == 4 * MB
    views = a[: MB // 2], a.view(2, -1).T, a.detach()
    assert device.held == 4 * MB
    b = a * 2
    b.add_(1)
    assert device.held == 8 * MB
    del a
    assert device.held == 8 * MB, "views hold it"
    del views, b
    assert device.held == 0
    tiny = make(3)
    assert device.held == BLOCK
    del tiny


def test_peaks_are_those_of_the_outermost_phase(device):
    kept = make(MB)
    with device.phase("first"):
        with device.phase("second"):
            make(MB).exp_()
        make(MB // 2)
    with device.phase("second"):
        pass
    assert device.peaks == {"first": 8 * MB, "second": 4 * MB}
    del kept


def test_whole_numbers_keep_their_values_and_others_have_none(device):
    ids = torch.tensor([3, 1, 2], device="cuda")
    assert (ids + 1).tolist() == [4, 2, 3]
    assert ids[ids > 1].tolist() == [3, 2]
    x = make(3, 5)
    assert x[ids > 1].shape == (2, 5)
    assert x.sum().item() == 0.0
    assert x.argmax(-1).tolist() == [0, 0, 0]
    x[ids - 1] = 1.0
    assert x.cpu().tolist() == torch.zeros(3, 5).tolist()
    large = make(MB).cpu()
    assert large.is_meta
    assert not large.is_cuda


@pytest.mark.parametrize("keeps", [True, False], ids=["with gradient", "without"])
def test_autograd_holds_what_backward_reads(device, keeps):
    weight = torch.nn.Parameter(make(1024, 1024), requires_grad=keeps)
    x = make(256, 1024)
    with torch.autocast("cuda", torch.bfloat16):
        out = torch.nn.functional.silu(x @ weight)
    # weight, input and result; for backward the input in 16 bits, and what was activated
    wanted = 4 * 1024 * 1024 + 4 * 256 * 1024 + 2 * 256 * 1024
    if keeps:
        wanted += 2 * 256 * 1024 + 2 * 256 * 1024
    gc.collect()
    assert device.held == wanted
    if keeps:
        out.sum().backward()
        assert weight.grad.dtype == torch.float32
        del out
        assert device.held == 2 * 4 * 1024 * 1024 + 4 * 256 * 1024
