"""References stay what the policy was before training, whatever training does to it."""

import copy

import pytest
import torch

from tests.models.test_qwen import perturb_adapter, roll
from vrts.models.qwen_loading import Lora
from vrts.models.reference import AdapterOff, FrozenCopy
from vrts.types import InputError


def change(policy) -> None:
    """As an optimizer would."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.1)


def test_a_frozen_copy_does_not_move(load_policy, samples):
    policy = load_policy().train()
    reference = FrozenCopy()
    reference.attach(policy)
    prompts, rollout = roll(policy, samples)
    before = policy.score(prompts, rollout, 1.0).logprobs.detach()
    change(policy)
    got = reference.logprobs(policy, prompts, rollout, 1.0)
    assert torch.equal(got, before)
    assert (policy.score(prompts, rollout, 1.0).logprobs - before).abs().max() > 1e-2
    assert not got.requires_grad


def test_a_frozen_copy_sees_with_its_own_vision_tower(load_policy, samples):
    """Where the tower is trained too, the policy's features are not the reference's."""
    policy = load_policy(freeze_vision=False)
    reference = FrozenCopy()
    reference.attach(policy)
    prompts, rollout = roll(policy, samples)
    before = policy.score(prompts, rollout, 1.0).logprobs.detach()
    change(policy)
    prompts = policy.encode(samples, 12)
    torch.testing.assert_close(reference.logprobs(policy, prompts, rollout, 1.0), before)


def test_a_frozen_copy_takes_the_policys_dtype(load_policy, samples):
    policy = load_policy()
    reference = FrozenCopy()
    reference.attach(policy)
    policy.to(torch.bfloat16)
    prompts, rollout = roll(policy, samples)
    want = policy.score(prompts, rollout, 1.0).logprobs
    torch.testing.assert_close(reference.logprobs(policy, prompts, rollout, 1.0), want)


def test_a_frozen_copy_has_no_gradients_and_no_training_mode(load_policy):
    policy = load_policy().train()
    reference = FrozenCopy()
    reference.attach(policy)
    assert not any(p.requires_grad for p in reference._policy.parameters())
    assert not reference._policy.training
    assert policy.training
    own = {id(p) for p in policy.parameters()}
    assert not any(id(p) in own for p in reference._policy.parameters())


def test_the_adapter_switched_off_is_the_base_model(load_policy, samples):
    base, policy = load_policy(), load_policy(lora=Lora(rank=4)).train()
    reference = AdapterOff()
    reference.attach(policy)
    perturb_adapter(policy)
    prompts, rollout = roll(policy, samples)
    got = reference.logprobs(policy, prompts, rollout, 0.7)
    want = base.score(prompts, rollout, 0.7).logprobs
    torch.testing.assert_close(got, want)
    assert not got.requires_grad
    scores = policy.score(prompts, rollout, 0.7).logprobs
    assert (scores - got).abs().max() > 1e-3, "the adapter is on again"
    assert scores.requires_grad


def test_an_adapter_is_needed(load_policy):
    with pytest.raises(InputError, match="AdapterOff needs an adapter"):
        AdapterOff().attach(load_policy())


def test_a_copied_policy_scores_alike(load_policy, samples):
    policy = load_policy(lora=Lora(rank=4))
    perturb_adapter(policy)
    twin = copy.deepcopy(policy)
    prompts, rollout = roll(policy, samples)
    want = policy.score(prompts, rollout, 1.0).logprobs
    assert torch.equal(twin.score(prompts, rollout, 1.0).logprobs, want)
