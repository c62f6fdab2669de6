"""Merged LoRA products in decoding, against peft's own forward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.test_qwen import perturb_adapter
from vrts.models.lora_products import merged_products
from vrts.models.qwen_loading import Lora
from vrts.types import Sampling

L = 12


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def policy(load_policy):
    torch.manual_seed(0)
    policy = load_policy(lora=Lora(rank=4, alpha=12)).eval()
    perturb_adapter(policy)
    return policy


def forward(policy, x):
    """Of all of one decoder layer's linear layers."""
    layer = policy.base.model.language_model.layers[1]
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v = (getattr(attention, f"{name}_proj")(x) for name in "qkv")
    hidden = mlp.gate_proj(x) * mlp.up_proj(x)
    return [q, k, v, attention.o_proj(q), hidden, mlp.down_proj(hidden)]


@torch.no_grad()
def test_results_are_pefts_in_fewer_products(policy):
    x = torch.randn(5, 1, policy.base.config.text_config.hidden_size)
    with Products() as plain:
        want = forward(policy, x)
    with merged_products(policy.base), Products() as merged:
        got = forward(policy, x)
        again = forward(policy, 2 * x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(again[0], got[0]), "another input is another product"
    assert plain.count == 7 * 3
    assert merged.count == 2 * (7 * 2 + 4)
    assert all(torch.equal(a, b) for a, b in zip(forward(policy, x), want, strict=True))


def test_peft_is_back_after_an_error(policy):
    x = torch.randn(1, 1, policy.base.config.text_config.hidden_size)
    want = forward(policy, x)
    with pytest.raises(KeyError), merged_products(policy.base):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(forward(policy, x), want, strict=True))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_rollouts_sample_the_distribution_that_is_scored(policy, samples, precision):
    """Scoring runs peft's forward."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.no_grad():
        prompts = policy.encode(samples, L)
        rollout = policy.rollout(prompts, [Sampling()] * 3, list(range(9)), L)
        gap = (policy.score(prompts, rollout, 1.0).logprobs - rollout.logprobs).abs()
    assert gap.max() < (1e-4 if precision == "32" else 0.2)


def test_what_is_not_plain_is_left_alone(policy):
    layers = [m for m in policy.base.modules() if hasattr(m, "lora_A")]
    policy.base.model.language_model.layers[0].mlp.up_proj._disable_adapters = True
    with merged_products(policy.base):
        changed = [m for m in layers if "forward" in vars(m)]
        names = {n for n, m in policy.base.named_modules() if m in changed}
    assert len(changed) == len(layers) - 2, "gate and up of the first layer"
    assert not any("layers.0.mlp.gate_proj" in n or "layers.0.mlp.up_proj" in n for n in names)
    torch.nn.Module.train(policy.base)
    for layer in layers:
        layer.lora_dropout["default"] = torch.nn.Dropout(0.1).train()
    with merged_products(policy.base):
        assert not any("forward" in vars(m) for m in layers)
