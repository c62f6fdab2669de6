"""GRPO steps of the real module, Trainer, videos and tiny model, against the papers' formulas."""

import csv
import itertools
import logging
import math
import re

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR
from transformers import get_cosine_schedule_with_warmup

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
)
from tests.models.grpo.test_functional import plain_advantages, plain_loss
from tests.models.naive import plain_logprobs
from tests.models.steps import KINDS, MAX_NEW_TOKENS, G, Snapshots, fit
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.grpo.guards import UsableVideoGuard
from vrts.models.grpo.metrics import TRAIN_METRICS
from vrts.models.grpo.micro_batches import MicroBatch
from vrts.models.grpo.objectives import CISPO, DAPO, GRPO, GSPO, RLOO, DrGRPO, LossInputs
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.rewards import AccuracyReward, FormatReward
from vrts.models.sharding import Sharding
from vrts.models.vlm.loading import Lora
from vrts.types import InputError


def padded_logprobs(policy, groups, temperature):
    """Every row on its own through transformers' forward, padded to ``[N, L]``."""
    prompts, completions = [g.prompt for g in groups], [g.completions for g in groups]
    return pad_sequence(plain_logprobs(policy, prompts, completions, temperature), batch_first=True)


def plain_gradient(policy, objective, groups, old, reference, temperature):
    """Gradient of the formula at the policy's parameters, and the log-probs there."""
    rows = [c for group in groups for c in group.completions]
    rewards = [sum(map(ord, c.text)) % 7 / 6 for c in rows]
    kind = "centred" if isinstance(objective, DrGRPO) else "group"
    logprobs = padded_logprobs(policy, groups, temperature)
    lengths = torch.tensor([c.num_tokens for c in rows])
    inputs = LossInputs(
        logprobs,
        logprobs.detach() if old is None else old,
        reference,
        torch.tensor(plain_advantages(rewards, G, kind)),
        torch.arange(logprobs.shape[1]) < lengths[:, None],
        MAX_NEW_TOKENS,
    )
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    loss = plain_loss(objective, inputs)
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
    for step, groups in enumerate(snapshots.groups):
        policy.load_state_dict(snapshots.parameters[step], strict=False)
        kept = step % updates > 0
        same = step and groups[0].completions is snapshots.groups[step - 1][0].completions
        assert bool(same) == kept
        with torch.no_grad():
            want_reference = padded_logprobs(base, groups, temperature)
        gradient, logprobs, loss = plain_gradient(
            policy, objective, groups, old if kept else None,
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
        if (step + 1) % updates == 0:
            logged = history.losses[step // updates]
            assert logged == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert all(ratio > 1e-2 for ratio in ratios), "the second update is off the sampled policy"


@pytest.mark.parametrize("objective", [GRPO, DrGRPO, DAPO, GSPO, CISPO, RLOO])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_step_is_the_same_however_it_is_divided(tmp_path, varied_model, videos, objective, micro):
    """Losses and gradients of ragged completions, one video failing, and a short last step."""
    train = [*questions(videos["long"], 5), ask("short", videos["short"])]
    train[1] = ask("x", videos["damaged"])
    found = []
    for size in (4, micro):
        snapshots, history = Snapshots(), History()
        fit(
            tmp_path, make_policy(varied_model), train, [snapshots, history], lr=0.2,
            objective=objective(beta=0.1), reference=FrozenCopy(), micro_batch_size=size,
            data={"batch_size": 4},
        )  # fmt: skip
        assert history.steps == [1, 2]
        found.append((snapshots, history.losses))
    (undivided, losses), (parts, same_losses) = found
    lengths = {c.num_tokens for group in undivided.groups[0] for c in group.completions}
    assert len(lengths) > 1
    assert same_losses == pytest.approx(losses, rel=1e-5, abs=1e-7)
    for gradients, wanted in zip(parts.gradients, undivided.gradients, strict=True):
        scale = torch.stack([g.norm() for g in wanted.values()]).norm()
        assert scale > 1e-3
        for name, want in wanted.items():
            assert (gradients[name] - want).norm() <= 2e-6 * scale, name


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
        *TRAIN_METRICS, "reward/text", "reward/accuracy", "reward/format", "nonfinite_steps",
    ]  # fmt: skip
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == trainer.global_step == 2
    assert set(rows[0]) == {f"train/{name}" for name in names} | {"epoch", "step"}
    values = [{name: float(row[f"train/{name}"]) for name in names} for row in rows]
    for row in values:
        assert 0 < row["entropy"] < 6.5
        assert row["skipped"] == row["clip_ratio"] == row["reward/format"] == 0
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
        assert 0 < row["sampling/logprob_diff"] < 1e-5
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
        ({"rewards": [FormatReward(), FormatReward()]}, r"model\.rewards has two .* 'format'"),
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
            questions(videos["long"], 2), [snapshots], objective=GRPO(beta=0), micro_batch_size=2,
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


class Rates(Callback):
    """Learning rate of each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *_args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def warm_up_then_cosine(optimizer):
    return SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.5, 1.0, total_iters=2), CosineAnnealingLR(optimizer, 2)],
        milestones=[2],
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.5**step),
        warm_up_then_cosine,
        lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 1, 4),
    ],
)
@pytest.mark.parametrize("updates", [1, 2])
def test_the_schedule_counts_steps_and_resumes(tmp_path, varied_model, videos, scheduler, updates):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule, want = scheduler(optimizer), []
    for _ in range(4):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    rates, again = Rates(), Rates()
    options = {
        "lr": 1e-4, "objective": GRPO(beta=0), "lr_scheduler": scheduler,
        "updates_per_rollout": updates,
    }  # fmt: skip
    train = questions(videos["long"], 8)
    fit(tmp_path, make_policy(varied_model), train, [rates, keep], **options)
    assert rates.rates == pytest.approx(want)
    module = make_module(make_policy(varied_model), max_new_tokens=MAX_NEW_TOKENS, **options)
    data = make_data(train=train, batch_size=2, shuffle=False)
    path = str(tmp_path / "step=2.ckpt")
    make_trainer(tmp_path, [again], max_epochs=1).fit(module, datamodule=data, ckpt_path=path)
    assert again.rates == pytest.approx(want[2:])


def test_a_plateau_is_seen_by_validation(tmp_path, varied_model, videos):
    rates = Rates()
    fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 8), [rates], lr=1e-4,
        objective=GRPO(beta=0),
        lr_scheduler=lambda optimizer: ReduceLROnPlateau(
            optimizer, monitor="val/accuracy", mode="max", factor=0.5, patience=0
        ),
        trainer={"val_check_interval": 1, "check_val_every_n_epoch": None},
        data={"val": questions(videos["long"], 1)},
    )  # fmt: skip
    assert rates.rates[0] == 1e-4
    assert rates.rates[-1] < 1e-4


def test_a_plateau_without_a_monitor_is_refused(tmp_path, varied_model, videos):
    with pytest.raises(InputError, match=r"lightning\.pytorch\.cli\.ReduceLROnPlateau"):
        fit(
            tmp_path, make_policy(varied_model), questions(videos["long"], 2),
            objective=GRPO(beta=0), lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
        )  # fmt: skip


@pytest.mark.parametrize("keep", [True, False])
def test_sharding_options_without_effect_are_reported(tmp_path, varied_model, videos, caplog, keep):
    fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 2), objective=GRPO(beta=0),
        sharding=Sharding(keep_gathered=keep),
    )  # fmt: skip
    assert ("model.sharding has no effect" in caplog.text) == (not keep)


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
    module, trainer = fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 2), lr=1.0,
        objective=GRPO(beta=0), max_grad_norm=1e-3,
    )  # fmt: skip
    start = dict(before.named_parameters())
    moved = torch.cat(
        [(p - start[n]).detach().flatten() for n, p in module.policy.named_parameters()]
    )
    assert moved.norm() == pytest.approx(1e-3, rel=1e-2)
    assert trainer.callback_metrics["train/grad_norm"] > 1e-2


# ---- what a step is made from


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_one_rollout_serves_its_updates(tmp_path, varied_model, videos, updates, monkeypatch):
    """A step is counted once; only the first update's log-probs are the old ones, to the bit."""
    snapshots, history, seen = Snapshots(), History(), []
    make_inputs = MicroBatch.inputs

    def recording(micro_batch, *args):
        inputs = make_inputs(micro_batch, *args)
        seen.append((micro_batch, inputs.old_logprobs))
        return inputs

    monkeypatch.setattr(MicroBatch, "inputs", recording)
    module, trainer = fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 4), [snapshots, history],
        objective=GRPO(beta=0), lr=0.2, updates_per_rollout=updates,
    )  # fmt: skip
    assert trainer.global_step == module.num_steps_trained == 2
    assert history.steps == [1, 2]
    assert len(snapshots.gradients) == 2 * updates
    assert len(seen) == 2 * 2 * updates  # steps and micro-batches
    for step in range(2):
        own = seen[2 * step * updates : 2 * (step + 1) * updates]
        policy = make_policy(varied_model)
        policy.load()
        policy.load_state_dict(snapshots.parameters[step * updates], strict=False)
        for first, *others in (own[::2], own[1::2]):
            assert all(x is y for later in others for x, y in zip(first, later, strict=True))
            micro_batch, old = first
            with torch.no_grad():
                found = policy.logprobs(micro_batch.prompts, micro_batch.completions, 1.0).logprobs
            assert torch.equal(found, old)
            gap = micro_batch.sampling_sums["sampling/logprob_diff"]
            assert gap < 1e-4 * micro_batch.mask.sum()


@pytest.mark.parametrize("position", [0, 1])
def test_one_damaged_video_is_skipped_counted_and_named(
    tmp_path, varied_model, videos, position, caplog
):
    """The others give what they would give alone."""
    train = questions(videos["long"], 2)
    train[position] = ask("x", videos["damaged"])
    skipping, trainer = fit(tmp_path, make_policy(varied_model), train, objective=GRPO(beta=0))
    assert trainer.callback_metrics["train/skipped"] == 1
    assert "skipped question x: " in caplog.text
    assert "damaged.mp4" in caplog.text
    alone, _ = fit(
        tmp_path, make_policy(varied_model), [train[1 - position]], objective=GRPO(beta=0),
        data={"batch_size": 1},
    )  # fmt: skip
    for name, parameter in skipping.named_parameters():
        assert torch.equal(parameter, dict(alone.named_parameters())[name]), name


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_batch_of_damaged_videos_changes_nothing(
    tmp_path, varied_model, videos, kind, beta, monkeypatch
):
    # as if there had been a usable batch before; a run without any is an error
    monkeypatch.setattr(UsableVideoGuard, "check_end", lambda *_: None)
    options, reference = KINDS[kind]
    snapshots, history = Snapshots(), History()
    train = questions(videos["damaged"], 2, "x")
    module, trainer = fit(
        tmp_path, make_policy(varied_model, **options), train, [snapshots, history],
        objective=GRPO(beta=beta), reference=reference() if beta else None,
    )  # fmt: skip
    assert trainer.global_step == 1
    assert history.losses == [0]
    assert trainer.callback_metrics["train/skipped"] == 2
    assert "train/reward/total" not in trainer.callback_metrics
    for name, parameter in module.policy.named_parameters():
        assert torch.equal(parameter, snapshots.parameters[0][name]), name


def test_a_prompt_that_is_too_long_is_skipped(tmp_path, varied_model, videos, caplog):
    """A question of 8192 words and more does not fit the tiny model's context."""
    train = [ask("q0", videos["long"]), ask("long " * 8200, videos["long"])]
    _, trainer = fit(tmp_path, make_policy(varied_model), train, objective=GRPO(beta=0))
    assert trainer.callback_metrics["train/skipped"] == 1
    (message,) = [r.message for r in caplog.records if "exceed the model's 8192" in r.message]
    assert re.match(r"skipped question long .*: \d+ prompt tokens \(", message)
    assert message.count("question") == 1


def rollouts(folder, policy, train, **options):
    """Texts of each rollout by question; the policy does not move."""
    kept = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_args):
            kept.append(
                {g.sample.question.id: [c.text for c in g.completions]
                 for g in pl_module.last_rollout}
            )  # fmt: skip

    fit(folder, policy, train, [Keep()], objective=GRPO(beta=0), lr=0.0, **options)
    return kept


def test_completions_depend_on_question_epoch_and_seed_alone(tmp_path, varied_model, videos):
    train = questions(videos["long"], 4)
    run = {"trainer": {"max_epochs": 2}}
    first, second, third, fourth = rollouts(tmp_path, make_policy(varied_model), train, **run)
    assert first.keys() == third.keys() == {"q0", "q1"}
    assert all(len(set(texts)) == G for texts in first.values())
    assert first["q0"] != third["q0"], "another epoch has other seeds"
    backwards = rollouts(
        tmp_path, make_policy(varied_model), train[::-1], **run, data={"batch_size": 4}
    )
    assert [*first.items(), *second.items()] == [
        (id, backwards[0][id]) for id in ("q0", "q1", "q2", "q3")
    ]
    assert fourth["q3"] == backwards[1]["q3"]
    (other, *_) = rollouts(tmp_path, make_policy(varied_model), train, seed=1)
    assert other["q0"] != first["q0"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path, varied_model, videos, value, caplog
):
    class Plant(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 0:
                next(p for p in pl_module.parameters() if p.grad is not None).grad[0] = value

    snapshots = Snapshots()
    module, trainer = fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 4), [Plant(), snapshots],
        objective=GRPO(beta=0), lr=0.2,
    )  # fmt: skip
    assert trainer.global_step == 2
    assert trainer.callback_metrics["train/nonfinite_steps"] == 1
    assert "step 0 is skipped" in caplog.text
    moved = dict(module.policy.named_parameters())
    for name, before in snapshots.parameters[0].items():
        assert torch.equal(before, snapshots.parameters[1][name])
    assert any(not torch.equal(before, moved[n]) for n, before in snapshots.parameters[1].items())
