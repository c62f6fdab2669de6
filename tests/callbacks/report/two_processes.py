"""Leaves a report and curves, on one process or as one of several over gloo."""

import json
from pathlib import Path

from tests.callbacks.report.test_callback import predict_with_report
from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from tests.callbacks.two_processes import parallel
from vrts.callbacks.monitoring.curves import CurveWriter


def run(folder: Path, model: Path, videos: dict[str, str], devices: int) -> None:
    predict_with_report(folder / "predicted", videos, **parallel(devices))
    data = make_data(
        train=questions(videos["long"], 4),
        val=questions(videos["long"], 3),
        batch_size=2 // devices,
        shuffle=False,
    )
    writer = CurveWriter()
    validated = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = make_trainer(folder, [writer], max_epochs=1, **validated, **parallel(devices))
    module = make_module(make_policy(model))
    module.objective.beta = 0.0
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        (folder / "points.json").write_text(json.dumps(writer.points))
