"""The child process of a decode worker: it decodes what its parent asks for, one at a time.

The parent may kill it at any moment, so it holds nothing that matters. A message from the parent
is first a `Setting`, then ``(decoder, sampler, resolution)``, which None confirms, then a `Request`
for each clip. Its answer is the reason why there is none, or the clip on the meta device, followed
by the bytes of its frames.
"""

import ctypes
import os
import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import FrameSampler
from vrts.data.video.images import decode_animation, decode_folder, decode_image, is_image
from vrts.data.video.resolution import Resolution
from vrts.data.workers.requests import Request
from vrts.types import Clip, VideoError

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a worker takes over from its parent as it is now; the server may be older."""

    import_paths: list[str]
    folder: str
    """The working directory."""
    environment: dict[str, str]

    @classmethod
    def of_this_process(cls) -> "Setting":
        """Return what a worker of this process is to have."""
        folder = os.getcwd()  # noqa: PTH109 text is what is needed
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return cls([path or folder for path in sys.path], folder, environment)

    def enter(self) -> None:
        """Make it that of this process."""
        sys.path[:] = self.import_paths
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)


def try_decode(
    decoder: Decoder, sampler: FrameSampler, resolution: Resolution, request: Request
) -> Clip | str:
    """Return a clip, or the reason why there is none, which names the file."""
    path = request.path
    asked = (path, request.num_frames, sampler, resolution, request.window)
    try:
        if request.is_image:
            return decode_image(path, resolution)
        if Path(path).is_dir():
            return decode_folder(*asked, request.frames_fps)
        return decode_animation(*asked) if is_image(path) else decoder.decode(*asked)
    except VideoError as error:
        return str(error) if path in str(error) else f"{path}: {error}"
    except Exception as error:  # noqa: BLE001 a bad video makes libraries raise anything
        return f"{path}: {type(error).__name__}: {error}"


def serve(connection: Connection) -> None:
    """Answer requests until the parent closes the connection."""
    connection.recv().enter()
    decoder, sampler, resolution = connection.recv()
    connection.send(None)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        result = try_decode(decoder, sampler, resolution, request)
        if isinstance(result, str):
            connection.send(result)
            continue
        connection.send(replace(result, frames=result.frames.to("meta")))
        connection.send_bytes(result.frames.flatten().numpy().data)


def receive(connection: Connection) -> Clip | str:
    """Return the answer to one request: a clip, or the reason why there is none.

    Raises:
        EOFError, OSError: the worker is gone.
    """
    reply: Clip | str = connection.recv()
    if isinstance(reply, str):
        return reply
    frames = torch.empty(reply.frames.shape, dtype=torch.uint8, device="cpu")
    connection.recv_bytes_into(frames.view(-1).numpy().data)
    return replace(reply, frames=frames)


def work(connection: Connection, server: int) -> None:
    """Run a worker.

    Args:
        connection: To the process that asks.
        server: Id of the process that this one was forked from.
    """
    if sys.platform == "linux":
        # the end of the connection tells too, but not a decoder that spins in C
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            return
    np.random.seed()  # forks have equal states of the global generator
    try:
        serve(connection)
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent is gone or has replaced this worker: nobody waits for an answer
