"""Making a clip of decoded frames: each is resized for the model as soon as it comes."""

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.functional import InterpolationMode, resize

from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.types import Clip, VideoError


class ClipBuilder:
    """Collects the frames of a clip, each resized at once so that no large one is kept.

    Args:
        path: Video file, for messages.
        num_source_frames: Frames in the source.
        fps: Frames a second of the source.
        num_frames: Frames asked for.
        sampler: Chooses the frames; ``wanted`` holds them, ascending, each once.
        resolution: Chooses the size, from the first frame that is added.

    Raises:
        VideoError: no frame, or no usable frame rate.
    """

    def __init__(
        self,
        path: str,
        num_source_frames: int,
        fps: float,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
    ) -> None:
        if num_source_frames < 1:
            raise VideoError(f"{path}: has no frame")
        if not 0 < fps < float("inf"):
            raise VideoError(f"{path}: has no usable frame rate ({fps})")
        self.path = path
        self.num_source_frames = num_source_frames
        self.fps = fps
        self.indices = tuple(sampler.indices(num_source_frames, num_frames, fps))
        self.wanted = sorted(set(self.indices))
        self._resolution = resolution
        self._size: tuple[int, int] | None = None
        self._frames: dict[int, torch.Tensor] = {}

    def add(self, index: int, image: npt.NDArray[np.uint8]) -> None:
        """Add a source frame, uint8 ``[H, W, C]``.

        Raises:
            VideoError: frames that are too narrow for the model.
        """
        if self._size is None:
            try:
                height, width, _ = image.shape
                self._size = self._resolution.size(height, width, len(self.indices))
            except VideoError as error:
                raise VideoError(f"{self.path}: {error}") from error
        frame = torch.from_numpy(image).permute(2, 0, 1)
        self._frames[index] = resize_frame(frame, *self._size)

    def build(self) -> Clip:
        """Return the clip.

        Raises:
            VideoError: a wanted frame was not added.
        """
        if missing := [index for index in self.wanted if index not in self._frames]:
            raise VideoError(f"{self.path}: frame {missing[0]} of {self.num_source_frames} is lost")
        return Clip(
            frames=torch.stack([self._frames[index] for index in self.indices]),
            frame_indices=self.indices,
            fps=self.fps,
            num_source_frames=self.num_source_frames,
        )


def resize_frame(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 ``[C, H, W]`` as qwen_vl_utils 0.0.14 does: bicubic, antialiased."""
    if frame.shape[-2:] == (height, width):
        return frame.contiguous()
    resized: torch.Tensor = resize(
        frame, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return resized
