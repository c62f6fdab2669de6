"""What a command prints last."""

from types import SimpleNamespace

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from vrts.callbacks.export.callback import ExportPretrained
from vrts.callbacks.monitoring.completion_log import CompletionLog
from vrts.callbacks.monitoring.curves import CurveWriter
from vrts.callbacks.results import report_results


def trainer(folder, **options):
    keeper = ModelCheckpoint(str(folder / "checkpoints"))
    stop = EarlyStopping("val/accuracy")
    stop.stopping_reason_message = "Monitored metric val/accuracy did not improve. [a] \x1b"
    callbacks = [
        CompletionLog(),
        CurveWriter(str(folder / "own")),
        ExportPretrained(),
        keeper,
        stop,
    ]
    return SimpleNamespace(**{
        "is_global_zero": True,
        "callbacks": callbacks,
        "default_root_dir": str(folder),
        "loggers": [CSVLogger(folder, "logs", 0)],
    } | options)  # fmt: skip


def test_what_is_there_is_named_and_why_the_run_stopped(tmp_path, capsys):
    for name in ("own", "model", "checkpoints", "logs/version_0"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "own/curves.png").touch()
    report_results(trainer(tmp_path))
    names = ("own/curves.png", "model", "checkpoints", "logs/version_0")
    assert capsys.readouterr().out.splitlines() == [
        "stopped early: Monitored metric val/accuracy did not improve. [a] \\x1b",
        f"results: {', '.join(str(tmp_path / name) for name in names)}",
    ], "completions.jsonl is not there"


@pytest.mark.parametrize("change", [{"is_global_zero": False}, {"callbacks": [Callback()]}])
def test_other_processes_and_runs_without_files_print_nothing(tmp_path, capsys, change):
    report_results(trainer(tmp_path, **change))
    assert capsys.readouterr().out == ""
