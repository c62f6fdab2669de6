"""Two processes over gloo train as one process with the doubled batch does, through the command."""

import csv
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.forked import command, forked
from vrts.cli.command import main

CONFIGS = Path(__file__).parents[2] / "configs"


def fit_args(
    model: Path,
    annotations: Path,
    root: Path,
    devices: int,
    *more: str,
    more_last: tuple[str, ...] = (),
) -> list[str]:
    """Words of ``vrts fit``, whose losses differ where any process does something else."""
    return [
        "fit",
        f"--config={CONFIGS / 'grpo.yaml'}",
        *more,
        f"--config={CONFIGS / 'tiny.yaml'}",  # last, for its float32
        f"--model.policy.init_args.path={model}",
        f"--trainer.default_root_dir={root}",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.init_args.save_dir={root}",
        f"--trainer.devices={devices}",
        "--trainer.strategy=ddp",
        "--trainer.enable_progress_bar=false",
        "--data.batch_size=1",
        "--trainer.max_steps=3",
        # Adam makes large steps of gradients that are rounding noise around zero
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.init_args.lr=1.0",
        "--model.optimizer.init_args.fused=false",  # FSDP2 has no fused SGD
        "--model.num_generations=4",
        "--model.max_new_tokens=12",
        # random weights never earn a reward; this one tells completions apart
        "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={annotations}",
        "--data.train.init_args.video_root=null",
        "--data.num_frames=4",
        f"--data.batch_size={2 // devices}",
        *more_last,
    ]


def logged(root: Path) -> list[dict]:
    """What a run logged at each step."""
    with next(root.resolve().rglob("metrics.csv")).open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def fit(
    model: Path,
    annotations: Path,
    root: Path,
    devices: int,
    *more: str,
    more_last: tuple[str, ...] = (),
) -> list[dict]:
    """Run ``vrts fit`` and return what it logged at each step."""
    args = fit_args(model, annotations, root, devices, *more, more_last=more_last)
    if devices == 1:  # no need of a process of its own, nor of a group of processes
        assert main([*args, "--trainer.strategy=auto"]) == 0
    else:
        with forked(root.parent / f"{root.name}.log", command, args, ranks=devices) as processes:
            processes.succeed()
    return logged(root)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["full", "lora"])
def test_one_and_two_processes_have_the_same_losses(overlay, inputs, alone, tmp_path):
    more = [f"--config={CONFIGS / 'lora.yaml'}"] if overlay == "lora" else []
    if overlay == "full":
        (tmp_path / "1").symlink_to(alone)
    else:
        fit(*inputs, tmp_path / "1", 1, *more)
    runs = [logged(tmp_path / "1"), fit(*inputs, tmp_path / "2", 2, *more)]
    assert len(runs[0]) == len(runs[1]) == 3
    for one, two in zip(*runs, strict=True):
        for name in ("train/loss", "train/kl", "train/reward/length", "train/entropy"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-6), name
    assert float(runs[0][-1]["train/kl"]) > 0
    name = "adapter_model.safetensors" if overlay == "lora" else "model.safetensors"
    one, two = (load_file(tmp_path / n / "model" / name) for n in "12")
    moved = load_file(inputs[0] / "model.safetensors")
    for key, value in one.items():
        # AdamW makes steps of the learning rate, 0.001, also of gradients that are next to nothing
        assert (two[key] - value).abs().max() <= 5e-4, key
    if overlay == "full":
        assert any((one[key] - moved[key]).abs().max() > 1e-4 for key in one)


@pytest.mark.slow
def test_a_loss_that_one_process_finds_bad_skips_the_step_on_all(inputs, tmp_path):
    broken = "{class_path: tests.own_plugins.Broken, init_args: {value: .nan, calls: [0], rank: 1}}"
    more = [f"--model.objective={broken}", "--model.reference=null"]
    rows = fit(*inputs, tmp_path / "2", 2, *more)
    assert len(rows) == 3
    assert float(rows[-1]["train/nonfinite_steps"]) == 1
    weights = load_file(tmp_path / "2/model/model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.slow
def test_options_that_processes_agree_on_do_not_hang(inputs, tmp_path):
    """Dynamic sampling, scaling by the batch and T-GRPO exchange numbers in the same order."""
    rows = fit(
        *inputs,
        tmp_path / "2",
        2,
        "--model.objective={class_path: DAPO, init_args: {advantages: BatchScaled, beta: 0}}",
        "--model.reference=null",
        "--model.num_groups=1",
        "--model.temporal={}",
        more_last=("--data.batch_size=2", "--model.rewards=[FormatReward, AccuracyReward]"),
    )
    assert len(rows) == 3
    # rewards are 0 throughout: both candidates are tried on each process
    assert {float(row["train/sampled_groups"]) for row in rows} == {2.0}
