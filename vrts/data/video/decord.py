"""Decoding by decord, for comparisons."""

import os
import re

import numpy as np

from vrts.data.video.decoder import ClipBuilder, Decoder, check_video_file
from vrts.data.video.frames import WHOLE, FrameSampler, Source, Window
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, VideoError

PLACE = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")  # source location in decord's messages


class DecordDecoder(Decoder):
    """Decodes with decord 0.6.0 (wheels for x86-64 only): the frames of qwen_vl_utils.

    Prefer `PyAVDecoder` unless a comparison needs these. decord cannot open AV1 and fails on frames
    of 16x16. It counts frames and ignores their times, so it silently returns frames of other
    moments after open GOPs (the default of HEVC's x265), with an MP4 without a table of key frames,
    a cut head or an edit list. It does not report damaged frames, ignores mirroring, Matroska's and
    SEI's rotations and non-square pixels, and may hang on a container that promises too many frames
    (dmlc/decord issue 373), until the deadline of a decode worker.
    """

    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode`, also if decord is not installed."""
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
                # one at a time: a batch would keep all of them at full size
                builder.add(index, reader.get_batch([index]).asnumpy()[0])
            return builder.build()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = PLACE.sub("", lines[0]) if lines else type(error).__name__
            raise VideoError(f"{path}: {reason}") from error
