"""References: what the policy is regularised towards. Plug-in point ``model.reference``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import nn

from vrts.models.engines.weights import reshard
from vrts.models.policy import Policy
from vrts.models.sharding import Sharder, Sharding, gathered, is_sharded, sharded_like, unsharded


class Reference(ABC):
    """The policy as it was before training."""

    @abstractmethod
    def attach(self, policy: Policy) -> None:
        """Prepare from a policy that has just been loaded and not been trained yet."""

    @abstractmethod
    def scoring(self, policy: Policy) -> AbstractContextManager[Policy]:
        """Context of a step, with what scores as the reference; called without gradient.

        Args:
            policy: as it is trained now.
        """

    def shard(self, sharder: Sharder) -> None:  # noqa: B027 most have nothing of their own
        """Shard own weights, after `attach`."""

    def after_step(self, policy: Policy, step: int) -> None:  # noqa: B027 most have nothing to do
        """Follow the policy, for references that move.

        Args:
            policy: after an optimizer step.
            step: optimizer steps made so far.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to keep; nothing where the policy's folder has it."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:  # noqa: B027
        """Take over what `state_dict` returned; called after `attach`."""


class AdapterOff(Reference):
    """The policy with its LoRA adapter as it was before training, which takes next to no memory.

    That is the base model, with the adapter off; where training continues with the adapter of a
    folder, the model with that one, whose weights are kept and put in while the reference scores.
    """

    def __init__(self) -> None:
        self._start: dict[str, torch.Tensor] = {}

    def attach(self, policy: Policy) -> None:
        """Check that there is an adapter, and keep one that is not fresh.

        Raises:
            InputError: there is none.
        """
        with policy.adapter_disabled():
            pass
        if policy.continues_adapter:
            trained = ((n, p) for n, p in policy.named_parameters() if p.requires_grad)
            self._start = {name: parameter.detach().clone() for name, parameter in trained}

    @contextmanager
    def scoring(self, policy: Policy) -> Iterator[Policy]:
        """See `Reference.scoring`."""
        if not self._start:
            with policy.adapter_disabled():
                yield policy
            return
        reshard(policy)  # else these would be copies that FSDP has gathered
        named = dict(policy.named_parameters())
        trained = {name: named[name].detach().clone() for name in self._start}
        _copy_into(policy, self._start)
        try:
            yield policy
        finally:
            _copy_into(policy, trained)


class FrozenCopy(Reference):
    """A second set of weights, for full fine-tuning; in no optimizer.

    It may follow the policy: every `sync_every_n_steps` optimizer steps its weights become ``mixup
    * policy + (1 - mixup) * reference`` (TR-DPO, Gorbatovski et al., 2024, arXiv 2404.09656). It
    is then in the checkpoint too, which otherwise has nothing of it.

    Args:
        sync_every_n_steps: null never moves it.
        mixup: share of the policy, TRL's by default; 1 copies it.
    """

    def __init__(
        self, sync_every_n_steps: PositiveInt | None = None, mixup: ClosedUnitInterval = 0.6
    ) -> None:
        self.sync_every_n_steps = sync_every_n_steps and int(sync_every_n_steps)
        self.mixup = float(mixup)
        self._policy: Policy | None = None
        self._sharding = Sharding()
        self._trained: frozenset[str] = frozenset()

    @property
    def _copy(self) -> Policy:
        assert self._policy is not None, "attach() was not called"
        return self._policy

    def attach(self, policy: Policy) -> None:
        """Copy the policy's weights."""
        self._trained = frozenset(n for n, p in policy.named_parameters() if p.requires_grad)
        self._policy = copy.deepcopy(policy).eval().requires_grad_(False)

    def shard(self, sharder: Sharder) -> None:
        """See `Reference.shard`."""
        self._sharding = sharder.options
        sharder(self._copy)

    @contextmanager
    def scoring(self, policy: Policy) -> Iterator[Policy]:
        """See `Reference.scoring`: where it is sharded, each layer is gathered once."""
        if not is_sharded(self._copy):
            # the strategy has moved and converted the policy since, but does not know of the copy
            parameter = next(policy.parameters())
            self._copy.to(parameter.device, parameter.dtype)
        with gathered(self._copy, self._sharding):
            yield self._copy

    @torch.no_grad()
    def after_step(self, policy: Policy, step: int) -> None:
        """See `Reference.after_step`."""
        if self.sync_every_n_steps is None or step % self.sync_every_n_steps:
            return
        trained = dict(policy.named_parameters())
        for name, own in self._moving():
            own.lerp_(trained[name].to(own), self.mixup)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Reference.state_dict`."""
        if self.sync_every_n_steps is None:
            return {}
        return {name: unsharded(own.detach()) for name, own in self._moving()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `Reference.load_state_dict`."""
        for name, own in self._moving():
            own.copy_(sharded_like(state[name], own))

    def _moving(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Own weights that the policy trains."""
        return (item for item in self._copy.named_parameters() if item[0] in self._trained)


@torch.no_grad()
def _copy_into(policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    """Give some parameters other values; FSDP must not compute with what it has gathered."""
    reshard(policy)
    named = dict(policy.named_parameters())
    for name, value in weights.items():
        named[name].copy_(sharded_like(value, named[name]))
