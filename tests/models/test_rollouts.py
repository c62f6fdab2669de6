"""Rollouts of training: what they are made from, and which updates they serve."""

import pytest
import torch
from lightning import Callback
from vrts.models.experience import Experience

from tests.callbacks.plugins import ask
from tests.callbacks.runs import History, make_policy, questions
from tests.models.steps import KINDS, G, Snapshots, fit
from vrts.models.objectives import GRPO
from vrts.models.patience import Patience
from vrts.models.qwen import QwenPolicy


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_one_rollout_serves_its_updates(tmp_path, varied_model, videos, updates, monkeypatch):
    policy = make_policy(varied_model)
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
    tmp_path, varied_model, videos, updates, accumulate, monkeypatch
):
    """One score an update and no other; later updates compare with the first one's, to the bit."""
    policy = make_policy(varied_model)
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


@pytest.mark.parametrize("position", [0, 1])
def test_one_damaged_video_is_skipped_counted_and_named(
    tmp_path, varied_model, videos, position, caplog
):
    """The others give what they would give alone."""
    train = questions(videos["long"], 2)
    train[position] = ask("x", videos["damaged"])
    whole, trainer = fit(tmp_path, make_policy(varied_model), train, objective=GRPO(beta=0))
    assert trainer.callback_metrics["train/skipped"] == 1
    assert "skipped question x: " in caplog.text
    assert "damaged.mp4" in caplog.text
    alone, _ = fit(
        tmp_path, make_policy(varied_model), [train[1 - position]], objective=GRPO(beta=0),
        data={"batch_size": 1},
    )  # fmt: skip
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(alone.named_parameters())[name]), name


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_batch_of_damaged_videos_changes_nothing(
    tmp_path, varied_model, videos, kind, beta, monkeypatch
):
    # as if there had been a usable batch before; a run without any is an error
    monkeypatch.setattr(Patience, "check_end", lambda *_: None)
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
    trained = {n for n, p in module.policy.named_parameters() if p.requires_grad}
    (gradients,) = snapshots.gradients
    assert gradients.keys() == trained, "each has a gradient, which other processes wait for"
    assert all((gradient == 0).all() for gradient in gradients.values())
    for name, parameter in module.policy.named_parameters():
        assert torch.equal(parameter, snapshots.parameters[0][name]), name


def test_a_prompt_that_is_too_long_is_skipped(tmp_path, varied_model, videos, caplog):
    """A question of 8192 words and more does not fit the tiny model's context."""
    train = [ask("q0", videos["long"]), ask("long " * 8200, videos["long"])]
    _, trainer = fit(tmp_path, make_policy(varied_model), train, objective=GRPO(beta=0))
    assert trainer.callback_metrics["train/skipped"] == 1
    assert "exceed the model's 8192" in caplog.text


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


def test_completions_depend_on_question_epoch_and_seed_alone(tmp_path, varied_model, videos):
    train = questions(videos["long"], 4)
    run = {"trainer": {"max_epochs": 2}}
    first, second, third, fourth = rollouts(tmp_path, make_policy(varied_model), train, **run)
    assert first.keys() == third.keys() == {"q0", "q1"}
    assert all(len(set(texts)) == G for texts in first.values())
    assert first["q0"] != third["q0"], "another epoch draws anew"
    backwards = rollouts(
        tmp_path, make_policy(varied_model), train[::-1], **run, data={"batch_size": 4}
    )
    assert [*first.items(), *second.items()] == [
        (id, backwards[0][id]) for id in ("q0", "q1", "q2", "q3")
    ]
    assert fourth["q3"] == backwards[1]["q3"]
    (other, *_) = rollouts(tmp_path, make_policy(varied_model), train, seed=1)
    assert other["q0"] != first["q0"]
