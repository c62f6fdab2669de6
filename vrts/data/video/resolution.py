"""Frame sizes for the model: the pixel budget of Qwen2-VL and Qwen2.5-VL."""

import math
from dataclasses import dataclass

from jsonargparse.typing import PositiveFloat, PositiveInt

from vrts.types import FRAMES_PER_PATCH, InputError, VideoError

PATCH = 28  # side of one video token in pixels: patches of 14, merged 2 by 2
TOKEN = PATCH * PATCH
VIDEO_MAX_PIXELS = 768 * TOKEN
MAX_RATIO = 200


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Return the size nearest in shape whose sides are multiples of 28, within a pixel budget.

    The rule of qwen_vl_utils 0.0.14, factor 28; importing it from transformers takes longer than
    decoding many clips. Raises `VideoError` if one side is more than 200 times the other.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise VideoError(f"frames of {width}x{height} are too narrow: more than {MAX_RATIO} to 1")
    rows = max(PATCH, round(height / PATCH) * PATCH)
    columns = max(PATCH, round(width / PATCH) * PATCH)
    if rows * columns > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        # a very narrow frame would get no row at all in qwen_vl_utils
        rows = max(PATCH, math.floor(height / beta / PATCH) * PATCH)
        columns = max(PATCH, math.floor(width / beta / PATCH) * PATCH)
    elif rows * columns < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * beta / PATCH) * PATCH
        columns = math.ceil(width * beta / PATCH) * PATCH
    return rows, columns


@dataclass(frozen=True)
class Resolution:
    """The pixel budget of a clip; the defaults are those of qwen_vl_utils 0.0.14.

    For a clip of 1280x720 and 32 frames: the defaults give 11,520 video tokens; ``max_pixels:
    200704`` (256 tokens a frame, as Video-RTS evaluates) gives 4,032; ``short_side: 224`` with
    ``min_pixels: 3136`` (as Video-RTS trains) gives 1,792.
    """

    min_pixels: PositiveInt = 128 * TOKEN  # minimum per frame: smaller ones are enlarged
    max_pixels: PositiveInt = VIDEO_MAX_PIXELS  # maximum per frame; the model's is 768 tokens
    total_pixels: PositiveFloat = 128000 * TOKEN * 0.9  # maximum of all pairs of frames together
    short_side: PositiveInt | None = None  # first shrink (never enlarge) the shorter side to this
    square_pixels: bool = True  # correct for non-square pixels; qwen_vl_utils does not

    def __post_init__(self) -> None:
        """Raise `InputError` if ``max_pixels`` is below ``min_pixels`` or below one token."""
        if self.max_pixels < self.min_pixels:
            raise InputError(
                f"resolution.max_pixels ({self.max_pixels}) is below resolution.min_pixels "
                f"({self.min_pixels}); lower min_pixels too"
            )
        if self.max_pixels < TOKEN:
            raise InputError(f"resolution.max_pixels must be {TOKEN} (28x28) or more")

    def fewest_tokens(self, num_frames: int) -> int:
        """Return about how many video tokens a clip of T frames of any video has at least."""
        return math.ceil(num_frames / FRAMES_PER_PATCH) * int(self.min_pixels // TOKEN)

    def size(
        self, height: int, width: int, num_frames: int, pixel_aspect: float = 1.0
    ) -> tuple[int, int]:
        """Return the height and width of T frames for the model from those of the source.

        ``pixel_aspect`` is the width of the source's pixels over their height. Raises as
        `smart_resize`.
        """
        if self.square_pixels:
            height = round(height / min(pixel_aspect, 1.0))
            width = round(width * max(pixel_aspect, 1.0))
        if self.short_side is not None and min(height, width) > self.short_side:
            scale = self.short_side / min(height, width)
            height, width = round(height * scale), round(width * scale)
        # as in qwen_vl_utils: the total is shared by temporal patches
        share = min(VIDEO_MAX_PIXELS, self.total_pixels / num_frames * FRAMES_PER_PATCH)
        limit = max(share, int(self.min_pixels * 1.05))
        return smart_resize(height, width, self.min_pixels, min(self.max_pixels, limit))
