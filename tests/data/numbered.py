"""Videos whose frames tell which ones they are: the number is painted as stripes, a bit each."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


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
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.gop_size = gop
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(paint(i, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def remux(source: str, path: Path, change, options: dict[str, str] | None = None) -> str:
    """Copy the packets of a video; `change` takes number and packet, and None drops it."""
    with av.open(source) as inside, av.open(str(path), "w", options=options or {}) as outside:
        stream = outside.add_stream_from_template(inside.streams.video[0])
        for number, packet in enumerate(inside.demux(video=0)):
            if packet.dts is None or change(number, packet) is None:
                continue
            packet.stream = stream
            outside.mux(packet)
    return str(path)
