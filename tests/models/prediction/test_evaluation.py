"""Metrics of validation and test, and what predictions depend on."""

import pytest
from lightning import Callback

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
    scripted,
)
from tests.models.steps import fit
from vrts.models.grpo.objectives import GRPO
from vrts.models.prediction.predictor import Plan
from vrts.types import SamplingParams


def test_these_do_not_matter_to_prediction(tmp_path, videos):
    module = make_module(scripted(), num_generations=1, rewards=[], objective=GRPO(beta=1.0))
    data = make_data(test=questions(videos["long"], 1))
    (result,) = make_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert result["test/accuracy"] == 1.0


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_evaluation_counts_failures_and_missing_answers_as_wrong(tmp_path, videos, batch):
    """Right, wrong, without an answer, damaged, of unknown answer, right: 2 of 5."""
    chosen = [
        ask("right", videos["long"], "A"), ask("wrong", videos["long"], "B"),
        ask("silent", videos["long"], "A"), ask("damaged", videos["damaged"], "A"),
        ask("unknown", videos["long"], None), ask("right too", videos["long"], "C"),
    ]  # fmt: skip
    policy = scripted({"silent": {4: "-"}, "right too": {4: "C"}})
    for stage, run in (("val", "validate"), ("test", "test")):
        data = make_data(**{stage: chosen}, eval_batch_size=batch)
        (result,) = getattr(make_trainer(tmp_path), run)(
            make_module(policy), datamodule=data, verbose=False
        )
        assert result == {
            f"{stage}/accuracy": pytest.approx(2 / 5),
            f"{stage}/num_failed": 1,
            f"{stage}/mean_frames": 4,
            # the silent one's only completion gives no answer
            f"{stage}/agreement": pytest.approx(4 / 5),
        }


def test_validation_within_training_starts_over_each_time(tmp_path, varied_model, videos):
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["val/accuracy"]))
            assert not pl_module.training

        def on_train_batch_start(self, trainer, pl_module, *_args):
            assert pl_module.policy.model.training

    fit(
        tmp_path, make_policy(varied_model), questions(videos["long"], 4), [Look()],
        objective=GRPO(beta=0), trainer={
            "val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0,
        },
        data={"val": questions(videos["damaged"], 2, "v")},
    )  # fmt: skip
    assert seen == [0, 0]


def test_the_fingerprint_names_what_answers_depend_on(varied_model):
    module = make_module(
        make_policy(varied_model),
        seed=3,
        eval_sampling=SamplingParams(temperature=0.5, top_p=0.9, top_k=7),
    )
    found = module.fingerprint()
    assert found["path"] == str(varied_model)
    assert found["prompt"]["multiple_choice"] == ""
    assert {k: found[k] for k in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")} == {
        "max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
    }  # fmt: skip
    module.plan = Plan((SamplingParams(0.2), SamplingParams(0.3)))
    found = module.fingerprint()
    assert [sampling["temperature"] for sampling in found["sampling"]] == [0.2, 0.3]
    assert "temperature" not in found
