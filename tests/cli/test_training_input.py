"""Completions, rewards and prompts that training must survive or name, through the command."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_command import fit_args, own_train
from vrts.cli.command import main, run

CHARACTERS = "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]"
"""A reward that tells completions of random weights apart."""


@pytest.fixture
def fit(annotations, tmp_path):
    """Make arguments of two steps whose gradient is that of the rewards alone."""

    def args(model: Path, *more: str) -> list[str]:
        plain = [
            "--model.objective.init_args.beta=0",
            "--model.reference=null",
            "--model.optimizer.init_args={lr: 0.01, weight_decay: 0}",
            CHARACTERS,
        ]
        return fit_args(model, tmp_path, *own_train(annotations), *plain, *more)

    return args


def edited(model: Path, folder: Path, file: str, **values) -> Path:
    """A copy of a model with other values in one of its JSON files, by dotted keys."""
    shutil.copytree(model, folder)
    config = json.loads((folder / file).read_text())
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    (folder / file).write_text(json.dumps(config))
    return folder


def moved(model: Path, root: Path) -> bool:
    """Whether training has changed a weight; all must be finite."""
    after, before = (load_file(f / "model.safetensors") for f in (root / "model", model))
    assert all(weight.isfinite().all() for weight in after.values())
    return any(not torch.equal(weight, before[name]) for name, weight in after.items())


def lines(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "completions.jsonl").read_text().splitlines()]


def test_completions_that_hit_the_limit_are_counted_and_trained_on(model, fit, tmp_path):
    metrics = run(fit(model, "--model.max_new_tokens=3")).trainer.callback_metrics
    assert metrics["train/truncated"] == 1
    assert metrics["train/completion_length"] == 3
    assert metrics["train/sampling/logprob_diff"] < 1e-5
    assert moved(model, tmp_path)


def test_a_step_of_truncated_completions_alone_has_no_loss(model, fit, tmp_path):
    """Left out of the loss, nothing is left: no NaN, no step."""
    more = ["--model.max_new_tokens=3", "--model.mask_truncated=true"]
    metrics = run(fit(model, *more)).trainer.callback_metrics
    assert metrics["train/truncated"] == 1
    assert metrics["train/loss"] == 0
    assert not moved(model, tmp_path)


@pytest.mark.parametrize("objective", ["GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "RLOO"])
def test_empty_completions_are_trained_on(model, fit, tmp_path, objective):
    """Every token ends a completion, so that each is its end token alone."""
    vocab_size = json.loads((model / "config.json").read_text())["text_config"]["vocab_size"]
    ends = list(range(vocab_size))
    folder = edited(model, tmp_path / "ends", "generation_config.json", eos_token_id=ends)
    metrics = run(
        fit(
            folder,
            f"--model.objective={objective}",
            "--model.objective.init_args.beta=0",
            "--model.num_generations=4",
        )
    ).trainer.callback_metrics
    assert metrics["train/completion_length"] == 1
    assert metrics["train/truncated"] == 0
    assert metrics["train/nonfinite_steps"] == 0
    assert metrics["train/sampling/logprob_diff"] < 1e-5
    assert moved(model, tmp_path)


@pytest.mark.parametrize("objective", ["GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "RLOO"])
def test_groups_of_equal_rewards_are_counted_and_teach_nothing(model, fit, tmp_path, objective):
    # random weights are never right; 0.1 is not exact in binary, and its mean may be off
    metrics = run(
        fit(
            model,
            f"--model.objective={objective}",
            "--model.objective.init_args.beta=0",
            "--model.rewards=[{class_path: AccuracyReward, init_args: {weight: 0.1}}]",
            "--model.num_generations=3",
        )
    ).trainer.callback_metrics
    assert metrics["train/frac_reward_zero_std"] == 1
    assert metrics["train/reward_std"] == 0
    assert metrics["train/loss"] == 0
    assert {line["advantage"] for line in lines(tmp_path)} == {0.0}
    assert not moved(model, tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("length", "UnusableReward gave 1 scores for 2 completions"),
        ("nan", "UnusableReward gave nan (weight 1.0) for completion 1 of 2, question "),
        ("inf", "UnusableReward gave inf (weight 1.0) for completion 1 of 2, question "),
    ],
)
def test_unusable_rewards_stop_the_run_with_one_message(
    model, fit, tmp_path, capsys, fault, message
):
    reward = f"{{class_path: tests.own_plugins.UnusableReward, init_args: {{fault: '{fault}'}}}}"
    assert main(fit(model, f"--model.rewards=[{reward}]")) == 1
    error = capsys.readouterr().err
    assert f"vrts: error: {message}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "model/model.safetensors").exists()


def test_a_reward_that_raises_is_named_and_shows_where(model, fit, capsys):
    reward = "{class_path: tests.own_plugins.UnusableReward, init_args: {fault: raise}}"
    assert main(fit(model, f"--model.rewards=[{reward}]")) == 1
    error = capsys.readouterr().err
    message = error[error.index("vrts: error: ") :].splitlines()
    assert message[0] == "vrts: error: UnusableReward raised KeyError: 'colour'"
    assert re.search(r"own_plugins\.py:\d+: .*colour", message[1])
    assert "Traceback" not in error


@pytest.mark.parametrize(("value", "at"), [(".nan", "2"), ("-.inf", "3")])
def test_losses_that_stay_infinite_stop_the_run_after_a_settable_number(
    model, fit, tmp_path, capsys, value, at
):
    objective = "{class_path: tests.own_plugins.Broken, init_args: {value: VALUE, calls: CALLS}}"
    objective = objective.replace("VALUE", value).replace("CALLS", "[1, 2, 3, 4, 5]")
    args = fit(model, f"--model.objective={objective}", f"--model.max_nonfinite_steps={at}")
    assert main([*args, "--trainer.max_steps=9", "--trainer.max_epochs=9"]) == 1
    error = capsys.readouterr().err
    assert f"vrts: error: {at} optimizer steps in a row had a loss or gradient" in error
    assert "max_nonfinite_steps" in error
    assert "Traceback" not in error


def test_prompts_longer_than_the_model_are_named_with_numbers(model, fit, tmp_path, capsys):
    values = {"text_config.max_position_embeddings": 30}
    folder = edited(model, tmp_path / "short", "config.json", **values)
    assert main(fit(folder)) == 1
    error = capsys.readouterr().err
    assert "prompt tokens (8 of them video) and 8 new ones exceed the model's 30" in error
    assert "lower data.num_frames (SparseToDense.levels in prediction), data.resolution" in error
    assert "max_pixels or model.max_new_tokens" in error
    assert "Traceback" not in error
