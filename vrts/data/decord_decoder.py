"""Decoding by decord, where what it gives can be relied on."""

import re
from typing import Any

import av

from vrts.data.clips import ClipBuilder
from vrts.data.decoding import Decoder, check_video_file
from vrts.data.packets import Timeline, read_timeline, tail_comes_out
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.data.windows import WHOLE, Window
from vrts.types import Clip, VideoError

PLACE = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")
"""Where in decord's sources a message comes from, as its messages say it."""

INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers whose index leads decord to the right key frame."""

COUNTED = {"h264", "vp8", "vp9", "libvpx-vp9"}
"""Codecs in which all frames come out after a seek to a key frame, of closed GOPs in H.264."""


class DecordDecoder(Decoder):
    """Decodes with decord 0.6.0, which has wheels for x86-64 only.

    It cannot open AV1 and fails on frames of 16x16. And it counts frames rather than look at their
    times, so it gives wrong ones without a word where one does not come out or a seek lands
    elsewhere: open GOPs (the default of HEVC's x265), a cut at the head, an edit list, a stream
    without an index, more frames promised than there are; there it may also spin for ever,
    holding the interpreter lock (dmlc/decord issue 373).

    So before decord opens a file, PyAV reads its packets and decodes from the last key frame on.
    Where they tell of any of that, or decord counts other frames, this fails, by name.
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
        timeline = _reliable_timeline(path)
        builder = ClipBuilder(
            path, timeline.times_s, timeline.fps, num_frames, sampler, resolution, window
        )
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # one thread: workers are parallel already, and each thread keeps frames in memory
            reader = decord.VideoReader(path, num_threads=1)
            return _clip(reader, builder, len(timeline.frames))
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{path}: {_reason(error)}") from error


def _reliable_timeline(path: str) -> Timeline:
    """Return the timeline of a file in which decord counts right.

    Raises:
        VideoError: it does not, or times do not tell.
    """
    try:
        timeline = read_timeline(path)
        if timeline is None:
            raise VideoError(f"{path}: its packets have no unique times")
        if timeline.container not in INDEXED:
            raise VideoError(f"{path}: decord cannot seek exactly in {timeline.container}")
        if not timeline.begins_with_key:
            raise VideoError(f"{path}: does not begin with a key frame")
        if timeline.codec not in COUNTED:
            raise VideoError(f"{path}: decord is not relied on for {timeline.codec}")
        if not timeline.closed:
            raise VideoError(f"{path}: has open GOPs, in which decord loses count")
        if not tail_comes_out(path, timeline):
            raise VideoError(f"{path}: promises other frames than come out")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: {reason}") from error
    return timeline


def _clip(reader: Any, builder: ClipBuilder, num_source_frames: int) -> Clip:
    if len(reader) != num_source_frames:
        raise VideoError(
            f"{builder.path}: decord counts {len(reader)} frames of {num_source_frames}"
        )
    for index in builder.wanted:
        # one at a time: a batch would hold all of them at full size
        builder.add(index, reader.get_batch([index]).asnumpy()[0])
    return builder.build()


def _reason(error: BaseException) -> str:
    """Return what a decord error says, without its C++ file names and stack trace."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return PLACE.sub("", lines[0]) if lines else type(error).__name__
