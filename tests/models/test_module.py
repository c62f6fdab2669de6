"""GRPO steps of the real module, Trainer, videos and tiny model, against the papers' formulas."""

import csv
import itertools
import logging

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.nn.utils.rnn import pad_sequence

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
)
from tests.models.naive import plain_logprobs
from tests.models.steps import KINDS, MAX_NEW_TOKENS, G, Snapshots, fit
from tests.models.test_grpo import plain_advantages, plain_loss
from tests.models.test_qwen import perturb_adapter
from vrts.models.metrics import TRAIN_METRICS
from vrts.models.objectives import DAPO, GRPO, Completions, DrGRPO
from vrts.models.qwen import QwenPolicy
from vrts.models.qwen_loading import Lora
from vrts.models.reference import AdapterOff, FrozenCopy
from vrts.models.rewards import AccuracyReward, FormatReward
from vrts.models.sharding import Sharding
from vrts.types import InputError


def padded_logprobs(policy, experience, temperature):
    """Every row on its own through transformers' forward, padded to ``[N, L]``."""
    rollout, prompts = experience.groups.rollout, experience.prompts
    return pad_sequence(plain_logprobs(policy, prompts, rollout, temperature), batch_first=True)


def plain_gradient(policy, objective, experience, old, reference, temperature):
    """Gradient of the formula at the policy's parameters, and the log-probs there."""
    rewards = [sum(map(ord, text)) % 7 / 6 for text in experience.groups.rollout.texts]
    kind = "centred" if isinstance(objective, DrGRPO) else "group"
    logprobs = padded_logprobs(policy, experience, temperature)
    completions = Completions(
        logprobs,
        logprobs.detach() if old is None else old,
        reference,
        torch.tensor(plain_advantages(rewards, G, kind)),
        experience.groups.rollout.completion_mask,
        MAX_NEW_TOKENS,
    )
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    loss = plain_loss(objective, completions)
    gradients = torch.autograd.grad(loss, trained.values())
    return dict(zip(trained, gradients, strict=True)), logprobs.detach(), loss.item()


@pytest.mark.parametrize(
    ("kind", "objective", "updates", "temperature"),
    [
        ("full", GRPO(beta=0.5), 2, 1.0),
        ("full", GRPO(beta=0.0), 2, 0.7),
        ("full", DrGRPO(beta=0.5, clip_low=0.05, clip_high=0.05), 2, 1.0),
        ("vision", DAPO(beta=0.5), 1, 1.0),
        ("lora", GRPO(beta=0.5), 1, 1.0),
        ("lora", DrGRPO(beta=0.0), 2, 1.0),
        ("lora", DAPO(beta=0.5, clip_low=0.05, clip_high=0.1), 2, 1.3),
    ],
)
def test_the_gradient_of_each_step_is_that_of_the_formula(
    tmp_path, varied_model, videos, kind, objective, updates, temperature
):
    """Two rollouts, so that policy, old policy and reference all differ."""
    options, reference = KINDS[kind]
    snapshots, history = Snapshots(perturb_adapter), History()
    train = [*questions(videos["long"], 3), ask("short", videos["short"])]
    fit(
        tmp_path, make_policy(varied_model, **options), train, [snapshots, history],
        lr=0.2, objective=objective, reference=reference() if objective.beta else None,
        updates_per_rollout=updates, temperature=temperature,
    )  # fmt: skip
    assert len(snapshots.gradients) == 2 * updates
    policy, base = make_policy(varied_model, **options), make_policy(varied_model)
    policy.load()
    base.load()
    old, ratios = None, []
    for step, experience in enumerate(snapshots.experiences):
        policy.load_state_dict(snapshots.parameters[step], strict=False)
        kept = step % updates > 0
        assert (experience is snapshots.experiences[step - 1]) == kept
        with torch.no_grad():
            want_reference = padded_logprobs(base, experience, temperature)
        gradient, logprobs, loss = plain_gradient(
            policy, objective, experience, old if kept else None,
            want_reference if objective.beta else None, temperature,
        )  # fmt: skip
        if kept:
            ratios.append((logprobs - old).abs().max())
        old = logprobs
        got = snapshots.gradients[step]
        assert got.keys() == gradient.keys()
        scale = torch.stack([g.norm() for g in gradient.values()]).norm()
        assert scale > 1e-2
        for name, want in gradient.items():
            assert (got[name] - want).norm() <= 1e-4 * max(want.norm(), 1e-2 * scale), name
        assert history.losses[step] == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert all(ratio > 1e-2 for ratio in ratios), "the second update is off the sampled policy"


@pytest.mark.parametrize("objective", [GRPO(beta=0.1), DrGRPO(beta=0.0)])
def test_accumulated_batches_are_one_large_batch(tmp_path, varied_model, videos, objective):
    train = questions(videos["long"], 4)
    results = []
    for accumulate in (1, 2):
        module, trainer = fit(
            tmp_path, make_policy(varied_model), train, objective=objective,
            reference=FrozenCopy(), lr=0.2, trainer={"accumulate_grad_batches": accumulate},
            data={"batch_size": 2 // accumulate},
        )  # fmt: skip
        assert trainer.global_step == 2
        results.append(dict(module.named_parameters()))
    for name, parameter in results[0].items():
        torch.testing.assert_close(results[1][name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "objective", "beta"),
    [("vision", GRPO, 0.1), *itertools.product(["full", "lora"], [GRPO, DrGRPO, DAPO], [0.0, 0.1])],
)
def test_a_run_logs_everything_and_trains_what_it_should(
    tmp_path, varied_model, videos, kind, objective, beta
):
    options, reference = KINDS[kind]
    policy = make_policy(varied_model, **options)
    rewards = [*make_module(policy).rewards, AccuracyReward(), FormatReward(weight=0.5)]
    logger = CSVLogger(tmp_path)
    before = make_policy(varied_model, **options)
    before.load()
    module, trainer = fit(
        tmp_path, policy, questions(videos["long"], 4), objective=objective(beta=beta),
        reference=reference() if beta else None, rewards=rewards, lr=0.2,
        trainer={"logger": logger, "log_every_n_steps": 1},
    )  # fmt: skip
    names = [
        *TRAIN_METRICS, "reward/text", "reward/accuracy", "reward/format", "update_s",
        "nonfinite_steps",
    ]  # fmt: skip
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == trainer.global_step == 2
    assert set(rows[0]) == {f"train/{name}" for name in names} | {"epoch", "step"}
    values = [{name: float(row[f"train/{name}"]) for name in names} for row in rows]
    for row in values:
        assert 0 < row["entropy"] < 6.5
        assert row["skipped"] == row["clip_share"] == row["reward/format"] == 0
        assert row["reward/total"] == pytest.approx(
            row["reward/text"] + row["reward/accuracy"] + 0.5 * row["reward/format"]
        )
        assert 1 <= row["completion_length"] <= MAX_NEW_TOKENS
        assert 0 < row["truncated"] <= 1
        assert row["reward_std"] > 0
        assert row["rollout_s"] > 0
        assert row["update_s"] > 0
        assert row["nonfinite_steps"] == 0
        assert row["sampled_groups"] == 2
        assert 0 < row["rollout_logprob_gap"] < 1e-5
        tokens = row["completion_length"] * 2 * G
        assert row["tokens_per_s"] == pytest.approx(tokens / row["rollout_s"], rel=1e-3)
    assert values[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert (values[1]["kl"] > 0) == (beta > 0)
    for name, parameter in policy.named_parameters():
        start = dict(before.named_parameters())[name]
        moved = not torch.equal(parameter, start)
        expected = {
            "full": "visual" not in name,
            "vision": True,
            "lora": "lora_B" in name,  # lora_A starts at random and has no gradient at first
        }[kind]
        assert parameter.requires_grad == start.requires_grad
        if expected:
            assert moved, name
        if not parameter.requires_grad:
            assert not moved, name
    assert not any("reference" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 1}, r"model\.num_generations is 1; .* 2 or more"),
        ({"rewards": []}, r"model\.rewards is empty"),
        ({"objective": GRPO(beta=0.1)}, r"beta 0\.1 but model\.reference is null"),
        ({"objective": GRPO(beta=0.1), "reference": AdapterOff()}, "AdapterOff needs an adapter"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path, varied_model, videos, options, message
):
    policy = make_policy(varied_model)
    steps = History()
    with pytest.raises(InputError, match=message):
        fit(
            tmp_path, policy, questions(videos["long"], 2), [steps],
            **({"objective": GRPO(beta=0)} | options),
        )  # fmt: skip
    assert steps.ids == []
    assert policy.loaded == ("reference" in options), "the rest is known without weights"


def test_gradient_checkpointing_runs_layers_again_and_changes_no_gradient(
    tmp_path, varied_model, videos
):
    """Without it in effect, long completions of a large model would not fit in memory."""
    counts, gradients = [], []
    for checkpointing in (False, True):
        calls = []

        def watch(policy, calls=calls):
            policy.base.model.language_model.layers[1].self_attn.register_forward_hook(
                lambda *_args: calls.append(torch.is_grad_enabled())
            )

        snapshots = Snapshots(watch)
        fit(
            tmp_path, make_policy(varied_model, gradient_checkpointing=checkpointing),
            questions(videos["long"], 2), [snapshots], objective=GRPO(beta=0),
        )  # fmt: skip
        counts.append(sum(calls))
        gradients.append(snapshots.gradients[0])
    assert counts == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_the_module_loads_in_training_mode_for_fit_alone(tmp_path, varied_model, videos):
    policy = make_policy(varied_model, gradient_checkpointing=True)
    fit(tmp_path, policy, questions(videos["long"], 2), objective=GRPO(beta=0))
    assert policy.model.training
    policy = make_policy(varied_model)
    data = make_data(test=questions(videos["long"], 1))
    make_trainer(tmp_path).test(make_module(policy), datamodule=data, verbose=False)
    assert not policy.model.training


def test_a_policy_that_has_predicted_trains_as_a_fresh_one(tmp_path, varied_model, videos):
    """Fitting after another stage in one process: reference, training mode and all."""
    train = questions(videos["long"], 4)
    options = {"objective": GRPO(beta=0.5), "lr": 0.2}
    fresh, history = make_policy(varied_model), History()
    fit(tmp_path, fresh, train, [history], **options, reference=FrozenCopy())
    used, again = make_policy(varied_model), History()
    data = make_data(predict=train)
    make_trainer(tmp_path).predict(make_module(used), datamodule=data)
    assert not used.model.training
    fit(tmp_path, used, train, [again], **options, reference=FrozenCopy())
    assert used.model.training
    assert again.losses == history.losses


def test_a_second_fit_keeps_the_reference_of_the_first(tmp_path, varied_model, videos):
    train = questions(videos["long"], 2)
    module, trainer = fit(
        tmp_path, make_policy(varied_model), train, objective=GRPO(beta=0.5),
        reference=FrozenCopy(), lr=0.5,
    )  # fmt: skip
    assert trainer.callback_metrics["train/kl"] == pytest.approx(0, abs=1e-9)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=make_data(train=train, batch_size=2))
    assert trainer.callback_metrics["train/kl"] > 1e-4


def test_the_schedule_follows_optimizer_steps(tmp_path, varied_model, videos):
    rates = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 8), [Look()], lr=1.0,
        objective=GRPO(beta=0), trainer={"accumulate_grad_batches": 2},
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5**step
        ),
    )  # fmt: skip
    assert rates == [1, 0.5, 0.5, 0.25]


def test_metrics_of_a_step_are_of_all_its_batches(tmp_path, varied_model, videos, monkeypatch):
    lengths, logged = [], []
    rollout = QwenPolicy.rollout

    def record(self, *args):
        made = rollout(self, *args)
        lengths.append(float(made.lengths.float().mean()))
        return made

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_args):
            if trainer.global_step > len(logged):
                logged.append(float(trainer.callback_metrics["train/completion_length"]))

        on_train_epoch_end = on_train_batch_start

    monkeypatch.setattr(QwenPolicy, "rollout", record)
    fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 5), [Look()],
        objective=GRPO(beta=0), trainer={"accumulate_grad_batches": 2}, data={"batch_size": 1},
    )  # fmt: skip
    assert len(set(lengths)) > 1, "batches of different lengths are needed here"
    steps = [lengths[:2], lengths[2:4], lengths[4:]]
    assert logged == pytest.approx([sum(step) / len(step) for step in steps])


@pytest.mark.parametrize("resident", [True, False])
def test_sharding_options_without_effect_are_told(tmp_path, varied_model, videos, caplog, resident):
    fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 2), objective=GRPO(beta=0),
        sharding=Sharding(resident_rollout=resident),
    )  # fmt: skip
    assert ("model.sharding has no effect" in caplog.text) == (not resident)


def test_the_optimizer_has_what_is_trained_alone(tmp_path, varied_model, videos):
    policy = make_policy(varied_model, lora=Lora(rank=4))
    _, trainer = fit(
        tmp_path, policy, questions(videos["long"], 2), objective=GRPO(beta=0.1),
        reference=AdapterOff(),
    )  # fmt: skip
    (group,) = trainer.optimizers[0].param_groups
    assert [id(p) for p in group["params"]] == [
        id(p) for n, p in policy.named_parameters() if "lora_" in n
    ]


def test_clipping_by_norm(tmp_path, varied_model, videos, caplog):
    caplog.set_level(logging.WARNING)
    before = make_policy(varied_model)
    before.load()
    module, _ = fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 2), lr=1.0,
        objective=GRPO(beta=0), trainer={"gradient_clip_val": 1e-3},
    )  # fmt: skip
    start = dict(before.named_parameters())
    moved = torch.cat(
        [(p - start[n]).detach().flatten() for n, p in module.policy.named_parameters()]
    )
    assert moved.norm() == pytest.approx(1e-3, rel=1e-2)
