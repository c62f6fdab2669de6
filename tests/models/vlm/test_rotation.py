import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half
from transformers.models.qwen2_vl import modeling_qwen2_vl

from vrts.models.vlm.layers import rotate


@pytest.mark.parametrize("modeling", [modeling_qwen2_5_vl, modeling_qwen2_vl])
@pytest.mark.parametrize("tokens", [1, 5])
def test_new_tokens_are_rotated_as_transformers_does(modeling, tokens, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, h, tokens, 16, generator=generator) for h in (4, 2))
    angles = torch.randn(3, tokens, 8, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    calls = []
    monkeypatch.setattr("vrts.models.vlm.layers.rotate", lambda *a: calls.append(a) or rotate(*a))
    with torch.no_grad():
        got = modeling.apply_rotary_pos_emb(q, k, cos, sin)
    assert len(calls) == (2 if tokens == 1 else 0), "only where nothing is scored"
    with_gradient = modeling.apply_rotary_pos_emb(q, k, cos, sin)
    assert len(calls) == (2 if tokens == 1 else 0)
    for x, a, b in zip((q, k), got, with_gradient, strict=True):
        want = x * cos[:, None] + rotate_half(x) * sin[:, None]
        torch.testing.assert_close(a, want, rtol=1e-6, atol=1e-6)
        assert torch.equal(b, want)
