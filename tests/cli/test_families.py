"""Every family through the command: train, validate, resume, predict, export."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.cli.test_command import CONFIGS, fit_args, own_train, predict_args
from tests.models.families.conftest import family_model  # noqa: F401 a fixture
from tests.pretended_cuda import pretended_cuda
from vrts.cli.command import main
from vrts.models.vlm.policy import TransformersPolicy

LEARNING = (
    # random weights never earn a reward; this one tells completions apart
    "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
    "--model.optimizer.init_args.lr=0.01",
)


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    policy = TransformersPolicy(str(folder), dtype="float32")
    policy.load()
    return dict(policy.named_parameters())


def with_overlay(args: list[str], name: str) -> list[str]:
    tiny = f"--config={CONFIGS / 'tiny.yaml'}"
    i = args.index(tiny)
    return [*args[:i], f"--config={CONFIGS / f'{name}.yaml'}", *args[i:]]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["full", "lora"])
def test_training(family_model, annotations, tmp_path, capsys, overlay):  # noqa: F811
    """Two steps at once, and one that is resumed after it, write the same model; so does export."""
    args = [
        *own_train(annotations),
        *LEARNING,
        "--data.val=VideoR1Reader",
        f"--data.val.init_args.path={annotations}",
        "--data.val.init_args.video_root=null",
        "--trainer.val_check_interval=1",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.limit_val_batches=1",
        "--trainer.callbacks=[{class_path: StepCheckpoint, init_args: "
        "{every_n_steps: 1, keep: 2}}, ExportPretrained]",
    ]

    def fit(root: Path, *more: str) -> None:
        own = with_overlay(fit_args(family_model.folder, root, *args, *more), overlay)
        assert main(own) == 0, capsys.readouterr().err

    fit(tmp_path / "once")
    fit(tmp_path / "twice", f"--ckpt_path={tmp_path}/once/checkpoints/step=1.ckpt")
    once, twice = (loaded(tmp_path / name / "model") for name in ("once", "twice"))
    assert all(torch.equal(twice[name], weight) for name, weight in once.items())
    (config,) = (tmp_path / "once").rglob("config.yaml")
    exported = tmp_path / "exported"
    more = [] if overlay == "full" else ["--merge=true"]
    command = ["export", f"--config={config}", "--ckpt_path=last", f"--output_dir={exported}"]
    assert main([*command, *more]) == 0, capsys.readouterr().err
    found, start = loaded(exported), loaded(family_model.folder)
    assert found.keys() == start.keys()
    assert any((found[name] != weight).any() for name, weight in start.items())
    if overlay == "full":
        assert all(torch.equal(found[name], weight) for name, weight in once.items())


def test_sparse_to_dense(family_model, annotations, tmp_path, capsys):  # noqa: F811
    args = predict_args(
        family_model.folder,
        tmp_path,
        annotations,
        "--trainer.callbacks+=SparseToDense",
        "--trainer.callbacks.levels=[2,4,8]",
        "--trainer.callbacks.num_samples=3",
        "--data.sampler=NestedPairSampler",
        "--data.sampler.init_args.densest=8",
    )
    assert main(args) == 0, capsys.readouterr().err
    found = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert len(found) == len(annotations.read_text().splitlines())
    for row in found:
        assert not row.get("error")
        frames = [one["num_frames"] for one in row["rounds"]]
        assert frames == [2, 4, 8][: len(frames)]


def test_validation(family_model, annotations, tmp_path, capsys):  # noqa: F811
    args = fit_args(family_model.folder, tmp_path)[1:]
    args = [arg for arg in args if not arg.startswith("--trainer.max_steps")]
    args += ["--data.val=VideoR1Reader", f"--data.val.init_args.path={annotations}"]
    args += ["--data.val.init_args.video_root=null"]
    assert main(["validate", *args]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert re.search(r"val/accuracy\D+[01](\.\d+)?", printed)
    assert re.search(r"val/num_failed\D+0(\.0)?\b", printed)


def test_pretended_cuda(family_model, annotations, tmp_path, capsys):  # noqa: F811
    """LoRA under bf16-mixed: nothing waits for the device, or lies on another one."""
    args = fit_args(
        family_model.folder,
        tmp_path,
        *own_train(annotations),
        *LEARNING,
        "--model.policy.init_args.dtype=bfloat16",
        "--trainer.max_steps=1",
        "--trainer.callbacks=[]",
    )
    args = with_overlay(args, "lora")
    args.insert(args.index(f"--config={CONFIGS / 'tiny.yaml'}") + 1, f"--config={CONFIGS}/gpu.yaml")
    with pretended_cuda() as device:
        code = main(args)
    assert device.violations == []
    assert code == 0, capsys.readouterr().err
    assert device.graphs, "no step was recorded"
    assert all(graph.num_replays > 0 for graph in device.graphs)
    assert device.flash["backward"] > 0
