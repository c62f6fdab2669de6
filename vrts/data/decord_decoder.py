"""Decoding by decord, the fastest for a few frames of a long video."""

import re
from typing import Any

from vrts.data.clips import ClipBuilder
from vrts.data.decoding import Decoder, check_video_file
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.types import Clip, VideoError

PLACE = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")
"""Where in decord's sources a message comes from, as its messages say it."""


class DecordDecoder(Decoder):
    """Decodes with decord 0.6.0, which has wheels for x86-64 only.

    It cannot open AV1, fails on frames of 16x16, and where a container promises more frames than
    come out it repeats stale ones or spins for ever, holding the interpreter lock (dmlc/decord
    issue 373). So it needs a process that can be killed, which `DecodePool` gives it.
    """

    def decode(
        self, path: str, num_frames: int, sampler: FrameSampler, resolution: Resolution
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode` says, also where decord is not installed."""
        check_video_file(path)
        try:
            import decord
        except ImportError as error:
            raise VideoError(f"{path}: decord is not installed; use PyAVDecoder") from error
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # one thread: workers are parallel already, and each thread keeps frames in memory
            reader = decord.VideoReader(path, num_threads=1)
            return self._clip(reader, path, num_frames, sampler, resolution)
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{path}: {_reason(error)}") from error

    @staticmethod
    def _clip(
        reader: Any, path: str, num_frames: int, sampler: FrameSampler, resolution: Resolution
    ) -> Clip:
        fps = float(reader.get_avg_fps())
        builder = ClipBuilder(path, len(reader), fps, num_frames, sampler, resolution)
        for index in builder.wanted:
            # one at a time: a batch would hold all of them at full size
            builder.add(index, reader.get_batch([index]).asnumpy()[0])
        return builder.build()


def _reason(error: BaseException) -> str:
    """Return what a decord error says, without its C++ file names and stack trace."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return PLACE.sub("", lines[0]) if lines else type(error).__name__
