"""References: they stay what the policy was, or follow it where that is configured."""

import copy

import pytest
import torch

from tests.models.vlm.test_policy import perturb_adapter, roll
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.vlm.loading import Lora
from vrts.types import InputError, SamplingParams


def reference_logprobs(reference, policy, prompts, completions, temperature):
    with torch.no_grad(), reference.scoring(policy) as scorer:
        return scorer.logprobs(prompts, completions, temperature).logprobs


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
    prompts, completions = roll(policy, samples)
    before = policy.logprobs(prompts, completions, 1.0).logprobs.detach()
    change(policy)
    got = reference_logprobs(reference, policy, prompts, completions, 1.0)
    assert torch.equal(got, before)
    assert (policy.logprobs(prompts, completions, 1.0).logprobs - before).abs().max() > 1e-2


def test_a_frozen_copy_sees_with_its_own_vision_tower(load_policy, samples):
    """Where the tower is trained too, the policy's features are not the reference's."""
    policy = load_policy(freeze_vision=False)
    reference = FrozenCopy()
    reference.attach(policy)
    prompts, completions = roll(policy, samples)
    before = policy.logprobs(prompts, completions, 1.0).logprobs.detach()
    change(policy)
    prompts = policy.network().encode(samples)
    torch.testing.assert_close(
        reference_logprobs(reference, policy, prompts, completions, 1.0), before
    )


def test_a_frozen_copy_takes_the_policys_dtype(load_policy, samples):
    policy = load_policy()
    reference = FrozenCopy()
    reference.attach(policy)
    policy.to(torch.bfloat16)
    prompts, completions = roll(policy, samples)
    want = policy.logprobs(prompts, completions, 1.0).logprobs
    torch.testing.assert_close(
        reference_logprobs(reference, policy, prompts, completions, 1.0), want
    )


def test_a_frozen_copy_has_no_gradients_and_no_training_mode(load_policy):
    policy = load_policy().train()
    reference = FrozenCopy()
    reference.attach(policy)
    assert not any(p.requires_grad for p in reference._policy.parameters())
    assert not reference._policy.training
    assert policy.training
    own = {id(p) for p in policy.parameters()}
    assert not any(id(p) in own for p in reference._policy.parameters())


def test_an_adapter_that_continues_is_compared_with_itself(load_policy, samples, tmp_path):
    """Regularised towards the policy at the start, not towards the base model."""
    lora = Lora(rank=4, alpha=8)
    trained = load_policy(lora=lora)
    perturb_adapter(trained)
    trained.save_pretrained(tmp_path / "adapter")
    policy = load_policy(tmp_path / "adapter", lora=lora).train()
    reference = AdapterOff()
    reference.attach(policy)
    prompts, completions = roll(policy, samples)
    before = policy.logprobs(prompts, completions, 1.0).logprobs.detach()
    change(policy)
    after = policy.logprobs(prompts, completions, 1.0).logprobs.detach()
    assert (after - before).abs().max() > 1e-2
    got = reference_logprobs(reference, policy, prompts, completions, 1.0)
    assert torch.equal(got, before)
    assert torch.equal(policy.logprobs(prompts, completions, 1.0).logprobs, after)
    assert all(p.requires_grad for n, p in policy.named_parameters() if "lora_" in n)
    with torch.no_grad(), pytest.raises(KeyError), reference.scoring(policy):
        raise KeyError  # an error within leaves the policy as it was
    assert torch.equal(policy.logprobs(prompts, completions, 1.0).logprobs, after)


def test_the_adapter_switched_off_is_the_base_model(load_policy, samples):
    base, policy = load_policy(), load_policy(lora=Lora(rank=4)).train()
    reference = AdapterOff()
    reference.attach(policy)
    perturb_adapter(policy)
    prompts, completions = roll(policy, samples)
    got = reference_logprobs(reference, policy, prompts, completions, 0.7)
    want = base.logprobs(prompts, completions, 0.7).logprobs
    torch.testing.assert_close(got, want)
    scores = policy.logprobs(prompts, completions, 0.7).logprobs
    assert (scores - got).abs().max() > 1e-3, "the adapter is on again"
    assert scores.requires_grad


def test_an_adapter_is_needed(load_policy):
    with pytest.raises(InputError, match="AdapterOff needs an adapter"):
        AdapterOff().attach(load_policy())


def test_a_copied_policy_scores_alike(load_policy, samples):
    policy = load_policy(lora=Lora(rank=4))
    perturb_adapter(policy)
    twin = copy.deepcopy(policy)
    prompts, completions = roll(policy, samples)
    want = policy.logprobs(prompts, completions, 1.0).logprobs
    assert torch.equal(twin.logprobs(prompts, completions, 1.0).logprobs, want)


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
    prompts, completions = roll(policy, samples, [SamplingParams()] * 2, length=8)
    got = reference_logprobs(reference, policy, prompts, completions, 1.0)
    with torch.no_grad():
        want = plain.logprobs(plain.network().encode(samples), completions, 1.0).logprobs
        now = policy.logprobs(prompts, completions, 1.0).logprobs
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert (got - now).abs().max() > 1e-2
    assert set(reference.state_dict()) == {
        name for name, weight in policy.named_parameters() if weight.requires_grad
    }

    again = FrozenCopy(sync_every_n_steps=2)
    again.attach(policy)
    again.load_state_dict(reference.state_dict())
    torch.testing.assert_close(reference_logprobs(again, policy, prompts, completions, 1.0), got)


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
