"""Decoders: from a video file to a clip of sampled frames, each resized once it is decoded."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from vrts.data.video.frames import WHOLE, FrameSampler, Source, Window, select
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, VideoError


class Decoder(ABC):
    """Decodes sampled frames. Plug-in point ``data.decoder``."""

    @abstractmethod
    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip of the video, rotated as in a player.

        Frames known to be damaged are replaced by the nearest intact ones, and counted in
        `Clip.num_damaged`.

        Args:
            path: Video file.
            num_frames: Number of frames requested; the sampler has the last word.
            sampler: Chooses the frames.
            resolution: Chooses their size.
            window: Part of the video to sample from.

        Raises:
            VideoError: the file cannot be decoded; the message names it and the reason.
        """


def check_video_file(path: str) -> None:
    """Raise `VideoError` for a missing file, a folder or an empty file."""
    file = Path(path)
    if not os.path.exists(path):
        raise VideoError(f"{path}: no such file")
    if not file.is_file():
        raise VideoError(f"{path}: is not a file")
    if file.stat().st_size == 0:
        raise VideoError(f"{path}: is empty")


@contextmanager
def error_context(path: str) -> Iterator[None]:
    """Name a file in the errors of what does not know it."""
    try:
        yield
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error


class ClipBuilder:
    """Collects the frames of a clip, resized at once so that no large ones are kept.

    Args:
        path: Of the video, for messages.
        source: Its frames.
        num_frames: Number of frames requested.
        sampler: Chooses the frames; ``wanted`` are their indices, ascending, each once.
        resolution: Chooses the size, from the first frame that is added.
        window: Part of the video to sample from.

    Raises:
        VideoError: as `select`.
    """

    def __init__(
        self,
        path: str,
        source: Source,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> None:
        self.path = path
        with error_context(path):
            self._selection = select(source, num_frames, sampler, window)
        self.wanted = sorted(set(self._selection.indices))
        self._missing = set(self.wanted)
        self._resolution = resolution
        self._frames: torch.Tensor | None = None

    def add(self, index: int, image: npt.NDArray[np.uint8], pixel_aspect: float = 1.0) -> None:
        """Add a source frame, uint8 ``[H, W, C]``; ``pixel_aspect`` is pixel width over height.

        Raises:
            VideoError: frames that are too narrow for the model.
        """
        # several, if a frame is repeated
        places = [i for i, wanted in enumerate(self._selection.indices) if wanted == index]
        if self._frames is None:
            T = len(self._selection.indices)
            with error_context(self.path):
                height, width = image.shape[:2]
                height, width = self._resolution.size(height, width, T, pixel_aspect)
            self._frames = torch.empty((T, 3, height, width), dtype=torch.uint8, device="cpu")
        height, width = self._frames.shape[-2:]
        frame = torch.from_numpy(image).permute(2, 0, 1)  # [C, H, W]
        self._frames[places] = resize_frame(frame, height, width)
        self._missing.discard(index)

    def build(self) -> Clip:
        """Return the clip; raises `VideoError` if a frame was not added."""
        if self._missing or self._frames is None:
            raise VideoError(f"{self.path}: frame {min(self._missing)} is lost")
        s = self._selection
        return Clip(self._frames, s.indices, s.fps, s.num_source_frames, s.times_s, s.num_damaged)


def resize_frame(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 ``[C, H, W]`` as qwen_vl_utils 0.0.14 does: bicubic, antialiased.

    The same as torchvision's ``resize``, whose import costs a decode worker a second and 160 MB.
    """
    if frame.shape[-2:] == (height, width):
        return frame.contiguous()
    resized = interpolate(
        frame[None].float(), (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].clamp_(0, 255).round_().to(torch.uint8)
