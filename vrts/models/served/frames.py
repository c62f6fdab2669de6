"""Frames of a clip as parts of a chat message."""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from typing import Any, Literal

import av
from PIL import Image

from vrts.types import Clip

ImageFormat = Literal["jpeg", "png", "webp"]


def image_parts(clip: Clip, format: ImageFormat, quality: int) -> list[dict[str, Any]]:
    """Images in order, each after its time."""
    times_s = clip.times_s or [index / clip.fps for index in clip.frame_indices]
    parts: list[dict[str, Any]] = []
    for t, time_s in enumerate([None] if clip.is_image else times_s):
        if time_s is not None:
            parts.append({"type": "text", "text": f"<{time_s:.1f} seconds>"})
        file = io.BytesIO()
        image = Image.fromarray(clip.frames[t].permute(1, 2, 0).numpy())  # [H, W, C]
        image.save(file, format, **({} if format == "png" else {"quality": quality}))
        url = _data_uri(f"image/{format}", file)
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def video_part(clip: Clip, quality: int) -> dict[str, Any]:
    """An MP4 of the frames at the rate that they were sampled at."""
    file = io.BytesIO()
    _, _, H, W = clip.frames.shape
    rate = Fraction(clip.sampled_fps).limit_denominator(1000) or Fraction(1, 1000)
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": str((100 - quality) // 2)}
        stream = container.add_stream("libx264", rate, options, pix_fmt="yuv420p")
        stream.width, stream.height = W, H
        for frame in clip.frames:  # [C, H, W]
            image = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return {"type": "video_url", "video_url": {"url": _data_uri("video/mp4", file)}}


def _data_uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
