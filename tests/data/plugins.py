"""Plug-ins for tests that decode workers can import."""

import codecs
import os
import signal
from pathlib import Path

import torch

from vrts.data.readers.base import Reader
from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import WHOLE
from vrts.types import Clip, Question, VideoError


class ListReader(Reader):
    def __init__(self, count: int = 10, prefix: str = "q", video: str = "none.mp4") -> None:
        self.count, self.prefix, self.video = count, prefix, video

    def read(self):
        return [
            Question(f"{self.prefix}{i}", "?", self.video, options=("a", "b"), gold="A")
            for i in range(self.count)
        ]


class FakeDecoder(Decoder):
    """Gives grey frames, fast, whatever the file."""

    def decode(self, path, num_frames, sampler, resolution, window=WHOLE):
        indices = sampler.indices(100, num_frames, 10.0)
        frames = torch.full((len(indices), 3, 28, 28), len(path) % 256, dtype=torch.uint8)
        return Clip(frames, tuple(indices), 10.0, 100)


class NaughtyDecoder(FakeDecoder):
    """Behaves according to the name of the file."""

    def decode(self, path, num_frames, sampler, resolution, window=WHOLE):
        name = Path(path).stem
        if name.startswith("spin"):
            # one C call that neither returns nor lets go of the interpreter lock
            sum(range(10**18))
        if name.startswith("once") and not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("raise"):
            raise TypeError("odd bytes")
        if name.startswith("bad"):
            raise VideoError("has no frame")
        return super().decode(path, num_frames, sampler, resolution, window)


class BrokenDecoder(FakeDecoder):
    """Cannot be unpickled in a worker."""

    def __reduce__(self):
        return (codecs.decode, (b"", "no-such-codec"))
