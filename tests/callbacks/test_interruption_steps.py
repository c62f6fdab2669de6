"""Signals at any step of a run: what is saved, and what a resumed run does."""

import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.data.plugins import ListReader
from tests.data.test_datamodule import VALIDATED, Recorder, datamodule, fit, left, trainer
from vrts.callbacks.checkpoints.interruption import SaveOnInterrupt
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint

VAL = {"val": ListReader(1, "v")}


class Send(Callback):
    """Sends SIGTERM to this process in the n-th call of a hook."""

    def __init__(self, hook: str, call: int) -> None:
        self.calls = 0

        def send(*_args):
            self.calls += 1
            if self.calls == call:
                os.kill(os.getpid(), signal.SIGTERM)

        setattr(self, hook, send)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_resumes_after_any_step_that_a_signal_ended(tmp_path, step, hook):
    """Validations come after steps 3 and 6; that of the last step is in the checkpoint."""
    options = VALIDATED | {"max_epochs": 2}
    whole, _ = fit(tmp_path, VAL, **options)
    first = Recorder()
    stop = [SaveOnInterrupt(), Send(hook, step)]
    with pytest.raises(SystemExit):
        trainer(tmp_path, stop, **options).fit(first, datamodule=datamodule(**VAL))
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == step
    second, _ = fit(tmp_path, VAL, path, **options)
    rest = left(whole.trace, step) or ["epoch ends"]
    assert second.trace[-len(rest) :] == rest
    assert len(second.seen) == 8 - step
    validations = [entry for entry in first.trace + second.trace if entry == "validation"]
    assert len(validations) == 2, "none is lost, none is made twice"


def test_regular_checkpoints_resume_with_the_validations_of_the_full_run(tmp_path):
    options = VALIDATED | {"max_epochs": 2}
    keep = StepCheckpoint(every_n_steps=1, keep=9, dirpath=str(tmp_path / "kept"))
    whole, _ = fit(tmp_path, VAL, callbacks=[keep], **options)
    for step in range(1, 8):
        module, _ = fit(tmp_path, VAL, tmp_path / f"kept/step={step}.ckpt", **options)
        rest = left(whole.trace, step)
        assert module.trace[-len(rest) :] == rest, step
        assert module.trace.count("validation") == 2 - (step >= 3) - (step >= 6), step
