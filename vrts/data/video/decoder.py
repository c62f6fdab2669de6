"""Decoders: from a video file to a clip of sampled and resized frames."""

import os
from abc import ABC, abstractmethod
from pathlib import Path

from vrts.data.video.frames import WHOLE, FrameSampler, Window
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
    # not Path.exists, which raises for a name that no file can have
    if not os.path.exists(path):  # noqa: PTH110
        raise VideoError(f"{path}: no such file")
    if not file.is_file():
        raise VideoError(f"{path}: is not a file")
    if file.stat().st_size == 0:
        raise VideoError(f"{path}: is empty")
