"""GRPO steps on a tiny model, and what is looked at before each."""

from lightning import Callback, seed_everything

from tests.callbacks.runs import make_data, make_module, make_trainer
from vrts.models.qwen_loading import Lora
from vrts.models.reference import AdapterOff, FrozenCopy

G = 4
MAX_NEW_TOKENS = 8

KINDS = {
    "full": ({}, FrozenCopy),
    "vision": ({"freeze_vision": False}, FrozenCopy),
    "lora": ({"lora": Lora(rank=4)}, AdapterOff),
}
"""Of training: options of the policy, and the reference that goes with them."""


class Snapshots(Callback):
    """Before each optimizer step: gradients, parameters and what the module learns from."""

    def __init__(self, prepare=None):
        self.gradients, self.parameters, self.experiences = [], [], []
        self.prepare = prepare

    def on_train_start(self, trainer, pl_module):
        if self.prepare:
            self.prepare(pl_module.policy)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        policy = pl_module.policy
        named = dict(policy.named_parameters())
        self.gradients.append({n: p.grad.clone() for n, p in named.items() if p.grad is not None})
        self.parameters.append({n: p.detach().clone() for n, p in named.items()})
        self.experiences.append(pl_module._rollouts.experience)


def fit(folder, policy, train, callbacks=(), trainer=None, data=None, **options):
    """Train; by default one step on two questions, in the order of the list."""
    seed_everything(0, verbose=False)
    module = make_module(policy, max_new_tokens=MAX_NEW_TOKENS, **options)
    updates = options.get("updates_per_rollout", 1)
    defaults = {"batch_size": 2, "shuffle": False, "updates_per_rollout": updates}
    runner = make_trainer(folder, callbacks, **({"max_epochs": 1} | (trainer or {})))
    runner.fit(module, datamodule=make_data(train=train, **(defaults | (data or {}))))
    return module, runner
