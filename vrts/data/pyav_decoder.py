"""Decoding by PyAV, which bundles its own FFmpeg and opens nearly everything."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vrts.data.clips import ClipBuilder
from vrts.data.decoding import Decoder, check_video_file
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.types import Clip, VideoError


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the frames of a stream are shown, in units of its time base, ascending."""

    frames: list[int]
    keys: list[int]
    """Those of them that decoding can begin at."""


class PyAVDecoder(Decoder):
    """Decodes with PyAV.

    Packets are counted without decoding them, which tells the frames and their times; wanted
    frames are then reached from the key frame before each. Where the packets promise other
    frames than come out, or have no times, everything is decoded: once to count and once to pick.
    The frames that really come out are those that count.
    """

    def decode(
        self, path: str, num_frames: int, sampler: FrameSampler, resolution: Resolution
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode` says."""
        check_video_file(path)
        try:
            timeline = _timeline(path)
            clip = None
            if timeline is not None:
                clip = _clip_by_time(path, timeline, num_frames, sampler, resolution)
            return clip or _clip_in_order(path, num_frames, sampler, resolution)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{path}: {reason}") from error


def _clip_by_time(
    path: str, timeline: Timeline, num_frames: int, sampler: FrameSampler, resolution: Resolution
) -> Clip | None:
    """Return a clip, or None where a frame of the timeline does not come out of the decoder."""
    with av.open(path) as container:
        stream = _video_stream(path, container)
        total, fps = len(timeline.frames), _frame_rate(stream)
        builder = ClipBuilder(path, total, fps, num_frames, sampler, resolution)
        frames = container.decode(stream)
        position: int | None = None
        for index in builder.wanted:
            time = timeline.frames[index]
            key = bisect.bisect_right(timeline.keys, time) - 1
            if key >= 0 and (position is None or timeline.keys[key] > position):
                container.seek(timeline.keys[key], stream=stream, backward=True)
                frames = container.decode(stream)
            frame = _frame_at(frames, time)
            if frame is None:
                return None
            position = time
            builder.add(index, _image(frame))
        return builder.build()


def _clip_in_order(
    path: str, num_frames: int, sampler: FrameSampler, resolution: Resolution
) -> Clip:
    with av.open(path) as container:
        total = sum(1 for _ in container.decode(_video_stream(path, container)))
    with av.open(path) as container:
        stream = _video_stream(path, container)
        builder = ClipBuilder(path, total, _frame_rate(stream), num_frames, sampler, resolution)
        wanted = set(builder.wanted)
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                builder.add(index, _image(frame))
        return builder.build()


def _timeline(path: str) -> Timeline | None:
    """Return the times that the packets give, or None where they are not unique times."""
    frames: list[int] = []
    keys: list[int] = []
    with av.open(path) as container:
        for packet in container.demux(_video_stream(path, container)):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            frames.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not frames or len(set(frames)) < len(frames):
        return None
    return Timeline(sorted(frames), sorted(keys))


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    """Return the stream that players take, decoding in this one thread."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise VideoError(f"{path}: has no video stream")
    stream.thread_type = "NONE"
    return stream


def _frame_rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _frame_at(frames: Iterator[VideoFrame], time: int) -> VideoFrame | None:
    for frame in frames:
        if frame.pts is None or frame.pts > time:
            return None
        if frame.pts == time:
            return frame
    return None


def _image(frame: VideoFrame) -> npt.NDArray[np.uint8]:
    """Return uint8 ``[H, W, C]``, turned upright by the rotation in the stream's side data."""
    image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(image, turns))
