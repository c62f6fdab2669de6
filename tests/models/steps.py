"""GRPO steps on a tiny model, and what is looked at before each."""

import copy

from lightning import Callback, seed_everything

from tests.callbacks.runs import make_data, make_module, make_trainer
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.vlm.loading import Lora

G = 4
MAX_NEW_TOKENS = 8

KINDS = {
    "full": ({}, FrozenCopy),
    "vision": ({"freeze_vision": False}, FrozenCopy),
    "lora": ({"lora": Lora(rank=4)}, AdapterOff),
}
"""Of training: options of the policy, and the reference that goes with them."""


class Snapshots(Callback):
    """Before each optimizer update: gradients, parameters and what the module learns from."""

    def __init__(self, prepare=None):
        self.gradients, self.parameters, self.groups = [], [], []
        self.prepare = prepare

    def on_fit_start(self, trainer, pl_module):
        if self.prepare:
            self.prepare(pl_module.policy)
        update = pl_module._optimizer_step

        def look_first(is_last):
            named = dict(pl_module.policy.named_parameters())
            self.gradients.append(
                {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
            )
            self.parameters.append({n: p.detach().clone() for n, p in named.items()})
            self.groups.append([copy.copy(group) for group in pl_module.last_rollout or []])
            update(is_last)

        pl_module._optimizer_step = look_first


def fit(folder, policy, train, callbacks=(), trainer=None, data=None, **options):
    """Train; by default steps of two questions, in the order of the list."""
    seed_everything(0, verbose=False)
    module = make_module(policy, max_new_tokens=MAX_NEW_TOKENS, **options)
    defaults = {"batch_size": 2, "shuffle": False}
    runner = make_trainer(folder, callbacks, **({"max_epochs": 1} | (trainer or {})))
    runner.fit(module, datamodule=make_data(train=train, **(defaults | (data or {}))))
    return module, runner
