"""Merged flash attention against one softmax over the full masked row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vrts.models.attention.shared_prefix as attention
from vrts.models.attention.flash import CompletionRows, SharedPrefixFlash, has_flash
from vrts.models.attention.shared_prefix import PackedLayout, completion_mask

CPU = torch.device("cpu")


def packed(dtype, heads, kv_heads, dim, P, C, seed):
    """Query, prompt key and value, completion key and value."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, C), (kv_heads, P), (kv_heads, P), (kv_heads, C), (kv_heads, C)]
    return [
        torch.randn(1, h, n, dim, dtype=dtype, generator=generator).requires_grad_()
        for h, n in shapes
    ]


def plain(query, prompt_key, prompt_value, key, value, lengths, scaling):
    """Scores of every pair of tokens, a mask, one softmax."""
    groups = query.shape[1] // key.shape[1]
    keys = torch.cat([prompt_key, key], 2).repeat_interleave(groups, 1)
    values = torch.cat([prompt_value, value], 2).repeat_interleave(groups, 1)
    scores = scaling * query @ keys.mT
    mask = completion_mask(prompt_key.shape[2], lengths, CPU)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(sum),
    st.integers(1, 40),
    st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_output_and_gradients_are_those_of_one_softmax(lengths, P, heads, sharp, seed):
    tensors = packed(torch.float64, *heads, 8, P, sum(lengths), seed)
    scaling = 6.0 if sharp else 0.35  # sharp: the merge weights underflow on one side
    got = SharedPrefixFlash.apply(*tensors, CompletionRows(lengths, CPU), scaling)
    want = plain(*tensors, lengths, scaling)
    assert (got - want).abs().max() <= 1e-12
    weights = torch.randn(want.shape, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(got, tensors, weights),
        torch.autograd.grad(want, tensors, weights),
        strict=True,
    ):
        assert (a - b).abs().max() <= 1e-11 * max(float(b.abs().max()), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_no_worse_than_one_masked_kernel(dtype):
    lengths = [50, 3, 40, 17]
    exact = packed(torch.float64, 6, 2, 64, 300, sum(lengths), 0)
    want = plain(*exact, lengths, 0.125)
    wanted = torch.autograd.grad(want, exact, torch.ones_like(want))
    tensors = [t.detach().to(dtype).requires_grad_() for t in exact]
    got = SharedPrefixFlash.apply(*tensors, CompletionRows(lengths, CPU), 0.125)
    query, prompt_key, prompt_value, key, value = tensors
    keys, values = (
        torch.cat(pair, 2).repeat_interleave(3, 1)
        for pair in ((prompt_key, key), (prompt_value, value))
    )
    mask = completion_mask(300, lengths, CPU)
    one = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.125
    )
    assert got.dtype == dtype
    assert (got - want).norm() <= 1.6 * (one - want).norm()
    gradients = torch.autograd.grad(got, tensors, torch.ones_like(got))
    others = torch.autograd.grad(one, tensors, torch.ones_like(one))
    for a, b, exact_one in zip(gradients, others, wanted, strict=True):
        assert a.dtype == dtype
        assert (a - exact_one).norm() <= 1.6 * (b - exact_one).norm() + 1e-6 * exact_one.norm()


def test_rows_and_back():
    lengths = [2, 0, 4, 1]
    rows = CompletionRows(lengths, CPU)
    x = torch.randn(1, 3, 7, 5)
    spread = rows.spread(x)
    assert spread.shape == (3, 3, 4, 5)
    assert torch.equal(spread[1].transpose(0, 1), x[0, :, 2:6].transpose(0, 1))
    assert not spread[2, :, 1:].any()
    assert torch.equal(rows.pack(spread), x)


@pytest.mark.parametrize("flash", [True, False])
def test_packed_layout_is_exact_with_and_without_flash_kernels(flash, monkeypatch):
    """Float32 on CUDA has no flash kernel and goes through a mask."""
    monkeypatch.setattr(attention, "has_flash", lambda *tensors: flash)
    prompts, completions = [9, 4, 6], [[3, 0, 5], [2, 2, 2], [0, 0, 1]]
    S = sum(prompts) + sum(map(sum, completions))
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(1, h, S, 8, dtype=torch.float64, generator=generator) for h in (6, 2, 2)
    )
    layout = PackedLayout(prompts, completions, CPU)
    got = layout.attend(0, query, key, value, 0.35)[0]
    start = 0
    for P, lengths in zip(prompts, completions, strict=True):
        first = start + P
        for n in [0, *lengths]:
            at = torch.cat([torch.arange(start, start + P), torch.arange(first, first + n)])
            scores = 0.35 * query[0][:, at] @ key[0][:, at].repeat_interleave(3, 0).mT
            causal = torch.ones(P + n, P + n, dtype=torch.bool).tril()
            weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
            want = weights @ value[0][:, at].repeat_interleave(3, 0)
            assert (got[at].transpose(0, 1) - want).abs().max() <= 1e-12
            first += n
        start = first


def test_flash_is_known_for_the_cpu():
    x = torch.zeros(1, 1, 1, 8)
    assert has_flash(x, x, x)
    assert not has_flash(*(x.to("meta"),) * 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", [[50, 3, 0, 40, 17], [32, 32]])
def test_on_the_device(lengths):
    exact = [t.cuda() for t in packed(torch.float64, 6, 2, 64, 300, sum(lengths), 0)]
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    assert has_flash(*rounded[:3])
    assert not has_flash(*exact[:3])
    device = torch.device("cuda")
    got = SharedPrefixFlash.apply(*rounded, CompletionRows(lengths, device), 0.125)
    inputs = [t.detach().double().cpu().requires_grad_() for t in rounded]
    want = plain(*inputs, lengths, 0.125)
    assert (got.double().cpu() - want).norm() <= 1e-2 * want.norm()
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(got, rounded, weights.cuda())
    wanted = torch.autograd.grad(want, inputs, weights.double())
    for a, b in zip(gradients, wanted, strict=True):
        assert (a.double().cpu() - b).norm() <= 2e-2 * b.norm()


class OnDevice:
    """What `has_flash` reads of a tensor on a CUDA device."""

    device = torch.device("cuda")
    is_cuda = True

    def __init__(self, dim: int) -> None:
        self.shape = (1, 4, 7, dim)


@pytest.mark.parametrize(("dim", "has"), [(128, True), (80, True), (24, True), (20, False)])
def test_flash_operators_need_head_dims_of_multiples_of_8(monkeypatch, dim, has):
    """`can_use_flash_attention` accepts all: torch's own SDPA pads them first."""
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *args: args)
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", lambda params: True)
    x = OnDevice(dim)
    assert has_flash(x, x, x) is has
