"""The overlay for FSDP2, through the command, on two processes over gloo."""

import re

import pytest

from tests.forked import command, forked
from tests.ranks.test_two_processes import CONFIGS, fit, fit_args, logged

SHARDED = (
    f"--config={CONFIGS / 'fsdp.yaml'}",
    "--trainer.accelerator=cpu",
    "--trainer.devices=2",
    "--trainer.precision=32-true",
    "--trainer.strategy.init_args.timeout_s=300",
    "--trainer.max_epochs=2",  # Lightning takes an epoch that max_steps cut short for a whole one
)


@pytest.mark.slow
def test_the_overlay_trains_as_one_process_does_and_resumes(inputs, alone, tmp_path):
    alone = logged(alone)
    sharded = fit(*inputs, tmp_path / "2", 2, more_last=(*SHARDED, "--trainer.max_steps=2"))
    assert (tmp_path / "2/checkpoints/last.ckpt/.metadata").is_file()
    assert (tmp_path / "2/model/model.safetensors").is_file()
    (tmp_path / "2/lightning_logs").rename(tmp_path / "logs")
    sharded += fit(*inputs, tmp_path / "2", 2, more_last=(*SHARDED, "--ckpt_path=last"))
    assert len(sharded) == len(alone) == 3
    for one, two in zip(alone, sharded, strict=True):
        for name in ("train/loss", "train/kl", "train/reward/length", "train/entropy"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-6), name
    assert float(alone[-1]["train/kl"]) > 0


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(inputs, tmp_path):
    dying = ("--model.rewards=[{class_path: tests.own_plugins.DyingReward}]",)
    args = fit_args(*inputs, tmp_path / "2", 2, more_last=(*SHARDED, *dying))
    with forked(tmp_path / "log", command, args) as processes:
        assert processes.wait_for_each() != [0]
    # the other one finds out itself, or Lightning ends it before it can say so
    ended = r"(?i)connection closed|timed out|reset by peer|terminated with code -?9"
    assert re.search(ended, (tmp_path / "log").read_text()), processes.text()
