"""Every YAML file in configs/ is parsed and instantiated, alone or on what it is an overlay of."""

import math
import re
from dataclasses import dataclass
from itertools import combinations as combinations_of
from itertools import product
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.cli.command import run
from vrts.data.video.resolution import Resolution
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.sharding import Sharding
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.types import SamplingParams

CONFIGS = Path(__file__).parents[2] / "configs"
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
    "record.yaml": ("predict", ["s2d.yaml", "video_rts.yaml"]),
    "served.yaml": ("predict", ["s2d.yaml"]),
    "vllm.yaml": ("predict", ["s2d.yaml"]),
    "validate.yaml": ("fit", ["grpo.yaml"]),
    "small_gpu.yaml": ("fit", ["grpo.yaml", "lora.yaml"]),
    "qlora.yaml": ("fit", ["grpo.yaml", "lora.yaml", "small_gpu.yaml"]),
}
MODELS = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("models/*.yaml"))
DEVICES = {
    "cpu.yaml": (SingleDeviceStrategy, "32-true"),
    "gpu.yaml": (SingleDeviceStrategy, "bf16-mixed"),
    "ddp.yaml": (DDPStrategy, "bf16-mixed"),
    "fsdp.yaml": (FullySharded, "bf16-mixed"),
}
"""Overlays of devices, with what they make of the Trainer."""
TUNING = ((), ("lora.yaml",), ("full.yaml",))
ALGORITHMS = ("dapo.yaml", "tgrpo.yaml")
OVERLAYS = (*DEVICES, "full.yaml", "lora.yaml", "tiny.yaml", *ALGORITHMS)
NEEDS_CUDA = ("gpu.yaml", "ddp.yaml", "fsdp.yaml")
"""Their device is swapped for the CPU where the Trainer is made; parsing sees them as they are."""
ASKED = {
    ("grpo.yaml",): "fit",
    ("grpo.yaml", "dapo.yaml"): "fit",
    ("grpo.yaml", "tgrpo.yaml"): "fit",
    ("s2d.yaml",): "predict",
    ("s2d.yaml", "video_rts.yaml"): "predict",
    ("s2d.yaml", "record.yaml"): "predict",
    ("ask.yaml",): "predict",
}
"""What is asked for; everything goes together with it."""


@dataclass(frozen=True)
class Combination:
    """One of what is asked for with one of each kind of overlay, in the order of the README."""

    asked: tuple[str, ...]
    tuning: tuple[str, ...]
    device: str
    tiny: tuple[str, ...]

    def __str__(self) -> str:
        names = [*self.asked, *self.tuning, self.device, *self.tiny]
        return "+".join(name.removesuffix(".yaml") for name in names)

    @property
    def args(self) -> list[str]:
        names = [*self.asked, *self.tuning, self.device, *self.tiny]
        ask = ["--data.video=clip.mp4", "--data.question=Why?"] if "ask.yaml" in names else []
        return args_of(ASKED[self.asked], names) + ask

    @property
    def values(self) -> tuple[object, ...]:
        return self.asked, self.tuning, self.device, self.tiny


COMBINATIONS = [
    Combination(*values) for values in product(ASKED, TUNING, DEVICES, ((), ("tiny.yaml",)))
]


def pairwise(combinations: list[Combination]) -> list[Combination]:
    """Some of them, in which every two overlays that go together come together."""
    pairs = {c: set(combinations_of(enumerate(c.values), 2)) for c in combinations}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(combinations, key=lambda c: len(pairs[c] & missing))
        missing -= pairs[best]
        chosen.append(best)
    return chosen


def args_of(subcommand: str, names: list[str]) -> list[str]:
    args = [subcommand, *(f"--config={CONFIGS / name}" for name in names)]
    if set(names) & set(NEEDS_CUDA):
        args += ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    return args


def instantiate(monkeypatch, args: list[str]):
    """Parse and build everything as the command does, and stop before it runs."""
    monkeypatch.setattr("vrts.cli.command.VrtsCLI._run_subcommand", lambda self, subcommand: None)
    return run(args)


def test_no_file_is_left_out():
    names = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert names == set(RECIPES) | set(OVERLAYS) | set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name, monkeypatch):
    """One overlay serves training and prediction."""
    (hub_id,) = re.findall(r"path: ([\w./-]+)", (CONFIGS / name).read_text())
    for names in (["grpo.yaml", "lora.yaml", name], ["s2d.yaml", name]):
        command = "fit" if "grpo.yaml" in names else "predict"
        cli = instantiate(monkeypatch, args_of(command, names))
        assert cli.model.policy.path == hub_id
        if "smolvlm2" in name:  # the recipes' own budgets are of models without squares
            assert cli.datamodule.resolution == Resolution()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name, monkeypatch):
    subcommand, below = RECIPES[name]
    ask = ["--data.video=clip.mp4", "--data.question=Why?"] if name == "ask.yaml" else []
    cli = instantiate(monkeypatch, args_of(subcommand, [*below, name]) + ask)
    stage = {"fit": "train", "predict": "predict"}[subcommand]
    assert cli.datamodule.readers[stage] is not None
    assert isinstance(cli.trainer.strategy, SingleDeviceStrategy)


def check(combination: Combination, monkeypatch) -> None:
    """A combination gives what each of its parts stands for."""
    cli = instantiate(monkeypatch, combination.args)
    policy, trainer = cli.model.policy, cli.trainer
    tiny, lora = bool(combination.tiny), combination.tuning == ("lora.yaml",)
    strategy, precision = DEVICES[combination.device]
    assert type(trainer.strategy) is (SingleDeviceStrategy if tiny else strategy)
    assert trainer.precision == precision
    assert policy.path == ("assets/tiny" if tiny else "Qwen/Qwen2.5-VL-7B-Instruct")
    assert (policy.lora is not None) == lora
    if ASKED[combination.asked] == "fit" and combination.tuning:
        wanted = AdapterOff if lora else FrozenCopy
        assert type(cli.model._reference) is wanted
        optimizer = cli.model._optimizer([torch.nn.Parameter(torch.ones(1))])
        assert optimizer.defaults["lr"] == (1e-5 if lora else 1e-6)


@pytest.mark.parametrize("combination", pairwise(COMBINATIONS), ids=str)
def test_every_two_overlays_go_together(combination, monkeypatch):
    check(combination, monkeypatch)


@pytest.mark.parametrize("overlay", ["lora.yaml", "full.yaml"])
def test_what_has_no_model_is_not_tuned(overlay, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        instantiate(monkeypatch, args_of("predict", ["replay.yaml", overlay]))
    error = capsys.readouterr().err
    assert "ReplayPolicy has no option" in error


@pytest.mark.parametrize("device", DEVICES)
def test_a_replay_goes_with_every_device(device, monkeypatch):
    cli = instantiate(monkeypatch, args_of("predict", ["replay.yaml", device]))
    assert type(cli.trainer.strategy) is DEVICES[device][0]
    assert type(cli.datamodule.readers["predict"]).__name__ == "RecordedReader"


@pytest.mark.parametrize(
    ("first", "last"),
    [("ddp.yaml", "gpu.yaml"), ("fsdp.yaml", "cpu.yaml"), ("fsdp.yaml", "ddp.yaml")],
)
def test_the_last_device_wins(first, last, monkeypatch):
    cli = instantiate(monkeypatch, args_of("fit", [FIT, first, last]))
    assert type(cli.trainer.strategy) is DEVICES[last][0]
    assert cli.trainer.precision == DEVICES[last][1]


def test_overlays_combine(monkeypatch):
    cli = instantiate(monkeypatch, args_of("fit", [FIT, "lora.yaml", "tiny.yaml", "gpu.yaml"]))
    assert type(cli.model._reference).__name__ == "AdapterOff"
    assert cli.model.policy.lora.rank == 64
    assert cli.model.policy.path == "assets/tiny"
    assert cli.trainer.precision == "bf16-mixed"


def test_a_small_gpu_keeps_the_recipe_and_holds_less(monkeypatch):
    names = ["lora.yaml", "gpu.yaml", "small_gpu.yaml", "qlora.yaml"]
    plain = instantiate(monkeypatch, args_of("fit", [FIT, *names[:2]])).model
    model = instantiate(monkeypatch, args_of("fit", [FIT, *names])).model
    assert (plain.policy._mlp_chunk_size, plain.policy.quantize) == (None, None)
    assert (model.policy._mlp_chunk_size, model.policy.quantize) == (1024, "nf4")
    assert (model.engine.max_kv_gb, model.engine.offload) == (1.5, True)
    assert model.policy.lora == plain.policy.lora
    assert model.num_generations == plain.num_generations == 8
    assert model.max_new_tokens == plain.max_new_tokens


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
    assert (cli.model.num_groups, cli.datamodule.batch_size) == (8, 32)
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


def test_a_run_to_be_replayed_gives_nothing_up_and_is_asked_as_before(monkeypatch):
    names = ["s2d.yaml", "video_rts.yaml"]
    found = [
        next(c for c in instantiate(monkeypatch, args_of("predict", n)).trainer.callbacks
             if isinstance(c, SparseToDense)).fingerprint()
        for n in (names, [*names, "record.yaml"])
    ]  # fmt: skip
    assert [one.pop("early_stop") for one in found] == [True, False]
    assert found[0] == found[1]


def test_video_rts_draws_each_answer_less_cautiously(monkeypatch):
    cli = instantiate(monkeypatch, args_of("predict", ["s2d.yaml", "video_rts.yaml"]))
    densifier = next(c for c in cli.trainer.callbacks if isinstance(c, SparseToDense))
    assert densifier.num_samples == 5
    for i, sampling in enumerate(densifier.sampling):
        temperature, top_p = round(0.8 + 0.15 * i, 9), round(min(0.95, 0.7 + 0.05 * i), 9)
        assert sampling == SamplingParams(temperature, top_p, 50, 0.4, 0.2, ("</answer>",))
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


def test_validation_adds_to_the_callbacks_of_a_recipe(monkeypatch, tmp_path):
    more = [
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/accuracy",
        "--trainer.callbacks.mode=max",
    ]
    plain = instantiate(monkeypatch, args_of("fit", [FIT])).trainer
    cli = instantiate(monkeypatch, [*args_of("fit", [FIT, "validate.yaml"]), *more])
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    added = ["SparseToDense", "ModelCheckpoint", "EarlyStopping"]
    assert sorted(names) == sorted([*(type(c).__name__ for c in plain.callbacks), *added])
    assert {c.dirpath for c in cli.trainer.checkpoint_callbacks} == {str(tmp_path / "checkpoints")}
    assert len({c.state_key for c in cli.trainer.checkpoint_callbacks}) == 2
    trainer = cli.trainer
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (50, None)
    assert cli.datamodule.readers["val"] is not None
