"""Training with an engine whose log-probs differ, through the command."""

import contextlib
import math

import pytest
import torch

from tests.cli.test_command import fit_args, own_train
from tests.cli.test_training_input import CHARACTERS
from vrts.cli.command import main, run
from vrts.models.grpo.micro_batches import MicroBatch

CORRECTION = "--model.importance_correction"
MEAN = "train/sampling/importance_ratio_mean"
CAPPED = "train/sampling/importance_ratio_capped"


@pytest.fixture
def fit(model, annotations, tmp_path):
    """One step whose gradient is that of the rewards alone; returns what it logged."""

    def train(*more: str) -> dict[str, float]:
        plain = [
            "--model.objective=GRPO",
            "--model.objective.init_args.beta=0",
            "--model.reference=null",
            "--model.max_grad_norm=null",
            "--trainer.max_steps=1",
            "--overwrite=true",
            CHARACTERS,
        ]
        args = fit_args(model, tmp_path, *own_train(annotations), *plain, *more)
        return {name: float(v) for name, v in run(args).trainer.callback_metrics.items()}

    return train


def distorted(**options: float) -> list[str]:
    args = [f"--model.engine.init_args.{name}={value}" for name, value in options.items()]
    return ["--model.engine=tests.own_plugins.DistortedEngine", *args]


def test_a_constant_difference_scales_the_gradient_up_to_the_cap(fit):
    native = fit()
    off = fit(*distorted(shift=-math.log(1.5)))
    assert off["train/grad_norm"] == native["train/grad_norm"] > 0
    assert off["train/sampling/logprob_diff"] == pytest.approx(math.log(1.5), rel=1e-4)
    assert not {MEAN, CAPPED} & off.keys()
    for cap, weight in ((2.0, 1.5), (1.2, 1.2)):
        on = fit(*distorted(shift=-math.log(1.5)), f"{CORRECTION}.cap={cap}")
        assert on["train/grad_norm"] == pytest.approx(weight * native["train/grad_norm"], rel=1e-3)
        assert on[MEAN] == pytest.approx(weight, rel=1e-4)
        assert on[CAPPED] == float(cap == weight)
    agreeing = fit(f"{CORRECTION}={{cap: 1, level: sequence}}")
    assert agreeing["train/grad_norm"] == pytest.approx(native["train/grad_norm"], rel=1e-4)
    assert agreeing[MEAN] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_share_that_is_capped_and_the_mean_are_those_of_all_tokens(fit, monkeypatch, level):
    """Several micro-batches, whose tokens count alike."""
    ratios, compare = [], MicroBatch._compare_with_engine

    def recording(micro_batch, old):
        gaps = old - micro_batch._sampling_logprobs
        for row, mask in zip(gaps, micro_batch.mask, strict=True):
            own = row[mask].tolist()
            ratios.extend(math.exp(sum(own) if level == "sequence" else gap) for gap in own)
        compare(micro_batch, old)

    monkeypatch.setattr(MicroBatch, "_compare_with_engine", recording)
    found = fit(
        *distorted(noise=0.5),
        f"{CORRECTION}={{cap: 1.3, level: {level}}}",
        "--data.batch_size=3",
        "--model.micro_batch_size=2",
    )
    weights = torch.tensor(ratios).clamp(max=1.3)
    assert len(weights) == pytest.approx(6 * found["train/completion_length"])
    assert found[MEAN] == pytest.approx(float(weights.mean()), rel=1e-4)
    assert found[CAPPED] == pytest.approx(float((weights == 1.3).float().mean()), rel=1e-4)
    assert 0 < found[CAPPED] < 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (".cap=0.5", "importance_correction.cap must be 1 or more, got 0.5"),
        (".cap=much", "importance_correction.cap: needs a number, not 'much'"),
        (".level=turn", "importance_correction.level: needs one of token, sequence, not 'turn'"),
        (".clip=2", "importance_correction.clip"),
    ],
)
def test_bad_values_are_refused_with_the_key(model, annotations, tmp_path, capsys, value, message):
    args = fit_args(model, tmp_path, *own_train(annotations), CORRECTION + value)
    with contextlib.suppress(SystemExit):
        assert main(args) != 0
    error = capsys.readouterr().err.partition("vrts: error: ")[2]
    assert message in error
    assert len(error.splitlines()) <= 3


def test_an_engine_without_log_probs_is_named(model, annotations, tmp_path, monkeypatch, capsys):
    from tests import own_plugins

    monkeypatch.setattr(
        own_plugins.DistortedEngine,
        "_distorted",
        lambda engine, completion: own_plugins.replace(completion, logprobs=None),
    )
    args = fit_args(model, tmp_path, *own_train(annotations), *distorted(), CORRECTION + ".cap=2")
    assert main(args) == 1
    error = capsys.readouterr().err.partition("vrts: error: ")[2]
    assert error.startswith("model.importance_correction needs the log-probs")
