"""GRPO steps of the real module, Trainer, videos and tiny model, against the papers' formulas."""

import csv
import itertools
import logging

import pytest
import torch
from lightning import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.nn.utils.rnn import pad_sequence

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    History,
    build_model,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    make_videos,
    questions,
    scripted,
)
from tests.data.plugins import FakeDecoder
from tests.models.naive import plain_logprobs
from tests.models.test_grpo import plain_advantages, plain_loss
from tests.models.test_qwen import perturb_adapter
from vrts.models.advantages import BatchScaled
from vrts.models.answering import RoundPlan
from vrts.models.experience import Experience
from vrts.models.metrics import TRAIN_METRICS
from vrts.models.objectives import CISPO, DAPO, GRPO, GSPO, RLOO, Completions, DrGRPO
from vrts.models.patience import Patience
from vrts.models.positions import VideoGrid, video_positions
from vrts.models.qwen import QwenPolicy
from vrts.models.qwen_loading import Lora
from vrts.models.reference import AdapterOff, FrozenCopy
from vrts.models.rewards import AccuracyReward, FormatReward
from vrts.models.sharding import Sharding
from vrts.models.temporal import TemporalReward
from vrts.types import InputError, Sampling

G = 4
MAX_NEW_TOKENS = 8


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model whose completions differ in length."""
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    return make_videos(tmp_path_factory.mktemp("videos"), make_video)


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
        self.experiences.append(pl_module._experience)


def fit(folder, policy, train, callbacks=(), trainer=None, data=None, **options):
    """Train; by default one step on two questions, in the order of the list."""
    seed_everything(0, verbose=False)
    module = make_module(policy, max_new_tokens=MAX_NEW_TOKENS, **options)
    updates = options.get("updates_per_rollout", 1)
    defaults = {"batch_size": 2, "shuffle": False, "updates_per_rollout": updates}
    runner = make_trainer(folder, callbacks, **({"max_epochs": 1} | (trainer or {})))
    runner.fit(module, datamodule=make_data(train=train, **(defaults | (data or {}))))
    return module, runner


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


KINDS = {
    "full": ({}, FrozenCopy),
    "vision": ({"freeze_vision": False}, FrozenCopy),
    "lora": ({"lora": Lora(rank=4)}, AdapterOff),
}


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
    tmp_path, model_folder, videos, kind, objective, updates, temperature
):
    """Two rollouts, so that policy, old policy and reference all differ."""
    options, reference = KINDS[kind]
    snapshots, history = Snapshots(perturb_adapter), History()
    train = [*questions(videos["long"], 3), ask("short", videos["short"])]
    fit(
        tmp_path, make_policy(model_folder, **options), train, [snapshots, history],
        lr=0.2, objective=objective, reference=reference() if objective.beta else None,
        updates_per_rollout=updates, temperature=temperature,
    )  # fmt: skip
    assert len(snapshots.gradients) == 2 * updates
    policy, base = make_policy(model_folder, **options), make_policy(model_folder)
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


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_one_rollout_serves_its_updates(tmp_path, model_folder, videos, updates, monkeypatch):
    policy = make_policy(model_folder)
    calls = []
    rollout = type(policy).rollout

    def count(self, *args):
        calls.append(1)
        return rollout(self, *args)

    monkeypatch.setattr(type(policy), "rollout", count)
    _, trainer = fit(
        tmp_path, policy, questions(videos["long"], 4), objective=GRPO(beta=0),
        updates_per_rollout=updates,
    )  # fmt: skip
    assert len(calls) == 2
    assert trainer.global_step == 2 * updates


@pytest.mark.parametrize(("updates", "accumulate"), [(1, 1), (3, 1), (1, 2)])
def test_the_old_policys_logprobs_cost_no_pass(
    tmp_path, model_folder, videos, updates, accumulate, monkeypatch
):
    """One score an update and no other; later updates compare with the first one's, to the bit."""
    policy = make_policy(model_folder)
    scores, old = [], []
    score, completions = QwenPolicy.score, Experience.completions

    def record_score(self, *args):
        scores.append(score(self, *args))
        return scores[-1]

    def record_old(self, *args):
        made = completions(self, *args)
        old.append(made.old_logprobs)
        return made

    monkeypatch.setattr(QwenPolicy, "score", record_score)
    monkeypatch.setattr(Experience, "completions", record_old)
    fit(
        tmp_path, policy, questions(videos["long"], 4), objective=GRPO(beta=0), lr=0.2,
        updates_per_rollout=updates, trainer={"accumulate_grad_batches": accumulate},
    )  # fmt: skip
    assert len(scores) == len(old) == 2 * updates
    for update, logprobs in enumerate(old):
        first = update - update % updates
        assert torch.equal(logprobs, scores[first].logprobs)
        moved = not torch.equal(logprobs, scores[update].logprobs)
        assert moved == (update != first), "the weights move between updates of one rollout"


@pytest.mark.parametrize("objective", [GRPO(beta=0.1), DrGRPO(beta=0.0)])
def test_accumulated_batches_are_one_large_batch(tmp_path, model_folder, videos, objective):
    train = questions(videos["long"], 4)
    results = []
    for accumulate in (1, 2):
        module, trainer = fit(
            tmp_path, make_policy(model_folder), train, objective=objective,
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
    tmp_path, model_folder, videos, kind, objective, beta
):
    options, reference = KINDS[kind]
    policy = make_policy(model_folder, **options)
    rewards = [*make_module(policy).rewards, AccuracyReward(), FormatReward(weight=0.5)]
    logger = CSVLogger(tmp_path)
    before = make_policy(model_folder, **options)
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


@pytest.mark.parametrize("position", [0, 1])
def test_one_damaged_video_is_skipped_counted_and_named(
    tmp_path, model_folder, videos, position, caplog
):
    """The others give what they would give alone."""
    train = questions(videos["long"], 2)
    train[position] = ask("x", videos["damaged"])
    whole, trainer = fit(tmp_path, make_policy(model_folder), train, objective=GRPO(beta=0))
    assert trainer.callback_metrics["train/skipped"] == 1
    assert "skipped question x: " in caplog.text
    assert "damaged.mp4" in caplog.text
    alone, _ = fit(
        tmp_path, make_policy(model_folder), [train[1 - position]], objective=GRPO(beta=0),
        data={"batch_size": 1},
    )  # fmt: skip
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(alone.named_parameters())[name]), name


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_batch_of_damaged_videos_changes_nothing(
    tmp_path, model_folder, videos, kind, beta, monkeypatch
):
    # as if there had been a usable batch before; a run without any is an error
    monkeypatch.setattr(Patience, "check_end", lambda *_: None)
    options, reference = KINDS[kind]
    snapshots, history = Snapshots(), History()
    train = questions(videos["damaged"], 2, "x")
    module, trainer = fit(
        tmp_path, make_policy(model_folder, **options), train, [snapshots, history],
        objective=GRPO(beta=beta), reference=reference() if beta else None,
    )  # fmt: skip
    assert trainer.global_step == 1
    assert history.losses == [0]
    assert trainer.callback_metrics["train/skipped"] == 2
    assert "train/reward/total" not in trainer.callback_metrics
    trained = {n for n, p in module.policy.named_parameters() if p.requires_grad}
    (gradients,) = snapshots.gradients
    assert gradients.keys() == trained, "each has a gradient, which other processes wait for"
    assert all((gradient == 0).all() for gradient in gradients.values())
    for name, parameter in module.policy.named_parameters():
        assert torch.equal(parameter, snapshots.parameters[0][name]), name


def test_a_prompt_that_is_too_long_is_skipped(tmp_path, model_folder, videos, caplog):
    """A question of 8192 words and more does not fit the tiny model's context."""
    train = [ask("q0", videos["long"]), ask("long " * 8200, videos["long"])]
    _, trainer = fit(tmp_path, make_policy(model_folder), train, objective=GRPO(beta=0))
    assert trainer.callback_metrics["train/skipped"] == 1
    assert "exceed the model's 8192" in caplog.text


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
    tmp_path, model_folder, videos, options, message
):
    policy = make_policy(model_folder)
    steps = History()
    with pytest.raises(InputError, match=message):
        fit(
            tmp_path, policy, questions(videos["long"], 2), [steps],
            **({"objective": GRPO(beta=0)} | options),
        )  # fmt: skip
    assert steps.ids == []
    assert policy.loaded == ("reference" in options), "the rest is known without weights"


def test_these_do_not_matter_to_prediction(tmp_path, videos):
    module = make_module(scripted(), num_generations=1, rewards=[], objective=GRPO(beta=1.0))
    data = make_data(test=questions(videos["long"], 1))
    (result,) = make_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert result["test/accuracy"] == 1.0


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_evaluation_counts_failures_and_missing_answers_as_wrong(tmp_path, videos, batch):
    """Right, wrong, without an answer, damaged, of unknown answer, right: 2 of 5."""
    asked = [
        ask("right", videos["long"], "A"), ask("wrong", videos["long"], "B"),
        ask("silent", videos["long"], "A"), ask("damaged", videos["damaged"], "A"),
        ask("unknown", videos["long"], None), ask("right too", videos["long"], "C"),
    ]  # fmt: skip
    policy = scripted({"silent": {4: "-"}, "right too": {4: "C"}})
    for stage, run in (("val", "validate"), ("test", "test")):
        data = make_data(**{stage: asked}, eval_batch_size=batch)
        (result,) = getattr(make_trainer(tmp_path), run)(
            make_module(policy), datamodule=data, verbose=False
        )
        assert result == {
            f"{stage}/accuracy": pytest.approx(2 / 5),
            f"{stage}/failures": 1,
            f"{stage}/mean_frames": 4,
            # the silent one's only completion gives no answer
            f"{stage}/agreement": pytest.approx(4 / 5),
        }


def test_validation_within_training_starts_anew_each_time(tmp_path, model_folder, videos):
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["val/accuracy"]))
            assert not pl_module.training

        def on_train_batch_start(self, trainer, pl_module, *_args):
            assert pl_module.policy.model.training

    fit(
        tmp_path, make_policy(model_folder), questions(videos["long"], 4), [Look()],
        objective=GRPO(beta=0), trainer={"val_check_interval": 1, "num_sanity_val_steps": 0},
        data={"val": questions(videos["damaged"], 2, "v")},
    )  # fmt: skip
    assert seen == [0, 0]


def test_gradient_checkpointing_runs_layers_again_and_changes_no_gradient(
    tmp_path, model_folder, videos
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
            tmp_path, make_policy(model_folder, gradient_checkpointing=checkpointing),
            questions(videos["long"], 2), [snapshots], objective=GRPO(beta=0),
        )  # fmt: skip
        counts.append(sum(calls))
        gradients.append(snapshots.gradients[0])
    assert counts == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_the_module_loads_in_training_mode_for_fit_alone(tmp_path, model_folder, videos):
    policy = make_policy(model_folder, gradient_checkpointing=True)
    fit(tmp_path, policy, questions(videos["long"], 2), objective=GRPO(beta=0))
    assert policy.model.training
    policy = make_policy(model_folder)
    data = make_data(test=questions(videos["long"], 1))
    make_trainer(tmp_path).test(make_module(policy), datamodule=data, verbose=False)
    assert not policy.model.training


def test_a_policy_that_has_predicted_trains_as_a_fresh_one(tmp_path, model_folder, videos):
    """Fitting after another stage in one process: reference, training mode and all."""
    train = questions(videos["long"], 4)
    options = {"objective": GRPO(beta=0.5), "lr": 0.2}
    fresh, history = make_policy(model_folder), History()
    fit(tmp_path, fresh, train, [history], **options, reference=FrozenCopy())
    used, again = make_policy(model_folder), History()
    data = make_data(predict=train)
    make_trainer(tmp_path).predict(make_module(used), datamodule=data)
    assert not used.model.training
    fit(tmp_path, used, train, [again], **options, reference=FrozenCopy())
    assert used.model.training
    assert again.losses == history.losses


def test_a_second_fit_keeps_the_reference_of_the_first(tmp_path, model_folder, videos):
    train = questions(videos["long"], 2)
    module, trainer = fit(
        tmp_path, make_policy(model_folder), train, objective=GRPO(beta=0.5),
        reference=FrozenCopy(), lr=0.5,
    )  # fmt: skip
    assert trainer.callback_metrics["train/kl"] == pytest.approx(0, abs=1e-9)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=make_data(train=train, batch_size=2))
    assert trainer.callback_metrics["train/kl"] > 1e-4


def rollouts(folder, policy, train, **options):
    """Texts of each rollout by question; the policy stands still."""
    kept = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_args):
            record = pl_module.last_rollout
            ids = [q.id for q in record.questions]
            kept.append({id: [t for i, t in zip(ids, record.texts, strict=True) if i == id]
                         for id in ids})  # fmt: skip

    fit(folder, policy, train, [Keep()], objective=GRPO(beta=0), lr=0.0, **options)
    return kept


def test_completions_depend_on_question_epoch_and_seed_alone(tmp_path, model_folder, videos):
    train = questions(videos["long"], 4)
    run = {"trainer": {"max_epochs": 2}}
    first, second, third, fourth = rollouts(tmp_path, make_policy(model_folder), train, **run)
    assert first.keys() == third.keys() == {"q0", "q1"}
    assert all(len(set(texts)) == G for texts in first.values())
    assert first["q0"] != third["q0"], "another epoch draws anew"
    backwards = rollouts(
        tmp_path, make_policy(model_folder), train[::-1], **run, data={"batch_size": 4}
    )
    assert [*first.items(), *second.items()] == [
        (id, backwards[0][id]) for id in ("q0", "q1", "q2", "q3")
    ]
    assert fourth["q3"] == backwards[1]["q3"]
    (other, *_) = rollouts(tmp_path, make_policy(model_folder), train, seed=1)
    assert other["q0"] != first["q0"]


def test_the_schedule_follows_optimizer_steps(tmp_path, model_folder, videos):
    rates = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(
        tmp_path, make_policy(model_folder), questions(videos["long"], 8), [Look()], lr=1.0,
        objective=GRPO(beta=0), trainer={"accumulate_grad_batches": 2},
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5**step
        ),
    )  # fmt: skip
    assert rates == [1, 0.5, 0.5, 0.25]


def test_metrics_of_a_step_are_of_all_its_batches(tmp_path, model_folder, videos, monkeypatch):
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
        tmp_path, make_policy(model_folder), questions(videos["long"], 5), [Look()],
        objective=GRPO(beta=0), trainer={"accumulate_grad_batches": 2}, data={"batch_size": 1},
    )  # fmt: skip
    assert len(set(lengths)) > 1, "batches of different lengths are needed here"
    steps = [lengths[:2], lengths[2:4], lengths[4:]]
    assert logged == pytest.approx([sum(step) / len(step) for step in steps])


@pytest.mark.parametrize("resident", [True, False])
def test_sharding_options_without_effect_are_told(tmp_path, model_folder, videos, caplog, resident):
    fit(
        tmp_path, make_policy(model_folder), questions(videos["long"], 2), objective=GRPO(beta=0),
        sharding=Sharding(resident_rollout=resident),
    )  # fmt: skip
    assert ("model.sharding has no effect" in caplog.text) == (not resident)


def test_the_optimizer_has_what_is_trained_alone(tmp_path, model_folder, videos):
    policy = make_policy(model_folder, lora=Lora(rank=4))
    _, trainer = fit(
        tmp_path, policy, questions(videos["long"], 2), objective=GRPO(beta=0.1),
        reference=AdapterOff(),
    )  # fmt: skip
    (group,) = trainer.optimizers[0].param_groups
    assert [id(p) for p in group["params"]] == [
        id(p) for n, p in policy.named_parameters() if "lora_" in n
    ]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_reduced_precision_starts_on_the_reference(tmp_path, model_folder, videos, kind, precision):
    """Policy and reference compute alike, so that the KL of the first step is zero."""
    options, reference = KINDS[kind]
    dtype = "float32" if precision == "bf16-mixed" else "bfloat16"
    _, trainer = fit(
        tmp_path, make_policy(model_folder, dtype=dtype, **options), questions(videos["long"], 2),
        objective=GRPO(beta=0.1), reference=reference(), trainer={"precision": precision},
    )  # fmt: skip
    assert trainer.callback_metrics["train/kl"] == pytest.approx(0, abs=1e-6)
    assert trainer.callback_metrics["train/entropy"] > 1
    assert 1e-4 < trainer.callback_metrics["train/rollout_logprob_gap"] < 0.1


def test_bf16_true_converts_weights_but_no_rotary_frequencies(tmp_path, model_folder, videos):
    """The reference's weights too; frequencies of 8 bits would misplace distant tokens."""
    policy = make_policy(model_folder)
    _, trainer = fit(
        tmp_path, policy, questions(videos["long"], 2), objective=GRPO(beta=0.1),
        reference=FrozenCopy(), trainer={"precision": "bf16-true"},
    )  # fmt: skip
    assert trainer.callback_metrics["train/kl"] == pytest.approx(0, abs=1e-6)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    untouched = make_policy(model_folder)
    untouched.load()
    frequencies = {n: b for n, b in policy.named_buffers() if "inv_freq" in n}
    assert len(frequencies) >= 2
    for name, buffer in untouched.named_buffers():
        if "inv_freq" in name:
            assert torch.equal(frequencies[name], buffer), name


@pytest.mark.parametrize(
    "objective",
    [
        GRPO(beta=0.5), DrGRPO(beta=0.5), DAPO(beta=0.5), RLOO(beta=0.5),
        CISPO(beta=0.5, advantages=BatchScaled()),
    ],
)  # fmt: skip
def test_bf16_true_trains_as_bfloat16_weights_do(tmp_path, model_folder, videos, objective):
    """It makes bfloat16 torch's default dtype, which nothing may take unasked."""
    results = []
    for precision in ("32-true", "bf16-true"):
        snapshots, history = Snapshots(), History()
        module, trainer = fit(
            tmp_path, make_policy(model_folder, dtype="bfloat16"), questions(videos["long"], 3),
            [snapshots, history], objective=objective, reference=FrozenCopy(), lr=0.2,
            temperature=0.9, updates_per_rollout=2, data={"batch_size": 3},
            num_groups=2, temporal=TemporalReward(alpha=0.3, mu=0),
            trainer={"precision": precision},
        )  # fmt: skip
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith(("_s", "tokens_per_s"))
        }
        results.append((history.losses, snapshots, metrics, module.last_rollout))
    (losses, first, metrics, rollout), (again, second, same, repeated) = results
    assert rollout.texts == repeated.texts
    assert torch.equal(rollout.advantages, repeated.advantages)
    assert losses == again
    assert metrics == same
    for gradients, others in zip(first.gradients, second.gradients, strict=True):
        assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_positions_are_float32_whatever_the_default(bfloat16_by_default):
    """The golden case of 4.49: 18.75 s a temporal patch, 2 tokens a second, after 15 tokens."""
    grid = VideoGrid(16, 22, 42, seconds_per_grid=18.75, tokens_per_second=2)
    temporal = video_positions(grid, 2)[0].unique() + 15
    assert temporal.tolist() == [15 + int(37.5 * i) for i in range(16)]


def test_sampling_and_scoring_agree_whatever_the_default(load_policy, samples, bfloat16_by_default):
    policy = load_policy().eval()
    prompts = policy.encode(samples, MAX_NEW_TOKENS)
    rollout = policy.rollout(prompts, [Sampling(temperature=0.7)] * G, range(12), MAX_NEW_TOKENS)
    scores = policy.score(prompts, rollout, 0.7)
    assert (scores.logprobs - rollout.logprobs).abs().max() < 1e-4
    assert rollout.logprobs.dtype == scores.logprobs.dtype == torch.float32


@pytest.mark.parametrize("objective", [GRPO(), DrGRPO(), DAPO(), GSPO(), CISPO(), RLOO()])
def test_token_weights_are_float32_whatever_the_default(objective, bfloat16_by_default):
    mask = torch.arange(11) < torch.tensor([3, 7, 11])[:, None]
    weights, divisor = objective.token_weights(mask, 347)
    assert weights.dtype == divisor.dtype == torch.float32
    want = {
        GRPO: (1 / 7, 3), GSPO: (1 / 7, 3), DrGRPO: (1, 3 * 347), DAPO: (1, 21), CISPO: (1, 21),
        RLOO: (1, 3),
    }[type(objective)]  # fmt: skip
    assert (float(weights[1, 0]), float(divisor)) == pytest.approx(want, rel=1e-6)


def test_accuracy_is_exact_in_bf16_true(tmp_path, videos):
    """Also beyond 256, where 8 bits stop counting."""
    train = questions(videos["long"], 700)
    data = make_data(test=train, eval_batch_size=100, num_frames=2, decoder=FakeDecoder())
    trainer = make_trainer(tmp_path, precision="bf16-true")
    (result,) = trainer.test(make_module(scripted()), datamodule=data, verbose=False)
    assert result == {
        "test/accuracy": pytest.approx(234 / 700, rel=1e-6),
        "test/mean_frames": 2,
        "test/agreement": 1,
        "test/failures": 0,
    }


def test_clipping_by_norm(tmp_path, model_folder, videos, caplog):
    caplog.set_level(logging.WARNING)
    before = make_policy(model_folder)
    before.load()
    module, _ = fit(
        tmp_path, make_policy(model_folder), questions(videos["long"], 2), lr=1.0,
        objective=GRPO(beta=0), trainer={"gradient_clip_val": 1e-3},
    )  # fmt: skip
    start = dict(before.named_parameters())
    moved = torch.cat(
        [(p - start[n]).detach().flatten() for n, p in module.policy.named_parameters()]
    )
    assert moved.norm() == pytest.approx(1e-3, rel=1e-2)


def test_the_fingerprint_names_what_answers_depend_on(model_folder):
    module = make_module(
        make_policy(model_folder), seed=3, evaluation=Sampling(temperature=0.5, top_p=0.9, top_k=7)
    )
    found = module.fingerprint()
    assert found["path"] == str(model_folder)
    assert found["prompt"]["multiple_choice"] == ""
    assert {k: found[k] for k in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")} == {
        "max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
    }  # fmt: skip
    module.plan = RoundPlan((Sampling(0.2), Sampling(0.3)))
    found = module.fingerprint()
    assert [sampling["temperature"] for sampling in found["sampling"]] == [0.2, 0.3]
    assert "temperature" not in found
