"""LoRA's products in decoding, against peft's own forward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.engines.running import make_engine, make_requests, mask_of, sampled_logprobs
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.engines.lora import merge_layers, share_products
from vrts.models.vlm.loading import Lora
from vrts.types import SamplingParams

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
    products = share_products(policy.base)
    with Products() as shared:
        got = forward(policy, x)
        again = forward(policy, 2 * x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(again[0], got[0]), "another input is another product"
    assert plain.count == 7 * 3
    assert shared.count == 2 * (7 * 2 + 4)
    for product in products:
        assert product._input is None, "an activation is kept"


@torch.no_grad()
@pytest.mark.parametrize("prepare", [share_products, merge_layers])
def test_weights_that_change_count_once_refreshed(policy, prepare):
    x = torch.randn(5, 1, policy.base.config.text_config.hidden_size)
    products = prepare(policy.base)
    for product in products:
        product.refresh()
    before = forward(policy, x)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.mul_(1.5)
    for product in products:
        product.refresh()
    after = forward(policy, x)
    for layer in (m for m in policy.base.modules() if hasattr(m, "lora_A")):
        del layer.forward  # peft's own again
    want = forward(policy, x)
    for a, b, c in zip(after, want, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(a, c, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_is_sampled_is_the_distribution_that_is_scored(policy, samples, precision):
    """Scoring runs peft's forward."""
    dtype = None if precision == "32" else torch.bfloat16
    engine = make_engine(policy, dtype)
    prompts = engine.encode(samples)
    results = engine.generate(make_requests(prompts, [SamplingParams()] * 3, L))
    completions = [result.completions for result in results]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
        scores = policy.logprobs(prompts, completions, 1.0).logprobs[mask_of(completions)]
    gap = (scores - sampled_logprobs(completions)).abs()
    assert gap.max() < (1e-4 if precision == "32" else 0.2)


def test_what_is_not_plain_is_left_alone(policy):
    layers = [m for m in policy.base.modules() if hasattr(m, "lora_A")]

    def changed() -> set[str]:
        return {n for n, m in policy.base.named_modules() if m in layers and "forward" in vars(m)}

    policy.base.model.language_model.layers[0].mlp.up_proj._disable_adapters = True
    share_products(policy.base)
    names = changed()
    assert len(names) == len(layers) - 2, "gate and up of the first layer"
    assert not any("layers.0.mlp.gate_proj" in n or "layers.0.mlp.up_proj" in n for n in names)
    for layer in layers:
        vars(layer).pop("forward", None)
        layer.lora_dropout["default"] = torch.nn.Dropout(0.1).train()
    share_products(policy.base)
    assert not changed()
