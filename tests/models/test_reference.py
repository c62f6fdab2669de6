"""References that follow the policy."""

import copy

import pytest
import torch

from tests.models.test_qwen import perturb_adapter
from vrts.models.qwen_loading import Lora
from vrts.models.reference import AdapterOff, FrozenCopy
from vrts.types import Sampling


def move(policy, seed: int) -> None:
    """What training might do to the weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("options", [{}, {"freeze_vision": False}, {"lora": Lora(4, 8)}])
def test_a_copy_is_mixed_with_the_policy_every_few_steps(load_policy, samples, options):
    policy = load_policy(**options)
    perturb_adapter(policy)
    reference = FrozenCopy(sync_every_n_steps=2, mixup=0.3)
    reference.attach(policy)
    plain = copy.deepcopy(policy)
    for step in range(1, 6):
        move(policy, step)
        reference.after_step(policy, step)
        if step % 2 == 0:
            moved = dict(policy.named_parameters())
            for name, weight in plain.named_parameters():
                weight.data = 0.3 * moved[name].data + 0.7 * weight.data
    prompts = policy.encode(samples, 8)
    rollout = policy.rollout(prompts, [Sampling()] * 2, list(range(6)), 8)
    got = reference.logprobs(policy, prompts, rollout, 1.0)
    with torch.no_grad():
        want = plain.score(plain.encode(samples, 8), rollout, 1.0).logprobs
        now = policy.score(prompts, rollout, 1.0).logprobs
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert (got - now).abs().max() > 1e-2
    assert set(reference.state_dict()) == {
        name for name, weight in policy.named_parameters() if weight.requires_grad
    }

    again = FrozenCopy(sync_every_n_steps=2)
    again.attach(policy)
    again.load_state_dict(reference.state_dict())
    torch.testing.assert_close(again.logprobs(policy, prompts, rollout, 1.0), got)


def test_a_reference_that_stays_has_nothing_in_checkpoints(load_policy):
    policy = load_policy()
    reference = FrozenCopy()
    reference.attach(policy)
    before = copy.deepcopy(dict(reference._moving()))
    move(policy, 0)
    reference.after_step(policy, 1)
    for name, weight in reference._moving():
        assert torch.equal(weight, before[name])
    assert reference.state_dict() == {}
    assert AdapterOff().state_dict() == {}
