"""Decoding by decord, for those who want its frames."""

import os
import re

import numpy as np

from vrts.data.video.clips import ClipBuilder
from vrts.data.video.decoder import Decoder, check_video_file
from vrts.data.video.frames import WHOLE, FrameSampler, Source, Window
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, VideoError

PLACE = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")
"""Where in decord's sources a message comes from, as its messages say it."""


class DecordDecoder(Decoder):
    """Decodes with decord 0.6.0, which has wheels for x86-64 only: the frames of qwen_vl_utils.

    `PyAVDecoder` is the one to take unless a comparison needs these. decord cannot open AV1 and
    fails on frames of 16x16. It counts frames rather than look at their times, so it gives frames
    of other moments, without a word, where one does not come out or a seek lands elsewhere: open
    GOPs (the default of HEVC's x265), an MP4 without a table of key frames, a cut head, an edit
    list. It names no damaged frame, knows no mirrored, Matroska's or SEI's rotations and no pixels
    that are not square, and may spin for ever on a container that promises too many frames
    (dmlc/decord issue 373): until the deadline of a decode worker.
    """

    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode` says, also where decord is not installed."""
        check_video_file(path)
        try:
            import decord
        except ImportError as error:
            raise VideoError(f"{path}: decord is not installed; use PyAVDecoder") from error
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # an absolute path is never a URL; one thread, since each keeps frames in memory
            reader = decord.VideoReader(os.path.abspath(path), num_threads=1)  # noqa: PTH100
            shown = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
            source = Source(shown[:, 0], float(reader.get_avg_fps()), float(shown[-1, 1]))
            builder = ClipBuilder(path, source, num_frames, sampler, resolution, window)
            for index in builder.wanted:
                # one at a time: a batch would hold all of them at full size
                builder.add(index, reader.get_batch([index]).asnumpy()[0])
            return builder.build()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = PLACE.sub("", lines[0]) if lines else type(error).__name__
            raise VideoError(f"{path}: {reason}") from error
