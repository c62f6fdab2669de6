"""Decoding by PyAV, which bundles its own FFmpeg and opens nearly everything."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import dropwhile, groupby, pairwise
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from vrts.data.video.decoder import ClipBuilder, Decoder, check_video_file
from vrts.data.video.frames import WHOLE, FrameSampler, Source, Window
from vrts.data.video.resolution import Resolution
from vrts.data.video.timeline import (
    Timeline,
    demux,
    frame_rate,
    missing_frames,
    open_video,
    read_timeline,
    video_stream,
)
from vrts.types import Clip, VideoError


class PyAVDecoder(Decoder):
    """Decodes with PyAV.

    Packets are read without decoding them, for the times of all frames; wanted frames are then
    decoded from the key frame before each. A frame is accepted only if it has exactly the time of
    its packet, follows a frame that the decoder itself calls a key frame, and is intact, as are
    those that it refers to. If anything else comes out (false key frames, hidden frames, damage, a
    truncated file) or packets have no times, everything is decoded in order, twice: first to find
    out which frames are intact, then to pick.
    """

    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode`."""
        check_video_file(path)

        def builder(source: Source) -> ClipBuilder:
            return ClipBuilder(path, source, num_frames, sampler, resolution, window)

        try:
            timeline = read_timeline(path)
            clip = None
            if timeline is not None:
                unit_s = timeline.unit_s
                times_s = np.asarray(timeline.frames) * unit_s
                source = Source(times_s, timeline.fps, timeline.end * unit_s, unit_s)
                # by key frames; if that fails, without them: from the start
                for keys in (timeline.keys, []):
                    clip = clip or _clip_by_time(builder(source), replace(timeline, keys=keys))
            return clip or _clip_in_order(path, builder)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{path}: {reason}") from error


def _clip_by_time(builder: ClipBuilder, timeline: Timeline) -> Clip | None:
    """Return a clip, or None if frames are damaged or differ from the timeline."""
    times, keys = timeline.frames, timeline.keys
    try:
        with open_video(builder.path) as container:
            stream = video_stream(builder.path, container)
            upright = _Upright(builder, stream)
            for key, group in groupby(builder.wanted, lambda i: bisect_right(keys, times[i]) - 1):
                wanted = list(group)
                start = keys[key] if key >= 0 else times[0]
                if key >= 0:
                    container.seek(start, stream=stream, backward=True)
                frames = container.decode(stream)
                # a seek may land before the key frame, and frames without a reference come first
                frames = dropwhile(lambda f: f.pts is not None and f.pts < start, frames)  # noqa: B023
                first = bisect_left(times, start)
                # decode up to the last wanted frame, and to those that it refers to
                needs_key = key >= 0 or not timeline.has_hidden_head
                for index in range(first, max(map(timeline.last_before, wanted)) + 1):
                    frame = next(frames, None)
                    if frame is None or frame.pts != times[index] or frame.is_corrupt:
                        return None
                    if index == first and needs_key and not frame.key_frame:
                        return None
                    if index in wanted:
                        upright.add(index, frame)
    except av.FFmpegError:
        return None
    return builder.build()


@dataclass(slots=True)
class _Decoded:
    """Result of decoding in order: a frame, or a packet that failed."""

    time: int | None  # in units of the stream's time base
    order: int  # index of its packet
    frame: VideoFrame | None = None
    place: int | None = None  # index among the decoded frames; None for a lost one
    is_key: bool = False
    is_b: bool = False
    is_damaged: bool = True


class _Decoding:
    """A stream decoded from its start, packet by packet, skipping those that fail."""

    def __init__(self, path: str, container: InputContainer) -> None:
        self.path, self.container = path, container
        self.stream = video_stream(path, container)
        self.stream.codec_context.flags |= Flags.copy_opaque
        self.num_packets = 0
        self.packets: dict[int, tuple[int | None, int | None]] = {}
        """``(pts, dts)`` of those that are shown, by index."""
        self.has_hidden_head = self.has_key_head = False
        self.reason = "has no frame"  # why packets failed

    def __iter__(self) -> Iterator[_Decoded]:
        context, place = self.stream.codec_context, 0
        for packet in self._packets():
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                frames, self.reason = [], str(error.strerror)
                if packet is not None:
                    yield _Decoded(packet.pts, self.num_packets - 1)
            for frame in frames:
                order = frame.opaque if isinstance(frame.opaque, int) else self.num_packets - 1
                is_b = frame.pict_type in (PictureType.B, PictureType.BI)
                yield _Decoded(
                    frame.pts, order, frame, place, frame.key_frame, is_b, frame.is_corrupt
                )
                place += 1

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Yield the packets that can be read, and None to flush the decoder."""
        try:
            for packet in demux(self.path, self.container, self.stream):
                packet.opaque = self.num_packets
                if self.num_packets == 0:
                    self.has_hidden_head, self.has_key_head = packet.is_discard, packet.is_keyframe
                if packet.size and not packet.is_discard:
                    self.packets[self.num_packets] = (packet.pts, packet.dts)
                self.num_packets += 1
                yield packet
        except av.FFmpegError as error:
            self.reason = str(error.strerror)
        yield None


def _clip_in_order(path: str, make_builder: Callable[[Source], ClipBuilder]) -> Clip:
    source, places = _survey(path)
    builder = make_builder(source)
    wanted = {places[index]: index for index in builder.wanted}
    with open_video(path) as container:
        decoding = _Decoding(path, container)
        upright = _Upright(builder, decoding.stream)
        for found in decoding:
            if found.frame is not None and found.place in wanted:
                upright.add(wanted.pop(found.place), found.frame)
            if not wanted:
                break
    return builder.build()


def _survey(path: str) -> tuple[Source, list[int | None]]:
    """Decode everything; return the frames, and the index of each among the decoded ones.

    Raises:
        VideoError: no frame can be decoded.
    """
    with open_video(path) as container:
        decoding = _Decoding(path, container)
        found = [replace(item, frame=None) for item in decoding]
        stream = decoding.stream
        if all(item.place is None for item in found):
            raise VideoError(f"{path}: {decoding.reason}")
        if not decoding.has_key_head:  # cut from a stream: players skip frames up to a key frame
            is_any_key = any(item.is_key for item in found)
            found = list(
                dropwhile(lambda i: not i.is_key if is_any_key else i.place is None, found)
            )
        fps, unit_s = frame_rate(stream), float(stream.time_base or 0)
        times = sorted(item.time for item in found if item.time is not None)
        is_made_up = container.format.name == "avi"
        has_times = unit_s > 0 and len(set(times)) == len(found) and not is_made_up
        if has_times:
            found = _with_silent(found, decoding)
            times = [item.time for item in found if item.time is not None]
        else:
            decode_times = {dts for _, dts in decoding.packets.values() if dts is not None}
            if unit_s > 0 and len(decode_times) == len(found):
                times = sorted(decode_times)  # one frame per packet, at the same rate
            else:  # only the frame rate is left
                unit_s, times = 1 / fps if fps > 0 else 1.0, list(range(len(found)))
            _spread_damage(found, decoding.has_hidden_head)
        num_packets = decoding.num_packets
        lost = missing_frames(path, container, stream, num_packets, times, unit_s)
    found += [_Decoded(time, num_packets) for time in lost]
    times = sorted(times + lost)
    if has_times:
        found.sort(key=lambda item: item.time or 0)
    end = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    damaged = {i for i, item in enumerate(found) if item.is_damaged}
    source = Source(np.asarray(times) * unit_s, fps, end * unit_s, unit_s, damaged)
    return source, [item.place for item in found]


def _with_silent(found: list[_Decoded], decoding: _Decoding) -> list[_Decoded]:
    """Return all frames by time, damage spread, with those lost silently because of damage.

    A packet that gives neither a frame nor an error has a hidden frame, unless it follows a damaged
    one.
    """
    orders, times = {item.order for item in found}, {item.time for item in found}
    first = min(item.time or 0 for item in found)
    silent = [
        _Decoded(pts, order, is_damaged=False)
        for order, (pts, _) in decoding.packets.items()
        if order not in orders and pts is not None and pts > first and pts not in times
    ]
    found = sorted(found + silent, key=lambda item: item.time or 0)
    _spread_damage(found, decoding.has_hidden_head)
    return [item for item in found if item.place is not None or item.is_damaged]


def _spread_damage(found: list[_Decoded], has_hidden_head: bool) -> None:
    """Mark frames as damaged that refer to damaged ones, which the decoder does not report."""
    # a frame refers to some that are decoded before it, back to a key frame shown before it
    starts = [i for i, item in enumerate(found) if item.is_key]
    if starts and not has_hidden_head:
        for item in found[: starts[0]]:  # their key frame is missing
            item.is_damaged = True
    for start, end in pairwise([0, *starts, len(found)]):
        run = found[start:end]
        first = min((i.order for i in run if i.is_damaged and not i.is_b), default=None)
        for item in run:
            item.is_damaged |= first is not None and item.order >= first
        # B-frames may refer to others next to them
        for is_b, group in groupby(run, lambda item: item.is_b):
            near = list(group)
            first = min((i.order for i in near if i.is_damaged), default=None)
            for item in near if is_b else ():
                item.is_damaged |= first is not None and item.order >= first


class _Upright:
    """Adds frames rotated and mirrored by their display matrix."""

    def __init__(self, builder: ClipBuilder, stream: VideoStream) -> None:
        self._builder, self._aspect = builder, float(stream.sample_aspect_ratio or 1)
        self._matrices: dict[int, tuple[int, ...]] = {}

    def add(self, index: int, frame: VideoFrame) -> None:
        """Add a frame."""
        # once per angle: a frame whose side data are accessed stays in memory until Python collects
        # cycles
        if frame.rotation not in self._matrices:
            side_data: Any = frame.side_data  # PyAV's annotations call it a dict of texts
            found = [bytes(data) for data in side_data if data.type is Type.DISPLAYMATRIX]
            self._matrices[frame.rotation] = struct.unpack("5i", found[0][:20]) if found else ()
        image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        aspect = self._aspect
        if matrix := self._matrices[frame.rotation]:
            # x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, section 8.2.2)
            a, b, _, c, d = matrix
            if abs(b) + abs(c) > abs(a) + abs(d):
                image, a, d, aspect = image.swapaxes(0, 1), c, b, 1 / aspect
            image = image[:: 1 if d >= 0 else -1, :: 1 if a >= 0 else -1]
        self._builder.add(index, np.ascontiguousarray(image), aspect)
