"""What is refused at the start of a training run, before anything is loaded."""

import re
import warnings

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from tests.callbacks.runs import (
    SMALL,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
    scripted,
)
from vrts.models.grpo.checks import check_context_length, check_step, check_validation
from vrts.models.grpo.objectives import GRPO
from vrts.models.prediction.predictor import Plan
from vrts.types import InputError, SamplingParams


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"accumulate_grad_batches": 8},
            ["accumulate_grad_batches is 8", "data.batch_size", "model.micro_batch_size"],
        ),
        ({"gradient_clip_val": 1.5}, ["gradient_clip_val is 1.5", "model.max_grad_norm"]),
        ({"gradient_clip_algorithm": "value"}, ["model.max_grad_norm"]),
    ],
)
def test_options_that_have_another_place(tmp_path, options, words):
    with pytest.raises(InputError) as error:
        check_step(make_trainer(tmp_path, **options))
    assert all(word in str(error.value) for word in words)


def test_a_trainer_without_them(tmp_path):
    check_step(make_trainer(tmp_path, accumulate_grad_batches=1, gradient_clip_val=0))


STEPS = {"check_val_every_n_epoch": None, "max_epochs": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 2}, r"val_check_interval is 1\.0 and .* 1: .*an epoch has 4\)"),
        (STEPS, r"val_check_interval is 1\.0 and check_val_every_n_epoch None"),
        ({"val_check_interval": 3, "max_epochs": 2}, "check_val_every_n_epoch: null"),
        (STEPS | {"val_check_interval": 9}, "is 9 steps, but the run has 8; give"),
        (STEPS | {"val_check_interval": 7, "limit_train_batches": 0.5}, "the run has 4; give"),
        (STEPS | {"val_check_interval": 5, "max_steps": 4}, "the run has 4; give"),
        (STEPS | {"val_check_interval": 8}, None),
        (STEPS | {"val_check_interval": 5, "max_epochs": -1, "max_steps": 5}, None),
        (STEPS | {"val_check_interval": 9, "max_epochs": -1}, None),
        (STEPS | {"val_check_interval": "00:01:00:00"}, None),
        ({"limit_val_batches": 0}, None),
    ],
)
def test_validation_comes_at_whole_steps(tmp_path, options, message):
    trainer = make_trainer(tmp_path, **options)
    val = questions("nowhere.mp4", 2)
    if message is None:
        check_validation(trainer, val, steps_per_epoch=4)
        return
    with pytest.raises(InputError, match=message):
        check_validation(trainer, val, steps_per_epoch=4)
    check_validation(trainer, None, steps_per_epoch=4)


def test_nothing_to_watch_or_to_know(tmp_path):
    trainer = make_trainer(tmp_path, [EarlyStopping("val/accuracy")])
    with pytest.raises(InputError, match="EarlyStopping monitors val/accuracy, but nothing is"):
        check_validation(trainer, None, steps_per_epoch=4)


def test_a_run_is_refused_before_weights_are_loaded(tmp_path):
    """With the steps of its epochs: five questions by two make three."""
    module = make_module(scripted(), objective=GRPO(beta=0))
    val = questions("nowhere.mp4", 2)
    data = make_data(train=questions("nowhere.mp4", 5), val=val, batch_size=2)
    trainer = make_trainer(tmp_path, max_epochs=1)
    with pytest.raises(InputError, match="an epoch has 3"):
        trainer.fit(module, datamodule=data)


def test_more_groups_than_questions(tmp_path):
    module = make_module(scripted(), objective=GRPO(beta=0), num_groups=3)
    data = make_data(train=questions("nowhere.mp4", 6), batch_size=2)
    with pytest.raises(InputError, match=r"model\.num_groups is 3, but a batch has 2 questions"):
        make_trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("levels", "is_fit", "outcome"),
    [
        ((), False, "16 frames .* that have so many will fail"),
        ((4, 8), True, "16 frames .* that have so many will fail"),
        ((4, 16), False, "16 frames .* are decided at the level before"),
        ((16, 32), False, "16 frames .* that have so many will fail"),
        ((4, 8), False, None),
    ],
)
def test_a_level_without_room_is_told_before_anything_is_loaded(
    model_folder, levels, is_fit, outcome
):
    """Its 32 video tokens would fit; with the template's text they do not, by one."""
    policy = make_policy(model_folder)
    data = make_data(num_frames=16, resolution=SMALL.for_model(policy.frame_sizes()))
    num_video_tokens = data.resolution.fewest_tokens(16)
    num_tokens = num_video_tokens + policy.fewest_text_tokens(16)
    assert num_tokens > num_video_tokens == 32
    module = make_module(policy, max_new_tokens=policy.context_length() - num_tokens)
    module.plan = Plan((SamplingParams(),), levels=levels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if 32 not in levels:
            check_context_length(module, data, is_fit)
    module.max_new_tokens += 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_context_length(module, data, is_fit)
    assert not policy.loaded
    messages = [str(w.message) for w in told if "frames has" in str(w.message)]
    assert len(messages) == (outcome is not None)
    if outcome is not None:
        assert re.search(outcome, messages[0])
        assert f"{num_tokens} tokens or more" in messages[0]
