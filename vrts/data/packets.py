"""What the packets of a video tell without decoding them, read by PyAV."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vrts.types import VideoError


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the frames of a stream are shown, in units of its time base, ascending."""

    frames: list[int]
    keys: list[int]
    """Those of them that decoding can begin at."""
    unit_s: float
    """Seconds of the time base."""
    fps: float
    """Frames a second, as the container states it; 0 where it does not."""
    container: str
    """FFmpeg's names of the container's format, such as ``matroska,webm``."""
    codec: str
    """FFmpeg's name of it, such as ``h264``."""
    begins_with_key: bool
    """Whether the first packet can be decoded."""
    closed: bool
    """Whether no frame after a key frame needs one before it, as far as `is_idr` can tell."""

    @property
    def times_s(self) -> npt.NDArray[np.float64]:
        """When each frame is shown, in seconds."""
        return np.asarray(self.frames, dtype=np.float64) * self.unit_s


def read_timeline(path: str) -> Timeline | None:
    """Return the times that the packets give, or None where they are not unique times.

    AVI has no times: FFmpeg makes some up, which are not those of frames out of order.

    Raises:
        VideoError: no video stream.
        av.FFmpegError, OSError: the file cannot be read.
    """
    frames: list[int] = []
    keys: list[int] = []
    first_is_key: bool | None = None
    closed = True
    with av.open(path) as container:
        stream = video_stream(path, container)
        if container.format.name == "avi":
            return None
        codec = stream.codec_context.name
        for packet in _packets(path, container, stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            if first_is_key is None:
                first_is_key = packet.is_keyframe
            frames.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
                if codec == "h264":
                    closed = closed and is_idr(bytes(packet), stream.codec_context.extradata)
        if not frames or len(set(frames)) < len(frames) or stream.time_base is None:
            return None
        return Timeline(
            frames=sorted(frames),
            keys=sorted(keys),
            unit_s=float(stream.time_base),
            fps=frame_rate(stream),
            container=container.format.name,
            codec=codec,
            begins_with_key=bool(first_is_key),
            closed=closed,
        )


def _packets(
    path: str, container: InputContainer, stream: VideoStream
) -> Iterator[Packet[VideoStream]]:
    """Demux; PyAV stumbles at the end over streams that FFmpeg has found on the way."""
    try:
        yield from container.demux(stream)
    except IndexError as error:
        raise VideoError(
            f"{path}: has streams that begin in its middle, which PyAV cannot read; copy it into "
            "another container (ffmpeg -i … -c copy ….mkv)"
        ) from error


def is_idr(packet: bytes, extradata: bytes | None) -> bool:
    """Whether an H.264 packet of MP4 or Matroska is an IDR picture, which refers to none before it.

    Args:
        packet: NAL units, each after its length (ISO/IEC 14496-15, section 5.3.4.2).
        extradata: The decoder's configuration, which tells the size of a length.
    """
    if not extradata or len(extradata) < 5 or extradata[0] != 1:
        return False
    size = (extradata[4] & 3) + 1
    position = 0
    while position + size < len(packet):
        kind = packet[position + size] & 31
        if kind in (1, 5):  # a slice of another picture, or of an IDR picture
            return kind == 5
        position += size + int.from_bytes(packet[position : position + size], "big")
    return False


def tail_comes_out(path: str, timeline: Timeline) -> bool:
    """Whether decoding from the last key frame gives all frames that the packets promise there.

    Raises:
        av.FFmpegError, OSError: the file cannot be decoded.
    """
    start = timeline.keys[-1] if timeline.keys else timeline.frames[0]
    with av.open(path) as container:
        stream = video_stream(path, container)
        container.seek(start, stream=stream, backward=True)
        shown = [frame.pts for frame in container.decode(stream)]
    return shown == timeline.frames[bisect.bisect_left(timeline.frames, start) :]


def video_stream(path: str, container: InputContainer) -> VideoStream:
    """Return the stream that players take, decoding in this one thread.

    Of several that is FFmpeg's best one: a default one first, then the most pixels; pictures
    such as covers come last. decord takes it by the same rule.

    Raises:
        VideoError: there is none.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise VideoError(f"{path}: has no video stream")
    if stream.codec_context is None:
        raise VideoError(f"{path}: has a video stream of a codec that FFmpeg does not know")
    stream.thread_type = "NONE"
    return stream


def frame_rate(stream: VideoStream) -> float:
    """Return the average rate that a container states, 0 where it states none."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def frame_at(frames: Iterator[VideoFrame], time: int) -> VideoFrame | None:
    """Return the frame that is shown at this very time, None where it does not come."""
    for frame in frames:
        if frame.pts is None or frame.pts > time:
            return None
        if frame.pts == time:
            return frame
    return None
