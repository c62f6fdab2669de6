"""Decoding by PyAV, which bundles its own FFmpeg and opens nearly everything."""

import bisect
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from vrts.data.clips import ClipBuilder
from vrts.data.decoding import Decoder, check_video_file
from vrts.data.packets import Timeline, frame_at, frame_rate, read_timeline, video_stream
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.data.windows import WHOLE, Window
from vrts.types import Clip, VideoError


class PyAVDecoder(Decoder):
    """Decodes with PyAV.

    Packets are counted without decoding them, which tells the frames and their times; wanted
    frames are then reached from the key frame before each, and must have their very times. Where
    the packets promise other frames than come out, or have no times, everything is decoded: once
    to count and once to pick. The frames that really come out are those that count.
    """

    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode` says."""
        check_video_file(path)
        try:
            timeline = read_timeline(path)
            clip = None
            if timeline is not None:
                builder = ClipBuilder(
                    path, timeline.times_s, timeline.fps, num_frames, sampler, resolution, window
                )
                clip = _clip_by_time(builder, timeline)
            return clip or _clip_in_order(path, num_frames, sampler, resolution, window)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{path}: {reason}") from error


def _clip_by_time(builder: ClipBuilder, timeline: Timeline) -> Clip | None:
    """Return a clip, or None where a frame of the timeline does not come out of the decoder."""
    with av.open(builder.path) as container:
        stream = video_stream(builder.path, container)
        frames = container.decode(stream)
        position: int | None = None
        for index in builder.wanted:
            time = timeline.frames[index]
            key = bisect.bisect_right(timeline.keys, time) - 1
            if key >= 0 and (position is None or timeline.keys[key] > position):
                container.seek(timeline.keys[key], stream=stream, backward=True)
                frames = container.decode(stream)
            frame = frame_at(frames, time)
            if frame is None:
                return None
            position = time
            builder.add(index, _image(builder.path, index, frame))
        return builder.build()


def _clip_in_order(
    path: str, num_frames: int, sampler: FrameSampler, resolution: Resolution, window: Window
) -> Clip:
    with av.open(path) as container:
        stream = video_stream(path, container)
        shown = [frame.pts for frame in container.decode(stream)]
        fps, unit = frame_rate(stream), stream.time_base
    builder = ClipBuilder(
        path, _times_s(shown, fps, unit), fps, num_frames, sampler, resolution, window
    )
    with av.open(path) as container:
        wanted = set(builder.wanted)
        for index, frame in enumerate(container.decode(video_stream(path, container))):
            if index in wanted:
                builder.add(index, _image(path, index, frame))
        return builder.build()


def _times_s(shown: list[int | None], fps: float, unit: Fraction | None) -> npt.NDArray[np.float64]:
    """Return when frames are shown: by their own times, or by the rate where they have none."""
    times = [float(time) for time in shown if time is not None]
    if unit is not None and len(times) == len(shown) and bool(np.all(np.diff(times) > 0)):
        return np.asarray(times) * float(unit)
    return np.arange(len(shown), dtype=np.float64) / (fps if fps > 0 else 1.0)


def _image(path: str, index: int, frame: VideoFrame) -> npt.NDArray[np.uint8]:
    """Return uint8 ``[H, W, C]``, turned upright by the rotation in the stream's side data.

    Raises:
        VideoError: a frame that FFmpeg marks as damaged.
    """
    if frame.is_corrupt:
        raise VideoError(f"{path}: frame {index} is damaged")
    image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(image, turns))
