"""What this machine cannot do is refused by name, and before the weights are loaded."""

import re
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

import vrts.models.strategies.environment as machine
from tests.cli.test_configs import CONFIGS
from vrts.cli.command import main
from vrts.models.strategies.environment import check_precision, check_strategy
from vrts.types import InputError

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def refused(capsys, *args: str) -> str:
    """The error of a run that would start by loading the 7B model's weights."""
    words = ["fit", f"--config={CONFIGS / 'grpo.yaml'}", *args]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("vrts: error:") :]


@NO_CUDA
@pytest.mark.parametrize("overlay", ["gpu", "ddp", "fsdp"])
def test_overlays_that_need_cuda(overlay, capsys):
    error = refused(capsys, f"--config={CONFIGS / overlay}.yaml")
    assert "`CUDAAccelerator` can not run" in error
    assert "put --config configs/cpu.yaml after the others" in error


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--trainer.precision=16-mixed"], "trainer.precision: 16-mixed is not possible"),
        (["--trainer.precision=16-true"], "trainer.precision: 16-true is not possible"),
        (["--trainer.strategy=deepspeed"], "--trainer.strategy=FullySharded"),
        (["--trainer.precision=transformer-engine"], "pip install"),
        (["--trainer.strategy={class_path: FullySharded}", "--trainer.precision=16-mixed"],
         "Choose a different precision among: 32-true, bf16-mixed"),
        (["--trainer.strategy=fsdp"], "requires a GPU accelerator"),
        (["--trainer.strategy=nonsense"], "there is no 'nonsense'"),
        (["--trainer.strategy=ddp_spawn"], "set --trainer.strategy ddp, which starts them"),
        (["--trainer.num_nodes=0"], "num_nodes"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(args, named, capsys):
    cpu = f"--config={CONFIGS / 'cpu.yaml'}"
    assert named in refused(capsys, cpu, *args)


@pytest.mark.parametrize(
    "strategy",
    [FSDPStrategy(), DDPStrategy(start_method="spawn", cluster_environment=LightningEnvironment())],
)
def test_strategies_that_are_not_supported(strategy):
    trainer = SimpleNamespace(strategy=strategy)
    if isinstance(strategy, DDPStrategy):
        strategy._configure_launcher()
    with pytest.raises(InputError, match=r"^trainer\.strategy: .*(configs/fsdp\.yaml|ddp)"):
        check_strategy(trainer)


def test_precision_of_an_old_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False)
    check_precision("bf16-mixed", trainer)
    check_precision("bf16", trainer)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda", 0))
    with pytest.raises(InputError, match=r"bf16-mixed is not possible on Old Card"):
        check_precision("bf16-mixed", trainer)


@pytest.mark.parametrize(
    ("build", "driver", "message"),
    [
        ("13.0", "NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12",
         r"needs an NVIDIA driver of 580 or later, and this one is 535\.183.*cu126 build"),
        ("13.0", "NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release", "cannot use it"),
        ("13.0", None, "cannot use it"),
        (None, None, "is a build without CUDA"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use_is_named_with_the_driver_that_it_needs(
    monkeypatch, tmp_path, capsys, build, driver, message
):
    def init():
        raise RuntimeError("No CUDA GPUs are available\nand more")

    (tmp_path / "nvidia0").touch()
    if driver is not None:
        (tmp_path / "version").write_text(f"NVRM version: {driver}\nGCC version: 12.2.0\n")
    monkeypatch.setattr(machine, "DEVICES", (tmp_path / "nvidia0",))
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", build)
    error = refused(capsys, f"--config={CONFIGS / 'gpu.yaml'}")
    assert re.search(f"this machine has a GPU, but torch .*{message}", error)
    assert len(error.strip().splitlines()) <= 3
    monkeypatch.setattr(machine, "DEVICES", (tmp_path / "nowhere",))
    assert machine.why_no_cuda() is None
