"""What one test leaves behind does not reach the next one."""

import os
from pathlib import Path

import pytest

from tests.conftest import LAUNCHED, SLOW, pytest_runtest_protocol


def test_a_run_under_ddp_does_not_make_ranks_of_later_processes(monkeypatch):
    around = pytest_runtest_protocol()
    next(around)
    for name in LAUNCHED:
        monkeypatch.setenv(name, "0")
    with pytest.raises(StopIteration):
        around.send(None)
    assert not os.environ.keys() & set(LAUNCHED)


def test_what_is_slow_is_there(request):
    assert all((Path(__file__).parent / name).exists() for name in SLOW)
    slow = [item for item in request.session.items if "/cli/test_command.py" in item.nodeid]
    assert all(("fast" in item.keywords) != ("slow" in item.keywords) for item in slow)
