"""Decoders: a video file and a number of frames to a clip, sampled and resized."""

import os
from abc import ABC, abstractmethod
from pathlib import Path

from vrts.data.video.frames import WHOLE, FrameSampler, Window
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, VideoError


class Decoder(ABC):
    """Decodes the frames that are asked for, and no others are kept."""

    @abstractmethod
    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip of the video, turned as a player shows it.

        No frame that is known to be damaged is among its frames: the nearest sound one replaces it,
        and is counted in `Clip.num_damaged`.

        Args:
            path: Video file.
            num_frames: Frames asked for; the sampler decides how many there are.
            sampler: Chooses the frames.
            resolution: Chooses their size.
            window: Part of the video that frames are chosen from, by the times they are shown.

        Raises:
            VideoError: the file cannot be decoded; the message names it and the reason.
        """


def check_video_file(path: str) -> None:
    """Raise `VideoError` for what no decoder can open: no file, a folder, an empty file."""
    file = Path(path)
    # not Path.exists, which raises for a name that no file can have
    if not os.path.exists(path):  # noqa: PTH110
        raise VideoError(f"{path}: no such file")
    if not file.is_file():
        raise VideoError(f"{path}: is not a file")
    if file.stat().st_size == 0:
        raise VideoError(f"{path}: is empty")
