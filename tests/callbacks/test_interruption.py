"""Real signals in real training runs: a checkpoint between two steps, and a run that goes on."""

import os
import signal
import time

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
    started,
)
from vrts.callbacks.interruption import SaveOnInterrupt
from vrts.models.objectives import GRPO
from vrts.models.qwen_loading import Lora
from vrts.models.reference import AdapterOff, FrozenCopy
from vrts.types import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_zero_grad", "on_train_batch_end")


class Send(Callback):
    """Sends signals to this process in a hook of one batch: the n-th call of the hook."""

    def __init__(self, hook: str, call: int, *numbers: int) -> None:
        self.calls = 0

        def send(*_args):
            self.calls += 1
            if self.calls == call:
                for number in numbers:
                    os.kill(os.getpid(), number)

        setattr(self, hook, send)


def fit(folder, model_folder, videos, callbacks=(), ckpt_path=None, **options):
    """Two epochs of 4 batches; what happened in them, and the trained parameters."""
    lora, updates, accumulate = (
        options.get(name, default)
        for name, default in (("lora", None), ("updates", 1), ("accumulate", 1))
    )
    seed_everything(0, verbose=False)  # of LoRA's first weights
    policy = make_policy(model_folder, lora=lora)
    module = make_module(
        policy,
        objective=GRPO(beta=0.1),
        reference=AdapterOff() if lora else FrozenCopy(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20),
        updates_per_rollout=updates,
    )
    history = History()
    trainer = make_trainer(
        folder, [*callbacks, history], max_epochs=2, accumulate_grad_batches=accumulate
    )
    data = make_data(train=questions(videos["long"], 4), updates_per_rollout=updates)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trained = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    return history, trained


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, model_folder, videos):
    """Whole runs by their options, each made once."""
    runs = {}

    def run(**options):
        name = repr(sorted(options.items()))
        if name not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[name] = fit(folder, model_folder, videos, **options)
        return runs[name]

    return run


def interrupted(folder, model_folder, videos, send, **options):
    """A run that a signal ends, and its exit status."""
    kept = SaveOnInterrupt(str(folder))
    history = None
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        history = fit(folder, model_folder, videos, [kept, send], **options)
    except SystemExit as stop:
        assert [signal.getsignal(number) for number in SIGNALS] == before
        return stop.code
    raise AssertionError(f"not interrupted: {history}")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("hook", "call"), [(HOOKS[0], 1), (HOOKS[1], 1), (HOOKS[2], 3), (HOOKS[3], 3)]
)
def test_a_signal_anywhere_in_a_step_saves_at_its_end(
    tmp_path, model_folder, videos, number, hook, call
):
    code = interrupted(tmp_path, model_folder, videos, Send(hook, call, number))
    assert code != 0
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    # this callback's own end of a batch comes before that of `Send`
    assert saved["global_step"] == call + (hook == "on_train_batch_end")


@pytest.mark.parametrize(
    ("options", "call", "step", "batches"),
    [
        ({}, 2, 2, 2),
        ({}, 4, 4, 4),  # the last batch of an epoch
        ({}, 6, 6, 6),  # in the second epoch
        ({"lora": Lora(rank=4)}, 2, 2, 2),
        ({"lora": Lora(rank=4, dropout=0.3)}, 2, 2, 2),
        ({"accumulate": 2}, 1, 1, 2),
        ({"accumulate": 2}, 5, 3, 6),
        ({"updates": 2}, 3, 4, 4),  # the second update of a rollout is made too
        ({"updates": 2}, 9, 10, 10),
    ],
)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(
    tmp_path, model_folder, videos, uninterrupted, options, call, step, batches
):
    """Same questions, same losses and same parameters, to the last bit on a CPU."""
    history, trained = uninterrupted(**options)
    send = Send("on_train_batch_start", call, signal.SIGTERM)
    interrupted(tmp_path, model_folder, videos, send, **options)
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=False)["global_step"] == step
    resumed, resumed_trained = fit(tmp_path, model_folder, videos, ckpt_path=str(path), **options)
    assert len(set(history.losses)) > 4
    assert resumed.ids == history.ids[batches:]
    assert resumed.steps == history.steps[batches:]
    assert resumed.losses == history.losses[batches:]
    assert trained.keys() == resumed_trained.keys()
    for name, parameter in trained.items():
        assert torch.equal(parameter, resumed_trained[name]), name


def test_a_second_signal_ends_the_run_at_once(tmp_path, model_folder, videos):
    send = Send("on_train_batch_start", 3, signal.SIGINT, signal.SIGINT)
    counter = History()
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit):
        fit(tmp_path, model_folder, videos, [SaveOnInterrupt(str(tmp_path)), send, counter])
    assert len(counter.ids) == 2, "the third step is not finished"
    assert not (tmp_path / "last.ckpt").exists()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signals_are_given_back_after_a_whole_run_and_a_failed_one(tmp_path, model_folder, videos):
    class Fail(Callback):
        def on_train_batch_end(self, *_args):
            raise RuntimeError("odd")

    before = [signal.getsignal(number) for number in SIGNALS]
    fit(tmp_path, model_folder, videos, [SaveOnInterrupt(str(tmp_path))])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(RuntimeError, match="odd"):
        fit(tmp_path, model_folder, videos, [SaveOnInterrupt(str(tmp_path)), Fail()])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not (tmp_path / "last.ckpt").exists()


def test_one_callback_serves_several_runs(tmp_path, model_folder, videos):
    """What interrupted an earlier run does not end the next one."""
    kept = SaveOnInterrupt(str(tmp_path))
    with pytest.raises(SystemExit):
        fit(tmp_path, model_folder, videos, [kept, Send("on_train_batch_start", 1, signal.SIGTERM)])
    history, _ = fit(tmp_path, model_folder, videos, [kept])
    assert len(history.ids) == 8


@pytest.mark.parametrize("keeper", [False, True])
def test_without_a_folder_checkpoints_go_where_others_go(tmp_path, model_folder, videos, keeper):
    callbacks = [SaveOnInterrupt(), Send("on_train_batch_start", 2, signal.SIGINT)]
    if keeper:
        callbacks.append(ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_last=True))
    with pytest.raises(SystemExit):
        fit(tmp_path, model_folder, videos, callbacks)
    folder = tmp_path / "kept" if keeper else tmp_path
    assert torch.load(folder / "last.ckpt", weights_only=False)["global_step"] == 2
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    assert names == (["epoch=0-step=1.ckpt", "last.ckpt"] if keeper else ["last.ckpt"])


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_interrupts_two_processes(tmp_path, model_folder, videos):
    """There the signal goes to all processes of the group, decode workers among them."""
    log = tmp_path / "log"
    args = (str(tmp_path), str(model_folder), videos["long"])
    with started("tests.callbacks.long_fit", log, *args) as process:
        deadline_s = time.monotonic() + 240
        while "step 2" not in log.read_text() and time.monotonic() < deadline_s:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        status = process.wait(60)
    assert status == 1, log.read_text()
    assert "go on with --ckpt_path" in log.read_text()
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] >= 2


def test_an_unusable_folder_is_named_before_training(tmp_path, model_folder, videos):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"SaveOnInterrupt\.dirpath: cannot use"):
        fit(tmp_path, model_folder, videos, [SaveOnInterrupt(str(tmp_path / "file"))])
