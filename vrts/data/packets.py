"""What the packets of a video tell without decoding them, read by PyAV."""

from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
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
    begins_with_key: bool
    """Whether the first packet can be decoded."""

    @property
    def times_s(self) -> npt.NDArray[np.float64]:
        """When each frame is shown, in seconds."""
        return np.asarray(self.frames, dtype=np.float64) * self.unit_s


def read_timeline(path: str) -> Timeline | None:
    """Return the times that the packets give, or None where they are not unique times.

    Raises:
        VideoError: no video stream.
        av.FFmpegError, OSError: the file cannot be read.
    """
    frames: list[int] = []
    keys: list[int] = []
    first_is_key: bool | None = None
    with av.open(path) as container:
        stream = video_stream(path, container)
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            if first_is_key is None:
                first_is_key = packet.is_keyframe
            frames.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        if not frames or len(set(frames)) < len(frames) or stream.time_base is None:
            return None
        unit_s, fps = float(stream.time_base), frame_rate(stream)
    return Timeline(sorted(frames), sorted(keys), unit_s, fps, bool(first_is_key))


def last_frame_comes_out(path: str, timeline: Timeline) -> bool:
    """Whether the last frame that the packets promise is one that decoding gives.

    Raises:
        av.FFmpegError, OSError: the file cannot be decoded.
    """
    with av.open(path) as container:
        stream = video_stream(path, container)
        if timeline.keys:
            container.seek(timeline.keys[-1], stream=stream, backward=True)
        return frame_at(container.decode(stream), timeline.frames[-1]) is not None


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
