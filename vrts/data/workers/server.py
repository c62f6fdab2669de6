"""The process that decode workers are forked from: torch and the decoders are imported there.

A worker that imports them itself takes three seconds of CPU and hundreds of megabytes; a forked
one is there in milliseconds and shares them. The server is a program of its own, no fork of the
one that trains: it has neither that one's CUDA context, nor its threads, nor its main module. Each
process that decodes has one server, from its first pool to its end.

A command to the server is either None, followed by three file descriptors (the connection of a new
worker, its stdout and its stderr), or the process id of a worker to end and the seconds until it is
killed. The answers are the process id of the new worker, and the exit status of the ended one.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import torch

# imported for the workers: what decodes, besides torch
import vrts.data.video.cache
import vrts.data.video.pyav  # noqa: F401
from vrts.data.workers.worker import Setting, work
from vrts.types import InputError

START_DEADLINE_S = 300.0
"""Seconds that the server may take to import its libraries; a busy machine needs many."""
END_DEADLINE_S = 10.0
"""Seconds after which a killed worker is left alone: a file system that hangs holds it up."""
STDOUT, STDERR = 1, 2
COMMAND = (
    "import sys; from vrts.data.workers.server import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)


class WorkerStartError(InputError):
    """A worker process that does not start, which is not the videos' fault."""


class WorkerServer:
    """What the program sees of its server. Safe to use from several threads.

    The server leads a session of its own: Ctrl-C in a terminal reaches neither it nor its workers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_ready = False
        self._began_s = time.monotonic()
        self._commands, theirs = Pipe()
        self.parent = os.getpid()
        setting = Setting.of_this_process()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(self.parent)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=setting.environment | {"PYTHONPATH": os.pathsep.join(setting.import_paths)},
        )
        theirs.close()

    def is_ready(self, within_s: float) -> bool:
        """Whether it has imported everything, or does so within that time.

        Raises:
            WorkerStartError: the server ended, or takes too long.
        """
        with self._talking():
            if not self._is_ready and self._commands.poll(within_s):
                self._is_ready = bool(self._commands.recv())
            if not self._is_ready and time.monotonic() > self._began_s + START_DEADLINE_S:
                self.process.kill()
                raise WorkerStartError(
                    f"data.num_workers: decode workers had not started after {START_DEADLINE_S:g} "
                    "s; the machine is overloaded: set fewer of them"
                )
            return self._is_ready

    def start_worker(self, connection: Connection) -> int:
        """Start a worker that serves the other end of a connection, and return its process id.

        Raises:
            WorkerStartError: the server ended.
        """
        with self._talking():
            self._commands.send(None)
            for handle in (connection.fileno(), STDOUT, STDERR):
                send_handle(self._commands, handle, self.process.pid)
            return int(self._commands.recv())

    def end_worker(self, pid: int, within_s: float = 0.0) -> int | None:
        """Kill a worker unless it ends by itself; return its exit status, None where it hangs."""
        try:
            with self._talking():
                self._commands.send((pid, within_s))
                status: int | None = self._commands.recv()
                return status
        except WorkerStartError:
            return -signal.SIGKILL  # a server that dies takes its workers with it

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """One exchange at a time, with an error that reports how the server ended."""
        with self._lock:
            try:
                yield
            except (EOFError, OSError) as error:
                self._commands.close()  # a server that is still there ends
                raise WorkerStartError(
                    f"data.num_workers: the process that decode workers are forked from ended with "
                    f"status {self.process.wait()}; see its message above. Without one the machine "
                    "was out of memory: set fewer workers"
                ) from error


_own: WorkerServer | None = None
_own_lock = threading.Lock()


def own_server() -> WorkerServer:
    """Return the server of this process; begin to start one where there is none, or it has died."""
    global _own
    with _own_lock:
        if _own is None or _own.parent != os.getpid() or _own.process.poll() is not None:
            _own = WorkerServer()
        return _own


def main(fd: int, parent: int) -> None:
    """Run the server, until its parent has ended.

    Args:
        fd: File descriptor of the connection that commands come from.
        parent: Process id of the parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what ends; workers inherit this
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a collection in a worker would write to the pages that it shares
    context, commands = get_context("fork"), Connection(fd)
    workers: dict[int, Any] = {}
    try:
        commands.send(True)
        # others may have inherited the parent's end, so that its death closes nothing
        while os.getppid() == parent:
            if not commands.poll(1.0):
                continue
            command = commands.recv()
            if command is None:
                handles = [recv_handle(commands) for _ in range(3)]
                process = context.Process(target=_begin, args=(os.getpid(), commands, *handles))
                process.start()
                for handle in handles:
                    os.close(handle)
                workers[process.pid or 0] = process
                commands.send(process.pid)
            else:
                pid, within_s = command
                process = workers.pop(pid)
                process.join(within_s)
                process.kill()
                process.join(END_DEADLINE_S)
                commands.send(process.exitcode)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended
    finally:
        for process in workers.values():
            process.kill()


def _begin(server: int, commands: Connection, handle: int, stdout: int, stderr: int) -> None:
    """Be a worker, with the parent's output and without the server's connection."""
    commands.close()
    for theirs, own in ((stdout, STDOUT), (stderr, STDERR)):
        os.dup2(theirs, own)
        os.close(theirs)
    work(Connection(handle), server)
