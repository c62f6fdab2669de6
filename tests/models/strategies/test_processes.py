"""A process that fails ends the others soon, with its message; a taken port is named."""

import os
import socket
import time
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError

from tests.forked import command, forked
from tests.ranks.test_two_processes import fit_args
from tools.tiny.model import build_model_folder
from vrts.demo.videos import make_dataset
from vrts.models.strategies.environment import explain


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    build_model_folder(root / "model", seed=0)
    return root / "model", make_dataset(root / "data", num_videos=4, seed=5)


def fails(log: Path, args: list[str], **variables: str) -> str:
    """The output of a run of two processes that ends by itself, long before they time out."""
    with forked(log, command, args, **variables) as processes:
        assert processes.wait_for_each() != [0]
        (group,) = processes.pids
        deadline = time.monotonic() + 10
        while is_alive(group):
            assert time.monotonic() < deadline, f"a process is left; {processes.text()}"
            time.sleep(0.2)
    return log.read_text()


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_others(rank, inputs, tmp_path):
    reward = f"[{{class_path: tests.own_plugins.FailingReward, init_args: {{rank: {rank}}}}}]"
    args = fit_args(*inputs, tmp_path / "run", 2, more_last=(f"--model.rewards={reward}",))
    assert f"process {rank} cannot continue" in fails(tmp_path / "log", args)


@pytest.mark.slow
def test_a_port_in_use_is_named(inputs, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        args = fit_args(*inputs, tmp_path / "run", 2)
        message = fails(tmp_path / "log", args, MASTER_PORT=port)
    assert f"vrts: error: MASTER_PORT: port {port} is in use" in message


def test_processes_that_do_not_meet(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    message = str(explain(DistNetworkError("The client socket has timed out after 60000ms\nat x")))
    assert "did not meet at node1, port 29500 (The client socket has timed out" in message
    assert "--trainer.num_nodes" in message
