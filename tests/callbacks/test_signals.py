"""Signals that end a run."""

import os
import signal

import pytest

from vrts.callbacks.checkpoints.interruption import SIGNALS
from vrts.callbacks.signals import ENDING, SignalHandlers


@pytest.fixture(autouse=True)
def _hangup():
    had = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, had)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_ends_as_by_ctrl_c(number):
    signal.signal(number, signal.SIG_DFL)  # nohup has it ignored
    before = signal.getsignal(number)
    handlers = SignalHandlers()
    handlers.install()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    handlers.restore()
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers = SignalHandlers()
    handlers.install()
    os.kill(os.getpid(), signal.SIGHUP)  # the run goes on
    handlers.restore()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_training_saves_on_each_of_them():
    assert set(SIGNALS) == {signal.SIGINT, *ENDING}
    assert signal.SIGHUP in ENDING
