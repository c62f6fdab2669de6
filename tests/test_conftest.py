"""What one test leaves behind does not reach the next one."""

import os

import pytest

from tests.conftest import LAUNCHED, pytest_runtest_protocol


def test_a_run_under_ddp_does_not_make_ranks_of_later_processes(monkeypatch):
    around = pytest_runtest_protocol()
    next(around)
    for name in LAUNCHED:
        monkeypatch.setenv(name, "0")
    with pytest.raises(StopIteration):
        around.send(None)
    assert not os.environ.keys() & set(LAUNCHED)
