"""Training metrics: names, and means that leave out what a process does not have."""

import math

import pytest
import torch

from tests.callbacks.runs import make_module, scripted
from vrts.models.grpo.metrics import (
    CORRECTION_METRICS,
    SHOWN,
    TOKEN_MEANS,
    TRAIN_METRICS,
    log_means,
)


class Gathered:
    """A module whose `all_gather` acts as that of several ranks, and which keeps what is logged."""

    device = torch.device("cpu")

    def __init__(self, *others: dict[str, float]) -> None:
        self.others = others
        self.logged: dict[str, float] = {}
        self.shown: set[str] = set()

    def all_gather(self, own: torch.Tensor) -> torch.Tensor:
        names = (*TRAIN_METRICS, *CORRECTION_METRICS, "reward/accuracy")
        rows = [
            torch.tensor(
                [
                    [other.get(n, math.nan) for n in names],
                    [other["num_tokens"] if n in TOKEN_MEANS else 1 for n in names],
                ]
            )
            for other in self.others
        ]
        return torch.stack([own, *rows]) if rows else own

    def log(self, name: str, value: float, prog_bar: bool, batch_size: int) -> None:
        self.logged[name] = value
        if prog_bar:
            self.shown.add(name)


def test_one_process_logs_its_own_values():
    module = Gathered()
    log_means(
        module,
        {"loss": torch.tensor(0.5), "kl": 0.25, "reward/accuracy": 1},
        ["accuracy"],
        7,
        set(),
    )
    assert module.logged == {"train/loss": 0.5, "train/kl": 0.25, "train/reward/accuracy": 1}


def test_several_processes_log_means():
    module = Gathered({"num_tokens": 5, "loss": 1.5, "skipped": 2, "reward/accuracy": 0})
    values = {"loss": 0.5, "skipped": 0.0, "reward/accuracy": 1.0}
    log_means(module, values, ["accuracy"], 10, set())
    assert module.logged == {
        "train/loss": 1.0,
        "train/skipped": 1.0,
        "train/reward/accuracy": 0.5,
    }


def test_a_process_without_a_value_does_not_count_for_it():
    module = Gathered(
        {"num_tokens": 0, "skipped": 1.0}, {"num_tokens": 30, "skipped": 0.0, "kl": 0.5}
    )
    log_means(module, {"skipped": 2.0, "kl": 0.25, "reward/accuracy": 1.0}, ["accuracy"], 10, set())
    assert module.logged == {
        "train/skipped": 1.0,
        "train/kl": (10 * 0.25 + 30 * 0.5) / 40,  # by tokens
        "train/reward/accuracy": 1.0,
    }


def test_what_a_step_lacks_is_not_that_of_the_step_before():
    module, logged = Gathered(), set()
    log_means(module, {"skipped": 0.0, "kl": 0.25}, [], 10, logged)
    log_means(module, {"skipped": 2.0, "loss": 0.0}, [], 0, logged)  # no usable video
    assert module.logged.keys() == {"train/skipped", "train/kl", "train/loss"}
    assert math.isnan(module.logged["train/kl"])
    log_means(module, {"skipped": 0.0, "kl": 0.5}, [], 10, logged)
    assert module.logged["train/kl"] == 0.5


def test_few_metrics_are_in_the_progress_bar():
    module = Gathered()
    log_means(module, dict.fromkeys(TRAIN_METRICS, 1.0), [], 3, set())
    assert module.logged.keys() == {f"train/{name}" for name in TRAIN_METRICS}
    assert module.shown == {f"train/{name}" for name in SHOWN}


def test_an_unknown_name_is_a_mistake_in_the_code():
    with pytest.raises(AssertionError, match="reward/other"):
        log_means(Gathered(), {"reward/other": 1.0}, ["accuracy"], 1, set())


def test_names_of_the_issue_are_among_them():
    wanted = {
        "reward_std", "frac_reward_zero_std", "kl", "entropy", "completion_length", "clip_ratio",
        "clamp_ratio", "tokens_per_s", "rollout_s",
    }  # fmt: skip
    assert wanted <= set(TRAIN_METRICS)
    assert [reward.name for reward in make_module(scripted(), rewards=None).rewards] == [
        "accuracy",
        "format",
    ]
