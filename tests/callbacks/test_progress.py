"""The bar of a prediction run, and the lines that replace it without a terminal."""

import io
import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from tests.callbacks.metrics.test_summary import PREDICTIONS, predicted
from tests.callbacks.prediction.test_writer import SCRIPT, nine
from tests.callbacks.runs import make_data, make_module, make_trainer, predict, scripted
from vrts.callbacks import progress
from vrts.callbacks.metrics.summary import summarise
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.callbacks.progress import FitProgress, PredictionProgress, Tally, time_left


def test_a_tally_comes_to_the_same_as_the_metrics():
    tally = Tally()
    for one in PREDICTIONS:
        tally.add(one)
    metrics = summarise(PREDICTIONS, [4, 8, 16])
    assert tally.text() == (
        f"{metrics['num_failed']} failed, {metrics['mean_frames']:.1f} frames, "
        f"accuracy {100 * metrics['accuracy']:.1f} %"
    )


def test_a_tally_shows_only_what_there_is():
    tally = Tally()
    assert tally.text() == "0 failed"
    tally.add(predicted("a", None, (4, 1.0)))
    assert tally.text() == "0 failed, 4.0 frames"


def test_the_time_left_is_by_the_speed_of_this_run():
    assert time_left(0, 10, 5.0) is None
    assert str(time_left(4, 10, 6.0)) == "0:00:15"
    assert str(time_left(1, 1, 7384.6)) == "2:03:05"


def run(folder, videos, bar, **options):
    callbacks = [SparseToDense([4, 8, 16], 3), bar, PredictionWriter(str(folder))]
    trainer = make_trainer(folder, callbacks)
    data = make_data(predict=nine(videos), **options)
    trainer.predict(make_module(scripted(SCRIPT)), datamodule=data, return_predictions=False)


def ticking(line_every_s):
    """A bar whose clock ticks a second each time it is asked."""
    bar = PredictionProgress(line_every_s)
    ticks = itertools.count()
    bar._clock = lambda: float(next(ticks))
    return bar


def test_without_a_terminal_it_is_a_line_now_and_then(tmp_path, videos, capsys):
    run(tmp_path, videos, ticking(line_every_s=1), eval_batch_size=2)
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("questions:")]
    assert len(lines) == 9, "a line as soon as a question is decided"
    assert re.fullmatch(
        r"questions: 2 of 9, 0 failed, 6\.0 frames, accuracy 50\.0 %, 0:00:\d\d left", lines[1]
    )
    assert lines[-1].startswith("questions: 9 of 9, 2 failed, 8.0 frames, accuracy 50.0 %, 0:00:00")


@pytest.mark.parametrize("every_s", [0.0, 1e6])
def test_it_is_quiet_otherwise(tmp_path, videos, capsys, every_s):
    run(tmp_path, videos, PredictionProgress(line_every_s=every_s))
    assert "questions:" not in capsys.readouterr().out


def test_a_resumed_run_counts_what_was_done(tmp_path, videos, capsys):
    predict(tmp_path, scripted(SCRIPT), nine(videos)[:4])
    capsys.readouterr()
    run(tmp_path, videos, ticking(line_every_s=1))
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("questions:")]
    assert [s.split(",")[0] for s in lines] == [f"questions: {i} of 9" for i in (5, 6, 7, 8, 9)]
    assert all("failed, " in s for s in lines)
    assert "1 failed" in lines[0]


def test_on_a_terminal_it_is_a_bar(tmp_path, videos, monkeypatch):
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda: terminal)
    bar = PredictionProgress()
    run(tmp_path, videos, bar)
    out = file.getvalue()
    assert "9/9" in out
    assert "2 failed, 8.0 frames, accuracy 50.0 %, 0:00:00 left" in out
    assert out.endswith("\x1b[?25h"), "the cursor is back"
    assert bar._bar is None


def test_an_interrupted_run_gives_the_terminal_back(tmp_path, videos, monkeypatch):
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda: terminal)
    bar = PredictionProgress()
    callbacks = [SparseToDense([4], 3), bar, PredictionWriter(str(tmp_path))]
    trainer = make_trainer(tmp_path, callbacks)
    data = make_data(predict=nine(videos))
    with pytest.raises(SystemExit):
        trainer.predict(make_module(scripted(stop_after=2)), datamodule=data)
    assert bar._bar is None
    assert "\x1b[?25h" in file.getvalue()


class OfTwo(PredictionProgress):
    """Starts as in the first of two processes."""

    def on_predict_start(self, trainer, pl_module):
        share = SimpleNamespace(
            is_global_zero=True, world_size=2, callbacks=[], datamodule=trainer.datamodule
        )
        super().on_predict_start(share, pl_module)


def test_of_two_processes_the_first_shows_its_own_share(tmp_path, videos):
    bar = OfTwo()
    run(tmp_path, videos, bar)
    assert bar._title == "process 1 of 2, its share"
    assert bar._total == 5, "of nine questions"


class Steps:
    """A training run as the callback sees it; a step takes 10 s."""

    def __init__(self, bar, total, metrics=None, first=0):
        self.is_global_zero = True
        self.callback_metrics = metrics or {}
        self.estimated_stepping_batches = total
        self.global_step, self.seconds = first, 0.0
        self.bar = bar
        bar._clock = lambda: self.seconds
        bar.on_train_start(self, None)

    def run(self, num_batches, batches_a_step=1):
        for i in range(1, num_batches + 1):
            self.seconds += 10 / batches_a_step
            self.global_step += i % batches_a_step == 0
            self.bar.on_train_batch_end(self, None, None, None, 0)


def test_a_training_run_without_a_terminal_prints_lines(capsys):
    metrics = {"train/loss": torch.tensor(0.12345), "train/reward/total": torch.tensor(0.5)}
    steps = Steps(FitProgress(30), 9, metrics, first=2)
    steps.run(7)
    steps.bar.on_train_end(steps, None)
    text = "loss 0.1235, reward 0.5, 10.0 s a step"
    assert capsys.readouterr().out.splitlines() == [
        f"step 3 of 9: {text}, 0:01:00 left",
        f"step 6 of 9: {text}, 0:00:30 left",
        f"step 9 of 9: {text}",
    ]


def test_lines_have_only_what_is_known(capsys):
    """No step is made before the gradients of several batches are accumulated."""
    steps = Steps(FitProgress(1000), math.inf)
    steps.run(8, batches_a_step=4)
    steps.bar.on_train_end(steps, None)
    assert capsys.readouterr().out.splitlines() == [
        "step 1: 10.0 s a step",
        "step 2: 10.0 s a step",
    ]


@pytest.mark.parametrize("why", ["off", "another process", "terminal", "no step"])
def test_no_line_is_printed_where_none_is_wanted(capsys, monkeypatch, why):
    steps = Steps(FitProgress(0 if why == "off" else 1), 9)
    steps.is_global_zero = why != "another process"
    if why == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
    steps.run(3, batches_a_step=4 if why == "no step" else 1)
    steps.bar.on_train_end(steps, None)
    assert capsys.readouterr().out == ""
