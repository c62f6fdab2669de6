"""Options as plain values, whatever a user's objects hold."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from vrts.callbacks.export.recipe import plain, training_facts
from vrts.models.vlm.loading import Lora
from vrts.types import ProblemType


@dataclass
class Options:
    limit: int
    inner: object = None
    _cache: object = None


def test_objects_become_their_options():
    found = plain(Options(3, Options(4), _cache=[1]))
    name = "tests.callbacks.export.test_recipe.Options"
    assert found == {"class": name, "limit": 3, "inner": {"class": name, "limit": 4, "inner": None}}


def test_an_object_that_holds_itself_ends():
    options = Options(1)
    options.inner = options
    text = json.dumps(plain(options))
    assert text.count("limit") == 3


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (Path("/home/me/judge.json"), "judge.json"),
        ("/home/me/judge.json", "judge.json"),
        ("a/b", "a/b"),
        (True, True),
        (float("nan"), "nan"),
        ((1, 2.5, None), [1, 2.5, None]),
        (list(range(51)), "51 items"),
        ({"a": {1: Path("/b")}}, {"a": {"1": "b"}}),
        (ProblemType.OCR, "OCR"),
        (torch.zeros(3), {"class": "torch.Tensor"}),
        (torch.nn.Linear(2, 2), {"class": "torch.nn.modules.linear.Linear"}),
        (len, {"class": "builtins.builtin_function_or_method"}),
    ],
)
def test_values_are_plain(value, want):
    found = plain(value)
    assert found == want
    assert json.loads(json.dumps(found, allow_nan=False)) == want


def test_restricted_numbers_need_no_unpickling():
    assert type(plain(PositiveInt(3))) is int
    assert type(plain(PositiveFloat(0.5))) is float
    assert b"jsonargparse" not in pickle.dumps(plain([PositiveInt(3), {"a": PositiveFloat(0.5)}]))


def test_a_run_records_its_recipe(tmp_path, model_folder, videos):
    policy = make_policy(model_folder, lora=Lora(rank=4, alpha=8))
    data = make_data(train=questions(videos["long"], 8), batch_size=2)
    trainer = make_trainer(tmp_path, max_steps=1)
    module = make_module(
        policy,
        lr=0.05,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        objective=None,
        reference=None,
        seed=3,
        max_grad_norm=0.5,
        **{"num_groups": None},
    )
    module.objective.beta = 0.0
    trainer.fit(module, datamodule=data)
    facts = training_facts(trainer, module, data)
    recipe = facts["recipe"]
    assert facts["base_model"] == model_folder.name
    assert recipe["optimizer"] == {
        "class": "torch.optim.sgd.SGD",
        "lr": 0.05,
        "momentum": 0,
        "weight_decay": 0,
    }
    assert recipe["lr_scheduler"] == "torch.optim.lr_scheduler.ConstantLR"
    assert recipe["questions_per_step"] == 2
    assert recipe["max_grad_norm"] == 0.5
    assert recipe["seed"] == 3
    assert (recipe["lora"]["rank"], recipe["lora"]["alpha"]) == (4, 8)
    assert recipe["rewards"] == [{"class": "tests.callbacks.plugins.TextReward", "weight": 1.0}]
    assert recipe["prompt"]["preamble"] == ""
    assert facts["data"]["train"]["num_questions"] == 8
    assert {"python", "vrts", "torch", "peft"} <= facts["versions"].keys()
    assert str(tmp_path) not in json.dumps(facts, allow_nan=False)
    assert str(model_folder) not in json.dumps(facts)
