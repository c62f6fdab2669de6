"""Trains on two gloo processes, the second of which takes longer for its rollouts."""

import json
import time
from pathlib import Path
from typing import Any

from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from vrts.callbacks.monitoring.throughput import ThroughputLog
from vrts.models.grpo.objectives import GRPO


def run(folder: Path, model: Path, video: str, seconds: float) -> None:
    policy = make_policy(model)
    module = make_module(policy, objective=GRPO(beta=0))
    generate = module.engine.generate

    def slow(*args: Any, **kwargs: Any) -> Any:
        if module.global_rank == 1:
            time.sleep(seconds)
        return generate(*args, **kwargs)

    module.engine.generate = slow  # type: ignore[method-assign]
    callbacks = [ThroughputLog()]
    trainer = make_trainer(folder, callbacks, devices=2, strategy="ddp", max_epochs=1)
    trainer.fit(module, datamodule=make_data(train=questions(video, 6), batch_size=1))
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))
