"""Pictures as clips of one frame, for questions about images beside those about videos."""

import numpy as np
import torch
from PIL import Image, ImageOps

from vrts.data.clips import resize_frame
from vrts.data.decoding import check_video_file
from vrts.data.resolution import Resolution
from vrts.types import Clip, VideoError


def decode_image(path: str, resolution: Resolution) -> Clip:
    """Return a picture as a clip of one frame, turned as a viewer shows it.

    Args:
        path: Image file, of any format that Pillow reads.
        resolution: Chooses the size; the budget of one frame.

    Raises:
        VideoError: the file is no picture, is damaged or too narrow.
    """
    check_video_file(path)
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: cannot be read as a picture ({error})") from error
    frame = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    try:
        size = resolution.size(image.height, image.width, num_frames=1)
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    return Clip(resize_frame(frame, *size)[None], (0,), fps=1.0, num_source_frames=1)
