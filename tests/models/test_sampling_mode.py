"""Rollouts under autocast: one cast of the weights, the same numbers, untouched parameters."""

import copy

import pytest
import torch
from torch.utils import checkpoint
from vrts.models.sampling_mode import cast_linears, without_cast_cache, without_checkpointing

from tests.models.recorded_graph import use_recorded_graphs
from tests.models.test_qwen import perturb_adapter
from vrts.models.qwen_loading import Lora
from vrts.types import Sampling

SEEDS = list(range(6))
L = 20


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_cast_weights_decode_what_autocast_decodes(load_policy, samples, lora):
    cast = load_policy(lora=lora).train()
    perturb_adapter(cast)
    plain = copy.deepcopy(cast)
    plain._cast_for_rollout = False
    with torch.autocast("cpu", torch.bfloat16):
        prompts = cast.encode(samples, L)
        a = cast.rollout(prompts, [Sampling()] * 2, SEEDS, L)
        b = plain.rollout(prompts, [Sampling()] * 2, SEEDS, L)
        c = cast.rollout(prompts, [Sampling()] * 2, SEEDS, L)
        scores = cast.score(prompts, a, 1.0)
        scores.logprobs.sum().backward()
    assert torch.equal(a.completion_ids, b.completion_ids)
    assert torch.equal(a.logprobs, b.logprobs)
    assert torch.equal(a.logprobs, c.logprobs)
    # of the same order as bfloat16's own error against float32
    exact = cast.score(prompts, a, 1.0).logprobs
    error = (scores.logprobs - exact).abs()
    assert ((scores.logprobs - a.logprobs).abs().mean() <= 2 * error.mean()).item()
    trained = [p for p in cast.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained if p.ndim > 1)


def test_a_step_casts_no_matrix(load_policy, samples, monkeypatch):
    def largest_cast(policy) -> int:
        made = use_recorded_graphs(monkeypatch)
        with torch.autocast("cpu", torch.bfloat16):
            policy.rollout(policy.encode(samples, L), [Sampling()] * 2, SEEDS, L)
        casts = [c for c in made[0].calls if c[0] is torch.ops.aten._to_copy.default]
        return max(c[1][0].numel() for c in casts)

    width = load_policy().base.config.text_config.hidden_size
    assert largest_cast(load_policy(cast_for_rollout=False)) >= width * width
    assert largest_cast(load_policy()) < width * width


def test_parameters_come_back(load_policy):
    policy = load_policy(lora=Lora(rank=4))
    language_model = policy.base.model.language_model
    before = dict(policy.named_parameters())
    linear = language_model.layers[0].mlp.up_proj.base_layer
    dtypes: list[torch.dtype] = []

    def fail() -> None:
        with torch.autocast("cpu", torch.bfloat16), cast_linears(language_model, "cpu"):
            dtypes.extend([linear.weight.dtype, language_model.norm.weight.dtype])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert dtypes == [torch.bfloat16, torch.float32]
    after = dict(policy.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is parameter for name, parameter in before.items())
    with cast_linears(language_model, "cpu"):  # no autocast, no cast
        assert all(p is before[n] for n, p in policy.named_parameters())


def test_sampling_checkpoints_nothing(load_policy, samples, monkeypatch):
    policy = load_policy(gradient_checkpointing=True).train()
    prompts = policy.encode(samples, L)
    called: list[bool] = []
    run = checkpoint.checkpoint
    for layer in policy.base.model.language_model.layers:
        monkeypatch.setattr(
            layer,
            "_gradient_checkpointing_func",
            lambda *a, **k: called.append(True) or run(*a, use_reentrant=False, **k),
        )
    rollout = policy.rollout(prompts, [Sampling()] * 2, SEEDS, L)
    assert not called
    policy.score(prompts, rollout, 1.0).logprobs.sum().backward()
    assert called
    with pytest.raises(RuntimeError, match="stop"), without_checkpointing(policy.base):
        raise RuntimeError("stop")
    assert all(m.gradient_checkpointing for m in policy.base.model.language_model.layers)


def test_the_cast_cache_is_off_and_autocast_stays():
    linear, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16), without_cast_cache("cpu"):
        assert not torch.is_autocast_cache_enabled()
        assert linear(x).dtype == torch.bfloat16
    with without_cast_cache("cpu"):
        assert linear(x).dtype == torch.float32
