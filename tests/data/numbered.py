"""Videos whose frames show their own number, painted as stripes, a bit each."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8
ORIENTATIONS = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip
"""Display matrices a, b, c, d by the numbers that EXIF has for the same: x' = ax + cy, …"""


def paint(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """A frame ``[H, W, C]`` with a number below 256 in it."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)])
    columns = np.arange(width) * BITS // width
    row = np.where(bits[columns] == 1, 220, 30).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def number_of(frame: np.ndarray) -> int:
    """The number in a frame ``[C, H, W]`` of any size."""
    _, height, width = frame.shape
    band = frame[:, height // 3 : -(height // 3)].mean((0, 1))
    centres = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(centres) if band[x - 1 : x + 2].mean() > 125)


def numbers(clip) -> tuple[int, ...]:
    """The numbers in the frames of a clip."""
    return tuple(number_of(frame.numpy()) for frame in clip.frames)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image ``[H, W, C]`` as a player shows it: each pixel moved by the matrix."""
    height, width = pixels.shape[:2]
    a, b, c, d = ORIENTATIONS[orientation]
    y, x = np.mgrid[:height, :width]
    columns, rows = a * x + c * y, b * x + d * y
    columns, rows = columns - columns.min(), rows - rows.min()
    shown = np.zeros((rows.max() + 1, columns.max() + 1, *pixels.shape[2:]), pixels.dtype)
    shown[rows, columns] = pixels
    return shown


def upright(clip, orientation: int):
    """The frames ``[T, C, H, W]`` of a clip, what a player does to them undone."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    frames = [oriented(frame.permute(1, 2, 0).numpy(), back) for frame in clip.frames]
    return [frame.transpose(2, 0, 1) for frame in frames]


def write_numbered(
    path: Path,
    num_frames: int = 60,
    *,
    times: Sequence[int] | None = None,
    rate: int = 25,
    codec: str = "libx264",
    gop: int = 12,
    size: tuple[int, int] = (160, 96),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
) -> str:
    """Write a video whose frame i carries the number i.

    Args:
        path: of the file.
        num_frames: how many.
        times: when each frame is shown, in milliseconds; at `rate` where it is not given.
        rate: frames a second.
        codec: encoder.
        gop: most frames from one key frame to the next.
        size: width and height.
        pix_fmt: pixels of the encoded frames.
        options: of the encoder.
        container_options: of the container.
        pixel_aspect: width of a pixel over its height.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.gop_size = gop
        if pixel_aspect is not None:
            stream.sample_aspect_ratio = pixel_aspect
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(paint(i, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def remux(
    source: str,
    path: Path,
    change=lambda number, packet: packet,
    options: dict[str, str] | None = None,
    *,
    orientation: int = 1,
    metadata: dict[str, str] | None = None,
) -> str:
    """Copy the packets of a video.

    Args:
        source: the video.
        path: of the copy.
        change: takes number and packet, and gives it back, or bytes in its place; None drops it.
        options: of the container.
        orientation: as a player shows it.
        metadata: of the container.
    """
    with av.open(source) as inside, av.open(str(path), "w", options=options or {}) as outside:
        stream = outside.add_stream_from_template(inside.streams.video[0])
        outside.metadata.update(metadata or {})
        if orientation > 1:
            a, b, c, d = (i * 2**16 for i in ORIENTATIONS[orientation])
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 2**30])
        for number, packet in enumerate(inside.demux(video=0)):
            if packet.dts is None:
                continue
            changed = change(number, packet)
            if changed is None:
                continue
            if isinstance(changed, bytes):
                copy = av.Packet(changed)
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.duration = packet.is_keyframe, packet.duration
                changed = copy
            changed.stream = stream
            outside.mux(changed)
    return str(path)
