"""Validation within ``vrts fit``: what it finds, what it keeps, and that it disturbs nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file

from tests.callbacks.runs import curves
from tests.cli.test_command import lines_of
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.cli.command import main, run
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset
from vrts.models.vlm.shards import _current_name

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
S2D = "{class_path: SparseToDense, init_args: {levels: [4, 8, 16], num_samples: 3}}"
BEST = (
    "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {monitor: val/accuracy, "
    "mode: max, filename: 'best-step={step}-accuracy={val/accuracy:.4f}', "
    "auto_insert_metric_name: false, save_on_train_epoch_end: false, "
    "enable_version_counter: false}}"
)
"""As in the overlay, whose list of callbacks is replaced here for small levels."""
VAL = ("val/accuracy", "val/mean_frames", "val/agreement", "val/num_failed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    kinds = (OBJECT, FLASH)
    train = make_dataset(root / "train", 4, seed=5, kinds=kinds)
    val = make_dataset(root / "val", 4, seed=7, kinds=kinds)
    lines = val.read_text().splitlines()
    damaged = json.loads(lines[2])
    (val.parent / "damaged.mp4").write_bytes(b"no video at all" * 50)
    lines[2] = json.dumps(damaged | {"path": "damaged.mp4"})
    val.write_text("\n".join(lines) + "\n")
    return {"train": train, "val": val}


def common(data: dict[str, Path], root: Path) -> list[str]:
    return [
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={ROOT / 'assets/tiny'}",
        f"--trainer.default_root_dir={root}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--model.max_new_tokens=24",
        "--model.eval_sampling={temperature: 1.0, top_p: 0.95}",
        "--data.num_workers=0",
        "--data.eval_batch_size=3",
    ]


def fit_args(data: dict[str, Path], root: Path, *more: str, validates: bool = True) -> list[str]:
    """Six steps of two questions each, with a validation after every second one."""
    val = [
        f"--config={CONFIGS / 'validate.yaml'}",
        f"--data.val.init_args.path={data['val']}",
        "--trainer.val_check_interval=2",
    ]
    callbacks = ", ".join(
        [
            "{class_path: StepCheckpoint, init_args: {every_n_steps: 1, keep: 2}}",
            "{class_path: CurveWriter}",
            "{class_path: ExportPretrained}",
            *((S2D, BEST) if validates else ()),
        ]
    )
    return [
        "fit",
        f"--config={CONFIGS / 'grpo.yaml'}",
        *(val if validates else ()),
        *common(data, root),
        f"--trainer.callbacks=[{callbacks}]",
        "--trainer.logger=false",
        "--data.batch_size=2",
        "--trainer.max_steps=6",
        "--trainer.max_epochs=9",
        "--model.num_generations=3",
        "--model.optimizer.init_args.lr=3.0e-3",
        "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        "--data.num_frames=4",
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={data['train']}",
        "--data.train.init_args.video_root=null",
        *more,
    ]


def validations(root: Path) -> dict[int, dict[str, float]]:
    """What each validation found, by step."""
    points = curves(root)
    return {p["step"]: {n: p[n] for n in VAL} for p in points if "val/accuracy" in p}


def losses(root: Path) -> list[float]:
    return [p["train/loss"] for p in curves(root) if "train/loss" in p]


@pytest.fixture(scope="module")
def validated(data, tmp_path_factory) -> Path:
    """The folder of a run that was validated after steps 2, 4 and 6."""
    root = tmp_path_factory.mktemp("validated")
    assert main(fit_args(data, root)) == 0
    return root


def test_the_best_and_the_newest_are_kept(validated):
    found = validations(validated)
    assert list(found) == [2, 4, 6]
    assert len({metrics["val/accuracy"] for metrics in found.values()}) > 1, "nothing to choose"
    best = max(found, key=lambda step: found[step]["val/accuracy"])
    accuracy = found[best]["val/accuracy"]
    assert {path.name for path in (validated / "checkpoints").iterdir()} == {
        f"best-step={best}-accuracy={accuracy:.4f}.ckpt", "last.ckpt",
        "step=5.ckpt", "step=6.ckpt",
    }  # fmt: skip
    assert all(metrics["val/num_failed"] == 1 for metrics in found.values())


def test_the_newest_knows_what_its_validation_found(validated):
    """A run that goes on from there has the best accuracy so far."""
    best = max(metrics["val/accuracy"] for metrics in validations(validated).values())
    checkpoint = torch.load(validated / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    (state,) = (s for k, s in checkpoint["callbacks"].items() if "val/accuracy" in k)
    assert float(state["best_model_score"]) == pytest.approx(best)
    assert Path(state["best_model_path"]).is_file()


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_prediction_comes_to_the_same(command, validated, data, tmp_path, capsys):
    """Same weights and questions: the numbers of validation are those of metrics.json."""
    (path,) = (validated / "checkpoints").glob("best-*.ckpt")
    step = int(path.name.split("=")[1].split("-")[0])
    reader = {"predict": "predict", "validate": "val"}[command]
    args = [
        command,
        *common(data, tmp_path),
        "--model.policy=TransformersPolicy",
        f"--trainer.callbacks=[{S2D}, {{class_path: PredictionWriter}}]",
        "--trainer.logger=false",
        f"--data.{reader}=VideoR1Reader",
        f"--data.{reader}.init_args.path={data['val']}",
        f"--ckpt_path={path}",
    ]
    want = validations(validated)[step]
    if command == "predict":
        assert main(args) == 0
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert len({len(line["rounds"]) for line in lines_of(tmp_path / "predictions.jsonl")}) > 1
        names = ("accuracy", "mean_frames", "agreement", "num_failed")
        got = dict(zip(VAL, (metrics[name] for name in names), strict=True))
    else:
        cli = run(args)
        got = {name: float(cli.trainer.callback_metrics[name]) for name in VAL}
    assert got == pytest.approx(want, abs=5e-5)  # a line has agreement to four digits


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_training_is_the_same_without_validation(tuning, data, tmp_path):
    """Losses to the last bit: random numbers, modes and weights are as they were."""
    more = ["--model.policy.init_args.gradient_checkpointing=true", "--trainer.max_steps=4"]
    more.append("--model.max_new_tokens=8")
    if tuning == "lora":
        more += [
            "--model.policy.init_args.lora={rank: 4, alpha: 8, dropout: 0.3}",
            "--model.reference=AdapterOff",
        ]
    for name, validates in (("with", True), ("without", False)):
        args = fit_args(data, tmp_path / name, *more, validates=validates)
        assert main(args) == 0
    assert list(validations(tmp_path / "with")) == [2, 4]
    assert not validations(tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert len(set(losses(tmp_path / "with"))) == 4


STOP = (
    "--model.max_new_tokens=8",
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=val/accuracy",
    "--trainer.callbacks.mode=max",
)


def callback(cli, kind):
    (found,) = (c for c in cli.trainer.callbacks if type(c) is kind)
    return found


def test_a_resumed_run_has_the_best_and_the_patience_of_an_uninterrupted_one(data, tmp_path):
    """Nothing is learnt, so that the first validation stays the best and patience runs out."""
    more = ("--model.optimizer.init_args.lr=0", *STOP, "--trainer.callbacks.patience=2")
    whole = run(fit_args(data, tmp_path / "whole", *more))
    assert whole.trainer.global_step == 6, "two validations after the first had nothing better"
    run(fit_args(data, tmp_path / "parts", *more, "--trainer.max_steps=4"))
    parts = run(
        fit_args(data, tmp_path / "parts", *more, "--trainer.max_steps=20", "--ckpt_path=last")
    )
    assert parts.trainer.global_step == 6
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")
    for cli in (whole, parts):
        stop, best = callback(cli, EarlyStopping), callback(cli, ModelCheckpoint)
        assert (stop.wait_count, stop.patience) == (2, 2)
        assert Path(best.best_model_path).name.startswith("best-step=2-")
        assert Path(best.best_model_path).is_file()
        assert cli.trainer.callbacks[-1] is callback(cli, StepCheckpoint)


def test_a_run_without_improvement_stops(data, tmp_path):
    more = ("--model.optimizer.init_args.lr=0", *STOP, "--trainer.callbacks.patience=1")
    cli = run(fit_args(data, tmp_path, *more, "--trainer.max_steps=20"))
    assert cli.trainer.global_step == 4
    assert list(validations(tmp_path)) == [2, 4]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Trained weights of a checkpoint, by their names in an exported folder."""
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("policy.model."): weight for name, weight in state.items()}


def differing(folder: Path, path: Path) -> list[str]:
    """Names of the weights that an exported folder has otherwise than a checkpoint."""
    stored, trained = load_file(folder / "model.safetensors"), weights(path)
    exported = {_current_name(name): weight for name, weight in stored.items()}
    shared = exported.keys() & trained.keys()
    assert len(shared) > 10
    return [name for name in shared if not torch.equal(exported[name], trained[name])]


def test_the_model_is_that_of_the_best_validation(validated):
    (best,) = (validated / "checkpoints").glob("best-*.ckpt")
    last = validated / "checkpoints/last.ckpt"
    found = validations(validated)
    step = max(found, key=lambda step: found[step]["val/accuracy"])
    assert step != 6, "the last one is the best, so that this shows nothing"
    assert differing(validated / "model", best) == []
    assert len(differing(validated / "model", last)) > 10
    facts = json.loads((validated / "model/vrts.json").read_text())
    accuracy = pytest.approx(found[step]["val/accuracy"])
    assert facts["steps"] == step
    assert facts["selected"] == {"metric": "val/accuracy", "value": accuracy}
    card = (validated / "model/README.md").read_text()
    assert f"best of the run: `val/accuracy` `{found[step]['val/accuracy']:.4g}`" in card
    assert f"in {step} optimizer steps" in card


def export_args(data: dict[str, Path], run: Path, out: Path, *more: str) -> list[str]:
    drop = ("--data.val.", "--trainer.val_check_interval")
    args = [arg for arg in fit_args(data, run) if not arg.startswith(drop)]
    return ["export", *args[1:], f"--output_dir={out}", *more]


def test_export_finds_the_best_in_a_run_that_was_moved(validated, data, tmp_path):
    shutil.copytree(validated, tmp_path / "run")
    args = export_args(data, tmp_path / "run", tmp_path / "model", "--ckpt_path=best")
    assert main(args) == 0
    for name in ("README.md", "vrts.json", "model.safetensors"):
        want = (validated / "model" / name).read_bytes()
        assert (tmp_path / "model" / name).read_bytes() == want, name


def test_a_best_that_is_not_there_is_named(validated, data, tmp_path, capsys):
    args = export_args(data, tmp_path / "run", tmp_path / "model", "--ckpt_path=best")
    assert main(args) == 1
    assert "records a best one; --config configs/validate.yaml" in capsys.readouterr().err
    shutil.copytree(validated / "checkpoints", tmp_path / "run/checkpoints")
    (best,) = (tmp_path / "run/checkpoints").glob("best-*.ckpt")
    best.unlink()
    assert main(args) == 1
    assert f"{best}, which is recorded as the best, is missing" in capsys.readouterr().err


class TestRefused:
    """Before the weights are loaded."""

    def fails(self, capsys, args: list[str], *messages: str) -> None:
        assert main(args) == 1
        error = capsys.readouterr().err
        for message in messages:
            assert message in error

    def test_nothing_to_watch(self, data, tmp_path, capsys):
        args = fit_args(data, tmp_path, "--data.val=null")
        self.fails(capsys, args, "ModelCheckpoint monitors val/accuracy", "data.val")

    def test_at_ends_of_epochs(self, data, tmp_path, capsys):
        args = fit_args(data, tmp_path, "--trainer.val_check_interval=1.0")
        args.append("--trainer.check_val_every_n_epoch=1")
        self.fails(capsys, args, "val_check_interval is 1.0", "an epoch has 4")

    def test_options_that_have_another_place(self, data, tmp_path, capsys):
        args = fit_args(data, tmp_path, "--trainer.accumulate_grad_batches=2")
        self.fails(capsys, args, "accumulate_grad_batches is 2", "data.batch_size")
        args = fit_args(data, tmp_path, "--trainer.gradient_clip_val=1.0")
        self.fails(capsys, args, "gradient_clip_val is 1.0", "model.max_grad_norm")

    def test_never(self, data, tmp_path, capsys):
        args = fit_args(data, tmp_path, "--trainer.max_steps=1")
        self.fails(capsys, args, "val_check_interval is 2 steps, but the run has 1")

    def test_no_answer_is_known(self, data, tmp_path, capsys):
        path = data["val"].with_name("unknown.jsonl")
        lines = [line | {"solution": None} for line in lines_of(data["val"])]
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
        args = fit_args(data, tmp_path, f"--data.val.init_args.path={path}")
        self.fails(capsys, args, "none of its 8 questions has an answer")
