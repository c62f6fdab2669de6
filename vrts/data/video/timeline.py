"""Frame times of a video from its packets, without decoding them, read by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from vrts.types import VideoError

MOV = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
SLACK_S = 0.5  # tolerance of FLV's stated duration before the file counts as truncated


@dataclass(frozen=True, slots=True)
class Timeline:
    """Presentation times of a stream's frames (pts), in units of its time base, ascending."""

    frames: list[int]
    keys: list[int]  # those that the container flags as key frames; the decoder has the last word
    order: list[int]  # decoding order: the packet of each frame
    unit_s: float  # the time base in seconds
    fps: float  # frame rate stated by the container, 0 if none
    end: int  # end of the last frame
    has_hidden_head: bool  # whether an edit list hides the first frame, which later ones refer to

    def last_before(self, index: int) -> int:
        """The last frame by time that is decoded no later than this one."""
        # B-frames refer to later frames, which are decoded earlier; codecs reorder 16 at most
        later = range(min(index + 32, len(self.frames) - 1), index, -1)
        return next((i for i in later if self.order[i] < self.order[index]), index)


def open_video(path: str) -> InputContainer:
    """Open a file with FFmpeg, by its path and never as a URL (``12:30.mp4``, ``concat:a.ts``).

    Raises:
        av.FFmpegError, OSError: it cannot be opened.
    """
    options = {"protocol_whitelist": "file"}  # nor may a playlist access the network
    # metadata that is not UTF-8 does not matter
    return av.open(f"file:{path}", metadata_errors="ignore", options=options)


def video_stream(path: str, container: InputContainer) -> VideoStream:
    """Return the stream that players show, which FFmpeg calls the best; decoded in one thread.

    Raises:
        VideoError: there is none, or only the cover image of a music file.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise VideoError(f"{path}: has no video stream")
    if stream.disposition & Disposition.attached_pic:
        raise VideoError(f"{path}: has no video stream, only a cover image")
    if stream.codec_context is None:
        raise VideoError(f"{path}: has a video stream of a codec that FFmpeg does not know")
    stream.thread_type = "NONE"
    return stream


def read_timeline(path: str) -> Timeline | None:
    """Return the times of the packets, or None if these are not the times of all frames.

    That is if times are missing or not unique, packets are damaged or missing, the first one cannot
    be decoded, or FFmpeg makes up the times (for AVI, wrongly for reordered frames).

    Raises:
        VideoError: no video stream.
        av.FFmpegError, OSError: the file cannot be opened.
    """
    found: list[tuple[int, int, bool]] = []
    end, packets, has_hidden_head = 0, 0, False
    with open_video(path) as container:
        stream = video_stream(path, container)
        if container.format.name == "avi" or stream.time_base is None:
            return None
        try:
            for packets, packet in enumerate(demux(path, container, stream), start=1):
                has_hidden_head = has_hidden_head or (packets == 1 and packet.is_discard)
                if packet.size == 0 or packet.is_discard:
                    continue  # no frame, or one that is decoded but not shown
                if packet.pts is None or packet.is_corrupt:
                    return None
                found.append((packet.pts, packets, packet.is_keyframe))
                end = max(end, packet.pts + (packet.duration or 0))
        except av.FFmpegError:
            return None
        if not found or not (found[0][2] or has_hidden_head):
            return None
        found.sort()  # from decoding order to presentation order
        frames = [time for time, _, _ in found]
        unit_s, fps = float(stream.time_base), frame_rate(stream)
        if end == frames[-1] and fps > 0:
            end += round(1 / fps / unit_s)
        if len(set(frames)) < len(frames):
            return None
        if missing_frames(path, container, stream, packets, frames, unit_s):
            return None
    return Timeline(
        frames=frames,
        keys=[time for time, _, is_key in found if is_key],
        order=[number for _, number, _ in found],
        unit_s=unit_s,
        fps=fps,
        end=end,
        has_hidden_head=has_hidden_head,
    )


def demux(
    path: str, container: InputContainer, stream: VideoStream
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a stream, without PyAV's empty one at the end.

    Raises:
        VideoError: PyAV fails at a stream that FFmpeg discovers later.
    """
    try:
        yield from (p for p in container.demux(stream) if p.size or p.dts is not None)
    except IndexError as error:
        raise VideoError(
            f"{path}: has streams that begin in its middle, which PyAV cannot read; copy it into "
            "another container (ffmpeg -i … -c copy ….mkv)"
        ) from error


def missing_frames(
    path: str,
    container: InputContainer,
    stream: VideoStream,
    num_packets: int,
    frames: list[int],
    unit_s: float,
) -> list[int]:
    """Return the times of frames that a truncated file promises beyond its last packet.

    All ``num_packets`` are read; ``frames`` are the ascending times of existing ones in ``unit_s``.
    """
    kind, stated_s = container.format.name, (container.duration or 0) / av.time_base
    step = float(np.median(np.diff(frames))) if len(frames) > 1 else 1.0
    if kind == "avi":  # FFmpeg corrects its duration
        stated_s = stream.frames * float(stream.time_base or 0)
    left_s, count = stated_s - (frames[-1] + step) * unit_s, 0
    if kind == MOV:
        index = [entry.timestamp for entry in stream.index_entries]
        count = len(index) - num_packets
        # decoding times, which are as far apart as presentation times
        missing = sorted({time - index[0] + frames[0] for time in index} - set(frames))
        if len(missing) == count:
            return missing
    elif (kind in ("avi", MATROSKA) and _is_shorter_than_stated(path)) or (
        # its header has the duration and no size; sound may be longer than the images
        kind == "flv" and left_s > SLACK_S and stated_s - _longest_s(path) > SLACK_S
    ):
        count = round(left_s / (step * unit_s))
    return [round(frames[-1] + step * i) for i in range(1, count + 1)]


def _is_shorter_than_stated(path: str) -> bool:
    """Whether a file is smaller than its RIFF or EBML header states."""
    with Path(path).open("rb") as file:
        head = file.read(256)
    if head.startswith(b"RIFF"):
        stated = int.from_bytes(head[4:8], "little") + 8
    else:  # RFC 8794: a header element, then the segment, each an id of 4 bytes and its size
        size, body = _ebml_size(head, 4)
        size, body = _ebml_size(head, body + size + 4)
        stated = body + size
    return stated > Path(path).stat().st_size


def _ebml_size(data: bytes, position: int) -> tuple[int, int]:
    """Return the size of an element, 0 if unknown, and the start of its content."""
    length = 9 - data[position].bit_length()
    size = int.from_bytes(data[position : position + length], "big") & (2 ** (7 * length) - 1)
    return (0 if size == 2 ** (7 * length) - 1 else size), position + length


def _longest_s(path: str) -> float:
    """End of the last packet of any stream."""
    with open_video(path) as container:
        ends = [
            float((packet.pts + (packet.duration or 0)) * packet.time_base)
            for packet in container.demux()
            if packet.pts is not None
        ]
    return max(ends, default=0.0)


def frame_rate(stream: VideoStream) -> float:
    """Return the average rate stated by the container, 0 if none."""
    return float(stream.average_rate or stream.guessed_rate or 0)
