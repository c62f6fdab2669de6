"""References: the policy that the KL penalty holds on to. Plug-in point ``model.reference``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch

from vrts.models.policy import Policy, Prompts
from vrts.types import Rollout


class Reference(ABC):
    """Log-probs of the policy as it was before training."""

    @abstractmethod
    def attach(self, policy: Policy) -> None:
        """Prepare from a policy that has just been loaded and not been trained yet."""

    @abstractmethod
    def logprobs(
        self, policy: Policy, prompts: Prompts, rollout: Rollout, temperature: float
    ) -> torch.Tensor:
        """Log-probs ``[N, L]`` of a rollout's completions, without gradient."""


class AdapterOff(Reference):
    """The policy itself with its LoRA adapter switched off; takes no memory."""

    def attach(self, policy: Policy) -> None:
        """Check that there is an adapter.

        Raises:
            InputError: there is none.
        """
        with policy.adapter_disabled():
            pass

    @torch.no_grad()
    def logprobs(
        self, policy: Policy, prompts: Prompts, rollout: Rollout, temperature: float
    ) -> torch.Tensor:
        """See `Reference.logprobs`."""
        with policy.adapter_disabled():
            return policy.score(prompts, rollout, temperature).logprobs


class FrozenCopy(Reference):
    """A second set of weights, for full fine-tuning; in no optimizer and in no checkpoint."""

    def __init__(self) -> None:
        self._policy: Policy | None = None

    def attach(self, policy: Policy) -> None:
        """Copy the policy's weights."""
        self._policy = copy.deepcopy(policy).eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(
        self, policy: Policy, prompts: Prompts, rollout: Rollout, temperature: float
    ) -> torch.Tensor:
        """See `Reference.logprobs`."""
        assert self._policy is not None, "attach() was not called"
        # the strategy has moved and converted the policy since, but does not know of the copy
        self._policy.to(rollout.completion_ids.device, next(policy.parameters()).dtype)
        return self._policy.score(prompts, rollout, temperature).logprobs
