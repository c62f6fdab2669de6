"""Every YAML file in configs/ is parsed and instantiated, alone or on what it is an overlay of."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from vrts.callbacks.densify import SparseToDense
from vrts.cli import run
from vrts.models.sharding import Sharding
from vrts.models.strategy import FullySharded
from vrts.types import Sampling

CONFIGS = Path(__file__).parents[1] / "configs"
FIT, PREDICT = "grpo.yaml", "s2d.yaml"
RECIPES = {
    "grpo.yaml": ("fit", []),
    "s2d.yaml": ("predict", []),
    "ask.yaml": ("predict", []),
    "replay.yaml": ("predict", []),
    "demo/fit.yaml": ("fit", []),
    "demo/predict.yaml": ("predict", []),
    "demo/sparse.yaml": ("predict", ["demo/predict.yaml"]),
    "demo/dense.yaml": ("predict", ["demo/predict.yaml"]),
    "video_rts.yaml": ("predict", ["s2d.yaml"]),
}
OVERLAYS = (
    "cpu.yaml", "gpu.yaml", "ddp.yaml", "fsdp.yaml", "full.yaml", "lora.yaml", "tiny.yaml",
    "dapo.yaml", "tgrpo.yaml",
)  # fmt: skip
NEEDS_CUDA = ("gpu.yaml", "ddp.yaml", "fsdp.yaml")
"""Their device is swapped for the CPU where the Trainer is made; parsing sees them as they are."""


def args_of(subcommand: str, names: list[str]) -> list[str]:
    args = [subcommand, *(f"--config={CONFIGS / name}" for name in names)]
    if set(names) & set(NEEDS_CUDA):
        args += ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    return args


def instantiate(monkeypatch, args: list[str]):
    """Parse and build everything as the command does, and stop before it runs."""
    monkeypatch.setattr("vrts.cli.VrtsCLI._run_subcommand", lambda self, subcommand: None)
    return run(args)


def test_no_file_is_left_out():
    names = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert names == set(RECIPES) | set(OVERLAYS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name, monkeypatch):
    subcommand, below = RECIPES[name]
    ask = ["--data.video=clip.mp4", "--data.question=Why?"] if name == "ask.yaml" else []
    cli = instantiate(monkeypatch, args_of(subcommand, [*below, name]) + ask)
    stage = {"fit": "train", "predict": "predict"}[subcommand]
    assert cli.datamodule.readers[stage] is not None
    assert isinstance(cli.trainer.strategy, SingleDeviceStrategy)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("subcommand", "recipe"), [("fit", FIT), ("predict", PREDICT)])
def test_an_overlay_on_each_recipe(overlay, subcommand, recipe, monkeypatch):
    cli = instantiate(monkeypatch, args_of(subcommand, [recipe, overlay]))
    assert cli.model.policy.path == (
        "assets/tiny" if overlay == "tiny.yaml" else "Qwen/Qwen2.5-VL-7B-Instruct"
    )
    assert (cli.model.policy.lora is not None) == (overlay == "lora.yaml")


def test_overlays_combine(monkeypatch):
    cli = instantiate(monkeypatch, args_of("fit", [FIT, "lora.yaml", "tiny.yaml", "gpu.yaml"]))
    assert type(cli.model._reference).__name__ == "AdapterOff"
    assert cli.model.policy.lora.rank == 64
    assert cli.model.policy.path == "assets/tiny"
    assert cli.trainer.precision == "bf16-mixed"


def test_fsdp_shards_whatever_is_trained(monkeypatch):
    for names in (["lora.yaml", "fsdp.yaml"], ["fsdp.yaml", "lora.yaml", "full.yaml"]):
        cli = instantiate(monkeypatch, args_of("fit", [FIT, *names]))
        assert isinstance(cli.trainer.strategy, FullySharded)
        assert cli.model.sharding == Sharding()
        full = "full.yaml" in names
        assert (cli.model.policy.lora is None) == full
        assert type(cli.model._reference).__name__ == ("FrozenCopy" if full else "AdapterOff")


def test_other_algorithms_replace_grpo(monkeypatch):
    cli = instantiate(monkeypatch, args_of("fit", [FIT, "dapo.yaml"]))
    objective = cli.model.objective
    assert (type(objective).__name__, objective.beta, objective.clip_high) == ("DAPO", 0, 0.28)
    assert cli.model.reference is None
    assert (cli.model.num_groups, cli.datamodule.batch_size) == (1, 4)
    cli = instantiate(monkeypatch, args_of("fit", [FIT, "tgrpo.yaml"]))
    assert (cli.model.temporal.alpha, cli.model.temporal.mu) == (0.3, 0.8)
    names = [(reward.name, reward.weight) for reward in cli.model.rewards]
    assert names == [("accuracy", 1), ("format", 1), ("length", 0.2)]


def test_the_paper_recipe_has_the_paper_values(monkeypatch):
    cli = instantiate(monkeypatch, args_of("fit", [FIT]))
    assert cli.datamodule.num_frames == 32
    assert cli.model.num_generations == 8
    optimizer = cli.model._optimizer([torch.nn.Parameter(torch.ones(1))])
    assert optimizer.defaults["lr"] == 1e-6


def test_video_rts_draws_each_answer_less_cautiously(monkeypatch):
    cli = instantiate(monkeypatch, args_of("predict", ["s2d.yaml", "video_rts.yaml"]))
    densifier = next(c for c in cli.trainer.callbacks if isinstance(c, SparseToDense))
    assert densifier.num_samples == 5
    for i, sampling in enumerate(densifier.sampling):
        temperature, top_p = round(0.8 + 0.15 * i, 9), round(min(0.95, 0.7 + 0.05 * i), 9)
        assert sampling == Sampling(temperature, top_p, 50, 0.4, 0.2, ("</answer>",))
    assert cli.model.max_new_tokens == 1024


def test_a_vote_is_a_plug_in(monkeypatch):
    callbacks = (
        "[{class_path: SparseToDense, init_args: {vote: {class_path: tests.own_plugins.SteepVote, "
        "init_args: {steepness: 3}}, consensus: 2, levels: [16, 48], num_samples: 3, "
        "early_stop: false}}, "
        "{class_path: PredictionWriter}]"
    )
    args = [*args_of("predict", ["s2d.yaml"]), f"--trainer.callbacks={callbacks}"]
    cli = instantiate(monkeypatch, args)
    densifier = next(c for c in cli.trainer.callbacks if isinstance(c, SparseToDense))
    assert densifier.rule.vote.weight(-0.1) == pytest.approx(math.exp(-0.3))
    assert densifier.fingerprint() == {
        "levels": [16, 48], "num_samples": 3, "consensus": 2,
        "vote": {"class": "tests.own_plugins.SteepVote", "steepness": 3.0}, "early_stop": False,
    }  # fmt: skip


def test_checkpoints_stay_in_the_folder_of_the_run(monkeypatch, tmp_path):
    args = [*args_of("fit", [FIT]), f"--trainer.default_root_dir={tmp_path}"]
    cli = instantiate(monkeypatch, args)
    assert cli.trainer.checkpoint_callback.dirpath == str(tmp_path / "checkpoints")
    args.append(
        "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {dirpath: elsewhere}}]"
    )
    assert instantiate(monkeypatch, args).trainer.checkpoint_callback.dirpath.endswith("elsewhere")
