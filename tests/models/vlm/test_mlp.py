"""Feed-forward layers in chunks compute what they compute at once, and hold less."""

import copy

import pytest
import torch

from benchmarks.memory import allocator_peak
from tests.callbacks.runs import make_policy
from tests.models.conftest import make_sample
from tests.models.engines.running import make_engine
from vrts.models.vlm.layers import ChunkedMLP
from vrts.models.vlm.loading import Lora
from vrts.types import Completion


def completions(num: int, length: int) -> list[tuple[Completion, ...]]:
    ids = torch.randint(10, 200, (num, length), generator=torch.Generator().manual_seed(0))
    return [tuple(Completion("", length, length, token_ids=row) for row in ids)]


def loaded(folder, **options):
    policy = make_policy(folder, gradient_checkpointing=True, **options)
    policy.load()
    return policy.train()


def backward(policy, prompts, own):
    found = policy.logprobs(prompts, own, 1.0)
    (found.logprobs * torch.linspace(-1, 1, found.logprobs.shape[1])).sum().backward()
    return found.logprobs.detach()


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_chunks_change_no_result(varied_model, lora):
    plain, chunked = (
        loaded(varied_model, lora=lora, mlp_chunk_size=size).double() for size in (None, 5)
    )
    assert set(plain.state_dict()) == set(chunked.state_dict())
    chunked.load_state_dict(plain.state_dict())
    prompts, own = (
        make_engine(plain).encode([make_sample(0, 4, (56, 56), "What?")]),
        completions(3, 7),
    )
    found, wanted = (backward(policy, prompts, own) for policy in (chunked, plain))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    for name, p in chunked.named_parameters():
        if p.grad is not None:
            assert torch.allclose(p.grad, gradients[name], rtol=1e-9, atol=1e-12), name
    with torch.no_grad():  # as a reference scores
        assert torch.equal(chunked.logprobs(prompts, own, 1.0).logprobs, found)


def test_a_copy_has_chunks_of_its_own(varied_model):
    policy = loaded(varied_model, mlp_chunk_size=5)
    copied = copy.deepcopy(policy)
    pairs = zip(policy.modules(), copied.modules(), strict=True)
    found = [(a, b) for a, b in pairs if isinstance(a, ChunkedMLP)]
    assert len(found) == policy.base.config.text_config.num_hidden_layers
    for a, b in found:
        with torch.no_grad():
            b.down_proj.weight.zero_()
        x = torch.randn(1, 9, a.hidden_size)
        assert isinstance(b, ChunkedMLP)
        assert b(x).abs().max() == 0 < a(x).abs().max()


def test_chunks_hold_less(varied_model):
    peaks = {}
    for size in (None, 16):
        policy = loaded(varied_model, lora=Lora(rank=4), mlp_chunk_size=size)
        mlp = policy.base.model.language_model.layers[0].mlp
        x = torch.randn(1, 512, mlp.hidden_size, requires_grad=True)
        peaks[size] = allocator_peak(lambda mlp=mlp, x=x: mlp(x).sum().backward())
    assert peaks[16] < 0.5 * peaks[None]
