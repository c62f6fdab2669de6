"""Schedules from YAML: what they come to, step by step, and after a resume."""

import math

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from transformers import get_cosine_schedule_with_warmup

import vrts.cli.command  # noqa: F401 makes short class names known

SEQUENTIAL = {
    "class_path": "SequentialSchedule",
    "init_args": {
        "schedulers": [
            {"class_path": "LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 3}},
            {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 5}},
        ],
        "milestones": [3],
    },
}
COSINE = {
    "class_path": "CosineWithWarmup",
    "init_args": {"num_warmup_steps": 2, "num_training_steps": 8},
}


def torchs_own(optimizer):
    parts = [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 5)]
    return SequentialLR(optimizer, parts, [3])


def from_yaml(tmp_path, config):
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump({"lr_scheduler": config}))
    parser = ArgumentParser(parser_mode="yaml")
    parser.add_argument("--config", action="config")
    parser.add_argument("--lr_scheduler", type=LRSchedulerCallable)
    return parser.instantiate(parser.parse_args([f"--config={path}"])).lr_scheduler


def rates(make, steps, state=None):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer)
    if state is not None:
        optimizer.load_state_dict(state[0])
        schedule.load_state_dict(state[1])
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found, (optimizer.state_dict(), schedule.state_dict())


@pytest.mark.parametrize(
    ("config", "same"),
    [
        (SEQUENTIAL, torchs_own),
        (COSINE, lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 2, 8)),
        (
            {"class_path": "torch.optim.lr_scheduler.OneCycleLR",
             "init_args": {"max_lr": 3.0, "total_steps": 9}},
            lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 3.0, 9),
        ),
    ],
)  # fmt: skip
def test_yaml_gives_the_schedule_and_it_resumes(tmp_path, config, same):
    make = from_yaml(tmp_path, config)
    want, _ = rates(same, 8)
    assert rates(make, 8)[0] == pytest.approx(want)
    assert len(set(want)) > 3
    first, state = rates(make, 3)
    saved = tmp_path / "state.pt"
    torch.save(state, saved)
    rest, _ = rates(make, 5, torch.load(saved, weights_only=True))
    assert first + rest == pytest.approx(want)


def test_a_cosine_ends_at_zero(tmp_path):
    found, _ = rates(from_yaml(tmp_path, COSINE), 9)
    assert found[0] == 0
    assert found[2] == 2.0
    assert math.isclose(found[8], 0, abs_tol=1e-9)
