"""Real signals in real training runs: a checkpoint between two steps, and a run that goes on."""

import logging
import os
import re
import signal
import time

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.callbacks import long_fit
from tests.callbacks.plugins import FragileDecoder
from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
)
from tests.forked import forked
from tests.processes import assert_is_ending, decode_workers
from vrts.callbacks.checkpoints.interruption import SaveOnInterrupt
from vrts.models.checkpoints.finding import is_complete
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.vlm.loading import Lora

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HOOKS = (
    "on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip


class Send(Callback):
    """Sends signals to this process in a hook of one batch: the n-th call of the hook."""

    def __init__(self, hook: str, call: int, *numbers: int) -> None:
        self.calls = 0

        def send(*_args, **_options):
            self.calls += 1
            if self.calls == call:
                for number in numbers:
                    os.kill(os.getpid(), number)

        setattr(self, hook, send)


def fit(folder, model_folder, videos, callbacks=(), ckpt_path=None, **options):
    """Two epochs of 4 steps; what happened in them, and the trained parameters."""
    lora = options.get("lora")
    seed_everything(0, verbose=False)  # of LoRA's first weights
    policy = make_policy(model_folder, lora=lora)
    module = make_module(
        policy,
        objective=GRPO(beta=0.1),
        reference=AdapterOff() if lora else FrozenCopy(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20),
        updates_per_rollout=options.get("updates", 1),
    )
    history = History()
    trainer = make_trainer(folder, [*callbacks, history], max_epochs=2)
    data = make_data(train=questions(videos["long"], 7), batch_size=2)
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
    kept = SaveOnInterrupt()
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
    assert saved["global_step"] == call


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 2),
        ({}, 4),  # the last one of an epoch, of one question
        ({}, 6),  # in the second epoch
        ({"lora": Lora(rank=4)}, 2),
        ({"lora": Lora(rank=4, dropout=0.3)}, 2),
    ],
)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(
    tmp_path, model_folder, videos, uninterrupted, options, step
):
    """Same questions, same losses and same parameters, to the last bit on a CPU."""
    history, trained = uninterrupted(**options)
    send = Send("on_train_batch_start", step, signal.SIGTERM)
    interrupted(tmp_path, model_folder, videos, send, **options)
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=False)["global_step"] == step
    resumed, resumed_trained = fit(tmp_path, model_folder, videos, ckpt_path=str(path), **options)
    assert len(set(history.losses)) > 4
    assert resumed.ids == history.ids[step:]
    assert resumed.steps == history.steps[step:]
    assert resumed.losses == history.losses[step:]
    assert trained.keys() == resumed_trained.keys()
    for name, parameter in trained.items():
        assert torch.equal(parameter, resumed_trained[name]), name


def test_a_second_signal_ends_the_run_at_once(tmp_path, model_folder, videos):
    send = Send("on_train_batch_start", 3, signal.SIGINT, signal.SIGINT)
    counter = History()
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit):
        fit(tmp_path, model_folder, videos, [SaveOnInterrupt(), send, counter])
    assert len(counter.ids) == 2, "the third step is not finished"
    assert not (tmp_path / "last.ckpt").exists()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signals_are_given_back_after_a_whole_run_and_a_failed_one(tmp_path, model_folder, videos):
    class Fail(Callback):
        def on_train_batch_end(self, *_args):
            raise RuntimeError("odd")

    before = [signal.getsignal(number) for number in SIGNALS]
    fit(tmp_path, model_folder, videos, [SaveOnInterrupt()])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(RuntimeError, match="odd"):
        fit(tmp_path, model_folder, videos, [SaveOnInterrupt(), Fail()])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not (tmp_path / "last.ckpt").exists()


def test_one_callback_serves_several_runs(tmp_path, model_folder, videos):
    """What interrupted an earlier run does not end the next one."""
    kept = SaveOnInterrupt()
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
    assert names == (["epoch=0-step=2.ckpt", "last.ckpt"] if keeper else ["last.ckpt"])


class Found(Callback):
    """What each validation found, by step; the newest is part of checkpoints."""

    def __init__(self) -> None:
        self.accuracy: dict[int, float] = {}
        self.num_asked = 0

    def on_validation_batch_end(self, trainer, *_args):
        self.num_asked += 1

    def on_validation_end(self, trainer, pl_module):
        self.accuracy[trainer.global_step] = float(trainer.callback_metrics["val/accuracy"])

    def state_dict(self):
        return {"accuracy": dict(self.accuracy)}

    def load_state_dict(self, state):
        self.accuracy = state["accuracy"]


def validated(
    folder, model_folder, videos, callbacks, ckpt_path=None, data_options=None, **options
):
    """Eight steps, a validation of two after every fourth."""
    seed_everything(0, verbose=False)
    module = make_module(make_policy(model_folder), lr=0.1, objective=GRPO(beta=0))
    history, found = History(), Found()
    keep = ModelCheckpoint(folder / "kept", monitor="val/accuracy", save_on_train_epoch_end=False)
    defaults = {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer = make_trainer(
        folder, [*callbacks, history, found, keep], max_epochs=2, **(defaults | options)
    )
    train, val = questions(videos["long"], 4), questions(videos["short"], 2, "v")
    data = make_data(train=train, val=val, **(data_options or {}))
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return history, found


@pytest.mark.parametrize(
    ("hook", "call"),
    [("on_train_batch_start", 4), ("on_validation_batch_start", 1), ("on_validation_end", 1)],
)
def test_a_validation_that_is_due_is_made_before_the_checkpoint(
    tmp_path, model_folder, videos, hook, call
):
    """With a signal on its very step or in it; what it has found is saved, also by others."""
    history, found = validated(tmp_path / "whole", model_folder, videos, [])
    assert list(found.accuracy) == [4, 8]
    stop = [SaveOnInterrupt(), Send(hook, call, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        validated(tmp_path, model_folder, videos, stop)
    path = tmp_path / "kept/last.ckpt"
    saved = torch.load(path, weights_only=False)
    assert saved["global_step"] == 4
    assert saved["callbacks"]["Found"]["accuracy"] == {4: found.accuracy[4]}
    (keeper,) = (s for s in saved["callbacks"].values() if s.get("monitor") == "val/accuracy")
    assert float(keeper["best_model_score"]) == found.accuracy[4]
    resumed, found_again = validated(tmp_path, model_folder, videos, [], str(path))
    assert found_again.accuracy == found.accuracy
    assert found_again.num_asked == 2, "the first validation is not made again"
    assert resumed.losses == history.losses[4:]
    assert resumed.ids == history.ids[4:]


class SendWhileDecoding(FragileDecoder):
    """Sends a signal to this process while it decodes its n-th video; each is decoded once."""

    def __init__(self, call: int, number: int) -> None:
        super().__init__()
        self.calls = 0
        self.call, self.number = call, number

    def decode(self, *args, **options):
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), self.number)
        return super().decode(*args, **options)


def ended_at_start(folder, model_folder, videos, callbacks=(), **options):
    """A run that a signal ends before its first training step, with nothing saved."""
    history = History()
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as end:
        validated(
            folder, model_folder, videos,
            [SaveOnInterrupt(), *callbacks, history], **options,
        )  # fmt: skip
    assert end.value.code == 1
    assert history.ids == [], "no step is finished"
    assert not list(folder.rglob("*.ckpt"))
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("hook", "sanity"),
    [
        ("setup", 0),  # before weights are loaded
        ("on_fit_start", 0),
        ("on_sanity_check_start", 2),
        ("on_validation_batch_start", 2),
        ("on_sanity_check_end", 2),
        ("on_train_start", 2),
        ("on_train_start", 0),
        ("on_train_epoch_start", 2),  # before the first batch has come
        ("on_train_epoch_start", 0),
    ],
)
def test_a_signal_before_the_first_step_ends_the_run_at_once(
    tmp_path, model_folder, videos, caplog, number, hook, sanity
):
    caplog.set_level(logging.INFO)
    send = Send(hook, 1, number)
    ended_at_start(tmp_path, model_folder, videos, [send], num_sanity_val_steps=sanity)
    assert send.calls == 1
    message = f"Received {signal.Signals(number).name} before the first training step"
    assert caplog.text.count(message) == 1


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("call", "sanity"), [(1, 0), (1, 2), (2, 2)])
def test_so_does_one_while_the_first_batches_are_decoded(
    tmp_path, model_folder, videos, number, call, sanity
):
    decoder = SendWhileDecoding(call, number)
    ended_at_start(
        tmp_path, model_folder, videos,
        num_sanity_val_steps=sanity, data_options={"decoder": decoder},
    )  # fmt: skip
    assert decoder.calls == call, "nothing is decoded after the signal"


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_resumed_run_ends_at_once_before_its_first_step(tmp_path, model_folder, videos, sanity):
    """What an earlier run had done makes none of its own."""
    first = tmp_path / "first"
    stop = [SaveOnInterrupt(), Send("on_train_batch_start", 2, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        validated(first, model_folder, videos, stop)
    for hook in ("on_train_start", "on_train_batch_start"):
        folder, send = tmp_path / hook, Send(hook, 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            validated(
                folder, model_folder, videos, [SaveOnInterrupt(), send],
                str(first / "kept/last.ckpt"), num_sanity_val_steps=sanity,
            )  # fmt: skip
        assert (folder / "kept/last.ckpt").exists() == (hook == "on_train_batch_start")
    saved = torch.load(folder / "kept/last.ckpt", weights_only=False)
    assert saved["global_step"] == 3, "a step that has begun is finished"


@pytest.mark.slow
def test_a_signal_before_the_first_step_leaves_no_decode_worker(tmp_path, model_folder, videos):
    class Look(Callback):
        found: tuple[int, ...] | list[int] = ()

        def on_train_start(self, *_args):
            self.found = decode_workers()
            os.kill(os.getpid(), signal.SIGTERM)

    look = Look()
    ended_at_start(
        tmp_path, model_folder, videos, [look],
        num_sanity_val_steps=2, data_options={"num_workers": 1},
    )  # fmt: skip
    assert look.found, "there was a worker"
    assert decode_workers() == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_processes_at_their_start_ends_both(
    tmp_path, model_folder, videos, rank
):
    log = tmp_path / "log"
    args = (str(tmp_path), str(model_folder), videos["long"], "ddp")
    with forked(log, long_fit.run, *args) as processes:
        for each in (0, 1):
            wait_for(f"rank {each} is ", log, processes.running)
        (pid,) = {int(pid) for pid in re.findall(rf"rank {rank} is (\d+)", log.read_text())}
        os.kill(pid, signal.SIGTERM)
        assert processes.wait_for_each() != [0], log.read_text()
        assert_is_ending(*map(int, re.findall(r"rank \d is (\d+)", log.read_text())))
    assert "step 1" not in log.read_text()
    assert not (tmp_path / "last.ckpt").exists()
    if rank == 0:
        assert "Received SIGTERM before the first training step" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 0), ("fsdp", 1)])
def test_a_signal_to_one_of_two_processes_saves_and_ends_both(
    tmp_path, model_folder, videos, strategy, rank
):
    """As when one node of several is taken away."""
    log = tmp_path / "log"
    args = (str(tmp_path), str(model_folder), videos["long"], strategy)
    with forked(log, long_fit.run, *args, ranks=2) as processes:
        wait_for("step 2", log, processes.running)
        os.kill(processes.pids[rank], signal.SIGTERM)
        assert processes.wait_for_each() == [1, 1], log.read_text()
    assert "resume with --ckpt_path" in log.read_text()
    path = tmp_path / "last.ckpt"
    assert is_complete(path)
    assert path.is_dir() == (strategy == "fsdp")
    rest = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=False)
    assert rest["global_step"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 1), ("fsdp", 0)])
def test_a_process_that_is_killed_takes_the_other_along(
    tmp_path, model_folder, videos, strategy, rank
):
    """It does not wait for an answer that cannot come."""
    log = tmp_path / "log"
    args = (str(tmp_path), str(model_folder), videos["long"], strategy)
    with forked(log, long_fit.run, *args, ranks=2) as processes:
        wait_for("step 2", log, processes.running)
        os.kill(processes.pids[rank], signal.SIGKILL)
        statuses = processes.wait_for_each(deadline_s=60)
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] not in (0, None), log.read_text()


def wait_for(text, log, is_alive):
    deadline_s = time.monotonic() + 240
    while text not in log.read_text() and time.monotonic() < deadline_s:
        assert is_alive(), log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_interrupts_two_processes(tmp_path, model_folder, videos):
    """There the signal goes to all processes of the group, decode workers among them."""
    log = tmp_path / "log"
    args = (str(tmp_path), str(model_folder), videos["long"], "ddp")
    with forked(log, long_fit.run, *args) as processes:
        wait_for("step 2", log, processes.running)
        os.killpg(processes.pids[0], signal.SIGINT)
        assert processes.wait_for_each() == [1], log.read_text()
    assert "resume with --ckpt_path" in log.read_text()
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] >= 2
