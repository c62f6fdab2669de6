"""Processes that begin at once: forked from a server that has the libraries imported.

A cold start costs ten seconds of imports. The processes that Lightning's launcher adds are forked
too, in place of the commands that it would start; all else of the launch is its own. So are the
servers of decode workers, which tests in `tests.data.workers` start as vrts does.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.strategies.launchers import subprocess_script

from vrts.callbacks.monitoring import curves
from vrts.cli.command import main
from vrts.data.workers import server

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vrts.cli.command", "tests.callbacks.runs"])
DEADLINE_S = 300.0


class Forked:
    """Processes of one function, of which a test waits for all."""

    def __init__(self, processes: list[Any], log: Path) -> None:
        self.processes = processes
        self.log = log

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def wait(self, deadline_s: float = DEADLINE_S) -> list[int]:
        """Statuses of all; one that fails ends the others, which would wait for it."""
        end_s = time.monotonic() + deadline_s
        while self.running():
            if any(process.exitcode for process in self.processes):
                self.kill()
            assert time.monotonic() < end_s, f"still running: {self.text()}"
            time.sleep(0.02)
        return [process.exitcode for process in self.processes]

    def wait_for_each(self, deadline_s: float = DEADLINE_S) -> list[int]:
        """Statuses of all, each of which ends by itself."""
        end_s = time.monotonic() + deadline_s
        for process in self.processes:
            process.join(max(0.0, end_s - time.monotonic()))
        assert not self.running(), f"still running: {self.text()}"
        return [process.exitcode for process in self.processes]

    def succeed(self) -> None:
        """Wait for all, none of which may fail."""
        statuses = self.wait()
        assert set(statuses) == {0}, f"{statuses}: {self.text()}"

    def running(self) -> bool:
        """Whether any is."""
        return any(process.exitcode is None for process in self.processes)

    def kill(self) -> None:
        """End each with what it has started."""
        for process in self.processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


@contextmanager
def forked(
    log: Path, function: Callable[..., Any], *args: Any, ranks: int = 1, **variables: str
) -> Iterator[Forked]:
    """Run an importable function in processes that end with the context.

    Args:
        log: What all of them print goes here.
        function: Called with ``args`` in each.
        args: Are pickled.
        ranks: Processes. Several of them take themselves for the ranks of one node.
        variables: Of the environment, beside those of this process.
    """
    one_node = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    nodes = [dict(one_node, LOCAL_RANK=str(rank)) if ranks > 1 else {} for rank in range(ranks)]
    with forked_each(log, [(function, args, node | variables) for node in nodes]) as started:
        yield started


@contextmanager
def forked_each(
    log: Path, calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, str]]]
) -> Iterator[Forked]:
    """Run functions with arguments and variables of their own; see `forked`."""
    log.touch()
    processes = []
    for function, args, variables in calls:
        environment = dict(os.environ, **variables)
        job = (str(log), str(Path.cwd()), environment, function, args)
        processes.append(CONTEXT.Process(target=_begin, args=job))
        processes[-1].start()
    started = Forked(processes, log)
    try:
        yield started
    finally:
        started.kill()


def command(args: list[str]) -> None:
    """Be ``vrts`` with these arguments."""
    sys.argv = ["vrts", *args]
    sys.exit(main(args))


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _begin(
    log: str, folder: str, environment: dict[str, str], function: Callable[..., Any], args: Any
) -> None:
    """Become the leader of a session whose output goes to the log."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    begin = _BeginAgain(function, args)
    subprocess_script.subprocess = SimpleNamespace(Popen=begin)  # type: ignore[assignment]
    curves.write_curves = lambda path, points: path.touch()  # as in conftest.py
    server.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=_begin_server, DEVNULL=subprocess.DEVNULL
    )
    begin.run(environment)


class _BeginAgain:
    """Stands for `subprocess.Popen` in Lightning's launcher: begins the same in a fork."""

    def __init__(self, function: Callable[..., Any], args: Any) -> None:
        self._function, self._args = function, args

    def run(self, environment: dict[str, str]) -> None:
        """Call the function as a process that has just begun."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        self._function(*self._args)

    def __call__(self, command: list[str], env: dict[str, str], cwd: str | None) -> "_Child":
        pid = os.fork()
        if pid:
            return _Child(pid)
        status = 1
        try:
            self.run(env)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 what ends a process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _begin_server(
    command: list[str], *, pass_fds: list[int], env: dict[str, str], **_options: Any
) -> "_Child":
    """Stands for `subprocess.Popen` where decode workers get a server, which is forked too."""
    pid = os.fork()
    if pid:
        return _Child(pid)
    try:
        os.setsid()
        (fd,) = pass_fds
        os.closerange(3, fd)  # connections to other ranks must not outlive this one's parent
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(env)
        server.main(fd, int(command[-1]))
    except BaseException:  # noqa: BLE001 what ends a process
        traceback.print_exc()
    finally:
        os._exit(0)


class _Child:
    """What its parent asks of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
