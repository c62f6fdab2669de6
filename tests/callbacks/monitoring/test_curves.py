"""Curves of real training runs: what loggers get, in an image, over interruptions too."""

import json
import math
import random
import signal

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image

from tests.callbacks.runs import (
    curves,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
)
from tools.tiny.model import build_model_folder
from vrts.callbacks.checkpoints.interruption import SaveOnInterrupt
from vrts.callbacks.monitoring.curves import (
    CurveWriter,
    panels,
    running_mean,
    series,
    write_curves,
)
from vrts.cli.command import main
from vrts.demo.videos import make_dataset
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.reference import FrozenCopy
from vrts.types import InputError


@pytest.fixture
def curves_are_drawn():
    """They are."""


def leave_undrawn(patch):
    """For runs whose points alone are looked at."""
    patch.setattr(f"{CurveWriter.__module__}.write_curves", lambda path, points: path.touch())


class Kept(DummyLogger):
    """A logger that keeps what it is given, by step."""

    def __init__(self):
        super().__init__()
        self.logged = {}

    def log_metrics(self, metrics, step=None):
        self.logged.setdefault(step, {}).update(metrics)


class Interrupt(Callback):
    """Ctrl-C while a batch is trained on."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx):
        if batch_idx == self.batch:
            signal.raise_signal(signal.SIGINT)


class Fail(Callback):
    def on_before_backward(self, trainer: Trainer, *_args):
        if trainer.global_step == 2:
            raise RuntimeError("odd")


def fit(folder, model_folder, videos, callbacks=(), ckpt_path=None, **options):
    """Two epochs of 3 batches with validation after each; what loggers were given, and points."""
    logger, writer = Kept(), CurveWriter()
    module = make_module(
        make_policy(model_folder), lr=0.001, objective=GRPO(beta=0.1), reference=FrozenCopy()
    )
    options = {
        "max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 1,
        "val_check_interval": 3, "check_val_every_n_epoch": None,
    } | options  # fmt: skip
    trainer = make_trainer(folder, [*callbacks, writer], logger=logger, **options)
    video = videos["long"]
    data = make_data(train=questions(video, 6), val=questions(video, 2), batch_size=2)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return logger.logged, writer.points


def without_times(points):
    timed = ("train/rollout_s", "train/update_s", "train/tokens_per_s")
    return [{k: v for k, v in point.items() if k not in timed} for point in points]


def check_image(path):
    image = Image.open(path)
    image.verify()
    assert image.format == "PNG"
    width, height = image.size
    assert 1000 < width < 2000
    assert 400 < height < 3000
    colors = Image.open(path).convert("RGB").getcolors(1 << 24)
    assert len(colors) > 50, "curves are drawn"


def saved_points(path):
    return torch.load(path, weights_only=True)["curves"]


def test_points_are_what_loggers_get(tmp_path, model_folder, videos):
    logged, points = fit(tmp_path, model_folder, videos)
    training = [p for p in points if "train/loss" in p]
    assert [p["step"] for p in training] == [1, 2, 3, 4, 5, 6]
    for point in training:
        # loggers count steps from 0
        given = {k: v for k, v in logged[point["step"] - 1].items() if k.startswith("train/")}
        assert {k: v for k, v in point.items() if k.startswith("train/")} == given
        assert len(given) > 12
        assert point["lr"] == 0.001
    validation = [p for p in points if "val/accuracy" in p]
    assert [p["step"] for p in validation] == [3, 6]
    names = {"step", *(f"val/{n}" for n in ("accuracy", "mean_frames", "agreement", "num_failed"))}
    assert all(p.keys() == names for p in validation)
    check_image(tmp_path / "curves.png")


def test_a_resumed_run_has_the_curves_of_an_uninterrupted_one(tmp_path, model_folder, videos):
    full, cut = tmp_path / "full", tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        leave_undrawn(patch)
        _, want = fit(full, model_folder, videos)
    with pytest.raises(SystemExit):
        fit(cut, model_folder, videos, [SaveOnInterrupt(), Interrupt(1)])
    stopped = saved_points(cut / "last.ckpt")
    assert [p["step"] for p in stopped] == [1, 2]
    assert stopped[0].keys() == stopped[1].keys() > {"lr", "train/loss", "train/update_s"}
    check_image(cut / "curves.png")
    _, got = fit(cut, model_folder, videos, ckpt_path=str(cut / "last.ckpt"))
    assert without_times(got) == without_times(want)
    check_image(cut / "curves.png")


def test_a_run_resumed_from_any_step_has_all_points(tmp_path, model_folder, videos, monkeypatch):
    """A checkpoint has the point of its own step."""
    leave_undrawn(monkeypatch)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    _, want = fit(tmp_path, model_folder, videos, [keep])
    for step in (2, 3, 5):
        path = tmp_path / f"step={step}.ckpt"
        before = without_times(saved_points(path))
        assert before[-1]["step"] == step
        assert before == without_times(want)[: len(before)]
        _, got = fit(tmp_path / "resumed", model_folder, videos, ckpt_path=str(path))
        steps = [p["step"] for p in got if "train/loss" in p]
        assert steps == [1, 2, 3, 4, 5, 6]
        assert without_times(got)[: len(before)] == before


def test_a_run_that_fails_leaves_its_curves_and_its_own_error(tmp_path, model_folder, videos):
    with pytest.raises(RuntimeError, match="odd"):
        fit(tmp_path / "a", model_folder, videos, [Fail()])
    check_image(tmp_path / "a/curves.png")


def test_what_cannot_be_drawn_does_not_hide_why_a_run_failed(
    tmp_path, model_folder, videos, caplog
):
    class Block(Callback):
        def on_train_start(self, *_args):
            (tmp_path / "curves.png").mkdir()

    with pytest.raises(RuntimeError, match="odd"):
        fit(tmp_path, model_folder, videos, [Block(), Fail()])
    assert "cannot draw the curves" in caplog.text
    (tmp_path / "curves.png").rmdir()
    with pytest.raises(InputError, match=r"curves\.png.*the model is saved"):
        fit(tmp_path, model_folder, videos, [Block()], max_steps=1, val_check_interval=1)


def test_the_command_draws_curves_of_what_it_logs(tmp_path):
    build_model_folder(tmp_path / "model", seed=0)
    annotations = make_dataset(tmp_path / "data", num_videos=4, seed=5)
    args = [
        "fit",
        "--config=configs/grpo.yaml",
        "--config=configs/tiny.yaml",
        f"--model.policy.init_args.path={tmp_path / 'model'}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        f"--trainer.logger={CSVLogger.__module__}.CSVLogger",
        f"--trainer.logger.init_args.save_dir={tmp_path / 'run'}",
        "--trainer.enable_progress_bar=false",
        "--data.batch_size=1",
        "--trainer.max_steps=3",
        "--model.num_generations=2",
        "--model.max_new_tokens=8",
        "--data.num_frames=4",
        "--data.num_workers=0",
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={annotations}",
        "--data.train.init_args.video_root=null",
    ]
    assert main(args) == 0
    check_image(tmp_path / "run/curves.png")
    points = curves(tmp_path / "run")
    header, *rows = (
        line.split(",") for line in next((tmp_path / "run").rglob("metrics.csv")).open()
    )
    losses = [row[header.index("train/loss")] for row in rows]
    assert [p["train/loss"] for p in points] == [float(loss) for loss in losses if loss]
    assert len(points) == 3


def test_series_take_the_later_value_of_a_step_and_leave_out_what_is_missing():
    points = [{"step": 2, "a": 1.0, "b": None}, {"step": 1, "a": 5.0}, {"step": 2, "a": 3.0}]
    assert series(points) == {"a": ([1, 2], [5.0, 3.0])}


def test_every_metric_has_one_panel():
    names = ["lr", "train/reward/total", "train/reward/x", "train/update_s", "train/new", "loss"]
    assert panels(names) == [
        ("rewards", ["train/reward/total", "train/reward/x"]),
        ("learning rate", ["lr"]),
        ("seconds: rollout, update", ["train/update_s"]),
        ("train/new", ["train/new"]),
        ("loss", ["loss"]),
    ]


def test_running_mean_is_the_mean_of_what_is_near():
    rng = random.Random(1)
    values = [rng.random() for _ in range(30)]
    values[4] = math.nan
    means = running_mean(values, 5)
    for i, mean in enumerate(means):
        near = [v for v in values[max(0, i - 2) : i + 3] if not math.isnan(v)]
        assert mean == pytest.approx(sum(near) / len(near))
    assert math.isnan(running_mean([math.inf], 3)[0])


def test_many_values_and_such_that_are_not_finite_are_drawn(tmp_path):
    points = [{"step": i, "train/loss": math.sin(i / 20), "lr": 1e-6} for i in range(1, 300)]
    points[7]["train/loss"], points[8]["train/loss"] = math.nan, math.inf
    points = json.loads(json.dumps(points))
    write_curves(tmp_path / "curves.png", points)
    image = Image.open(tmp_path / "curves.png")
    image.verify()
    assert image.size[0] > 1000


def drawn(monkeypatch, path, points):
    """The figure of an image."""
    kept, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (save(self, *args, **kw), kept.append(self))
    )
    write_curves(path, points)
    (figure,) = kept
    return figure


def test_what_never_changes_has_no_panel_and_is_named_below(tmp_path, monkeypatch):
    points = [
        {
            "step": i,
            "lr": 1e-6,
            "train/truncated": 0.0,
            "train/loss": i / 9,
            "val/x": math.nan,
            "val/y": math.nan if i == 1 else 0.0,
        }
        for i in range(1, 9)
    ]
    figure = drawn(monkeypatch, tmp_path / "curves.png", points)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "val/y"]
    below = figure.get_supxlabel()
    assert below == (
        "all the time: share of completions cut off: 0; learning rate: 1e-06; val/x: nan"
    )
    one = drawn(monkeypatch, tmp_path / "one.png", points[:1])
    assert {axes.get_title() for axes in one.axes} >= {"loss", "learning rate"}, "all is constant"
    assert one.get_supxlabel() == ""


def test_no_legend_covers_a_curve(tmp_path, monkeypatch):
    points = [
        {"step": i, **{f"train/reward/{name}": i * k / 9 for k, name in enumerate("abc", 1)},
         "train/rollout_s": i, "train/update_s": 1.5 * i}
        for i in range(1, 99)
    ]  # fmt: skip
    figure = drawn(monkeypatch, tmp_path / "curves.png", points)
    legends = [axes.get_legend() for axes in figure.axes]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [
        ["a", "b", "c"], ["rollout", "update"],
    ]  # fmt: skip
    for axes, legend in zip(figure.axes, legends, strict=True):
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0
