"""A decode worker as its parent sees it: a child process and the connection to it."""

import os
import subprocess
import sys
from multiprocessing import Pipe

from vrts.data.decoding import Decoder
from vrts.data.requests import Request
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.data.worker import Reply, receive
from vrts.types import Clip, InputError

START_DEADLINE_S = 300.0
"""Seconds that a worker may take to import its libraries; a busy machine needs many."""
COMMAND = "import sys; from vrts.data.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"


class WorkerStartError(InputError):
    """A worker process that does not start, which is no fault of the videos."""


class WorkerProcess:
    """A child process with a connection to it.

    It is started with `subprocess`, so that it imports this package's decoding and not the
    program's main module. It leads a session of its own: Ctrl-C in a terminal does not reach it.
    """

    def __init__(self, decoder: Decoder, sampler: FrameSampler, resolution: Resolution) -> None:
        self.connection, theirs = Pipe()
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109 text is what is needed
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self._setup = (decoder, sampler, resolution)

    def wait_until_ready(self) -> None:
        """Hand over the decoder and wait for the first answer.

        Raises:
            WorkerStartError: the process ended, or did not answer in time.
        """
        try:
            self.connection.send(self._setup)
            if not self.connection.poll(START_DEADLINE_S):
                raise WorkerStartError(
                    f"data.num_workers: a decode worker gave no answer within {START_DEADLINE_S:g} "
                    "s of its start; the machine is overloaded: set fewer of them"
                )
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            code = self.process.wait()
            raise WorkerStartError(
                f"data.num_workers: a decode worker ended with status {code} at its start; see its "
                "message above. Without one the machine was out of memory: set fewer of them"
            ) from error
        if not isinstance(reply, Reply):
            raise WorkerStartError(f"unexpected answer {reply!r}")

    def decode(self, request: Request, deadline_s: float) -> Clip | str | None:
        """Return a clip, or the reason for none, or None where the deadline has passed.

        Raises:
            EOFError, OSError: the process died.
        """
        self.connection.send(request)
        if not self.connection.poll(deadline_s):
            return None
        return receive(self.connection)

    def kill(self) -> int:
        """End the process at once and return its status; may be called more than once."""
        self.process.kill()
        return self.process.wait()
