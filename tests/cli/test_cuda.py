"""The recipes' own commands on a pretended CUDA device, with the embedded model."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2MLP

from tests.pretended_cuda import Device, pretended_cuda
from vrts.cli.command import main
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset

ROOT = Path(__file__).parents[2]
SMALL_FIT = (
    "--data.batch_size=1",
    "--trainer.max_steps=1",
    "--data.num_frames=4",
    "--model.num_generations=2",
    "--model.max_new_tokens=8",
)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return make_dataset(folder, num_videos=2, seed=5, kinds=(OBJECT, FLASH))


def vrts(command: str, overlays: str, folder: Path, *more: str) -> tuple[int, Device]:
    """Run a command with overlays of ``configs/`` on the device."""
    with pretended_cuda() as device:
        code = main(
            [
                command,
                *(f"--config={ROOT}/configs/{name}.yaml" for name in overlays.split()),
                f"--model.policy.init_args.path={ROOT}/assets/tiny",
                f"--trainer.default_root_dir={folder}",
                "--trainer.enable_progress_bar=false",
                "--data.num_workers=0",
                *more,
            ]
        )
    return code, device


LEAN = "--trainer.callbacks=[]"
"""Without what draws curves, which takes longer than training."""


def fit(overlays: str, folder: Path, annotations: Path, *more: str) -> Device:
    """Train, which must succeed and decode by graphs without a violation."""
    own = [
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={annotations}",
        "--data.train.init_args.video_root=null",
    ]
    code, device = vrts("fit", overlays, folder, *SMALL_FIT, *own, *more)
    check(code, device)
    assert device.flash["backward"] > 0, "no shared-prefix attention in the update"
    return device


def check(code: int, device: Device) -> None:
    assert device.violations == []
    assert code == 0
    assert device.graphs, "no step was recorded"
    assert all(graph.num_replays > 0 for graph in device.graphs)
    assert device.flash["forward"] > 0


def logged(folder: Path, metric: str) -> list[float]:
    """Values of a metric, step by step."""
    (path,) = folder.glob("logs/*/metrics.csv")
    with path.open() as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def test_lora_trains_validates_saves_exports_and_resumes(tmp_path, annotations):
    recipe = "grpo lora tiny gpu validate"
    options = (
        "--model.policy.init_args.dtype=bfloat16",
        "--model.num_generations=4",
        "--model.max_new_tokens=12",
        "--data.val=VideoR1Reader",
        f"--data.val.init_args.path={annotations}",
        "--data.val.init_args.video_root=null",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--data.eval_batch_size=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        "--trainer.logger.init_args.name=logs",
    )
    run = tmp_path / "run"

    def fit_into(logs: Path, *more: str) -> Device:
        into = f"--trainer.logger.init_args.save_dir={logs}"
        return fit(recipe, run, annotations, *options, into, *more)

    device = fit_into(tmp_path / "first")
    assert "_foreach_sqrt" not in device.operators, "AdamW holds a copy of all second moments"
    assert device.operators["_fused_adamw_"] == 1
    assert logged(tmp_path / "first", "train/kl") == [0.0]
    (gap,) = logged(tmp_path / "first", "train/sampling/logprob_diff")
    assert 0 < gap < 0.05
    (accuracy,) = logged(tmp_path / "first", "val/accuracy")
    assert 0 <= accuracy <= 1
    exported = load_file(run / "model" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in exported.items() if "lora_B" in name)
    fit_into(tmp_path / "second", "--trainer.max_steps=2", "--ckpt_path=last")
    (kl,) = logged(tmp_path / "second", "train/kl")
    assert kl != 0, "did not resume from the adapter that was trained"


def test_full_with_a_frozen_copy(tmp_path, annotations):
    device = fit("grpo full tiny gpu", tmp_path, annotations, LEAN)
    assert "_foreach_sqrt" not in device.operators, "AdamW holds a copy of all second moments"


def test_dapo(tmp_path, annotations):
    fit("grpo lora dapo tiny gpu", tmp_path, annotations, LEAN, "--model.num_groups=1")


def test_tgrpo(tmp_path, annotations):
    fit("grpo lora tgrpo tiny gpu", tmp_path, annotations, LEAN)


@pytest.mark.parametrize("recipe", ["s2d tiny gpu", "s2d video_rts tiny gpu"])
def test_predict(tmp_path, annotations, recipe):
    two = annotations.with_name("two.jsonl")
    two.write_text("".join(annotations.read_text().splitlines(keepends=True)[:2]))
    code, device = vrts(
        "predict",
        recipe,
        tmp_path,
        "--model.max_new_tokens=8",
        "--data.eval_batch_size=2",
        f"--data.predict.init_args.path={two}",
        "--data.predict.init_args.video_root=null",
    )
    check(code, device)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 2
    rounds = [json.loads(line)["rounds"][0] for line in lines]
    assert all(found["answers"] for found in rounds)


def ask(folder: Path, annotations: Path, *more: str) -> tuple[int, Device]:
    return vrts(
        "predict",
        "ask tiny gpu",
        folder,
        "--model.max_new_tokens=12",
        f"--data.video={annotations.parent}/videos/00000.mp4",
        "--data.question=What colour is the circle?",
        '--data.options=["red", "green"]',
        *more,
    )


def test_ask(tmp_path, annotations, capsys):
    check(*ask(tmp_path, annotations))
    assert "What colour is the circle?" in capsys.readouterr().out


def test_one_process_of_ddp(tmp_path, annotations):
    """Over gloo: the device has no NCCL."""
    backend = "--trainer.strategy.init_args.process_group_backend=gloo"
    fit("grpo lora tiny ddp", tmp_path, annotations, backend, LEAN)


def test_a_wait_within_a_decoding_step_is_found(tmp_path, annotations, monkeypatch, caplog):
    """What a layer may do elsewhere, it may not do in a step that is recorded."""
    forward = Qwen2MLP.forward

    def waits(self, x):
        assert x.sum().item() is not None
        return forward(self, x)

    monkeypatch.setattr(Qwen2MLP, "forward", waits)
    code, device = ask(tmp_path, annotations)
    assert code == 0, "decoded without a graph"
    assert device.graphs == []
    assert "_local_scalar_dense" in device.violations[0]
    assert "without CUDA graphs" in caplog.text


def test_ids_on_the_host_are_found(tmp_path, annotations, monkeypatch):
    """The fault that ended every command at its first question."""
    isin = torch.isin
    monkeypatch.setattr(torch, "isin", lambda a, b: isin(a, b.to("cuda")))
    with pytest.raises(RuntimeError, match="at least two devices"):
        ask(tmp_path, annotations)


def test_graphs_can_be_switched_off(tmp_path, annotations):
    off = ("--model.engine=NativeEngine", "--model.engine.init_args.cuda_graphs=false")
    code, device = ask(tmp_path, annotations, *off)
    assert (code, device.violations, device.graphs) == (0, [], [])
