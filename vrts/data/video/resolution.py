"""How large frames are for the model: its own rule within a budget of pixels."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from jsonargparse.typing import PositiveFloat, PositiveInt

from vrts.types import FrameSizes, InputError, VideoError

MAX_RATIO = 200
MAX_TOKENS = 768
"""Of a frame; models have seen no larger ones in videos."""
MIN_CLIP_TOKENS = 4
"""Of all frames together, where they have one budget and no ``min_pixels``."""
QWEN2_5_VL = FrameSizes("frame", 28, 128 * 28**2, MAX_TOKENS * 28**2, 128000 * 28**2 * 0.9)
"""Of qwen_vl_utils 0.0.14; what holds where no model is asked."""


def smart_resize(
    height: int, width: int, side: int, min_pixels: float, max_pixels: float, num_frames: int = 1
) -> tuple[int, int]:
    """Return the size nearest in shape whose sides are multiples of a token's, within a budget.

    The rule of qwen_vl_utils 0.0.14 for one frame, and for all frames of a clip together that of
    transformers' Qwen3VLVideoProcessor. It stands here since importing it from transformers takes
    longer than decoding many clips.

    Args:
        height: Of the source, in pixels.
        width: Of the source, in pixels.
        side: Pixels of a side of one token.
        min_pixels: Of the frames that count together.
        max_pixels: Of the frames that count together.
        num_frames: How many these are.

    Raises:
        VideoError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise VideoError(f"frames of {width}x{height} are too narrow: more than {MAX_RATIO} to 1")
    rows = max(side, round(height / side) * side)
    columns = max(side, round(width / side) * side)
    if num_frames * rows * columns > max_pixels:
        beta = math.sqrt(num_frames * height * width / max_pixels)
        # a very narrow frame would come out with no row at all in qwen_vl_utils
        rows = max(side, math.floor(height / beta / side) * side)
        columns = max(side, math.floor(width / beta / side) * side)
    elif num_frames * rows * columns < min_pixels:
        beta = math.sqrt(min_pixels / (num_frames * height * width))
        rows = math.ceil(height * beta / side) * side
        columns = math.ceil(width * beta / side) * side
    return rows, columns


@dataclass(frozen=True)
class Resolution:
    """The pixel budget of a clip. What is null is the model's own.

    For a clip of 1280x720 and 32 frames and Qwen2.5-VL: the defaults give 11,520 video tokens;
    ``max_pixels: 200704`` (256 tokens a frame, as Video-RTS evaluates) gives 4,032; ``short_side:
    224`` with ``min_pixels: 3136`` (as Video-RTS trains) gives 1,792.
    """

    min_pixels: PositiveInt | None = None
    """Pixels that a frame has at least: smaller ones are enlarged."""
    max_pixels: PositiveInt | None = None
    """Pixels that a frame has at most. The model's own limit of 768 tokens a frame holds too."""
    total_pixels: PositiveFloat | None = None
    """Pixels of all frames of a clip together; for Qwen2.5-VL of all temporal patches (pairs of
    frames)."""
    short_side: PositiveInt | None = None
    """Shrink frames to this many pixels on their shorter side first; never enlarges."""
    square_pixels: bool = True
    """Show pixels that are not square as a player does; qwen_vl_utils takes all to be square."""
    side: PositiveInt | None = None
    """Pixels of a side of one video token: 28 for Qwen2.5-VL, 32 for Qwen3-VL."""
    rule: Literal["frame", "clip", "square"] | None = None
    """Whether each frame has a budget (Qwen2.5-VL), all frames have one together (Qwen3-VL), or
    frames become squares of ``max_pixels`` (SmolVLM2)."""

    def __post_init__(self) -> None:
        """Check that the budget is not empty.

        Raises:
            InputError: ``max_pixels`` is below ``min_pixels``.
        """
        if self.max_pixels and self.min_pixels and self.max_pixels < self.min_pixels:
            raise InputError(
                f"resolution.max_pixels ({self.max_pixels}) is below resolution.min_pixels "
                f"({self.min_pixels}); lower min_pixels too"
            )

    def for_model(self, sizes: FrameSizes) -> Self:
        """Return it with what is null taken from a family of models.

        Raises:
            InputError: ``max_pixels`` is below one token.
        """
        token = (self.side or sizes.side) ** 2
        if self.max_pixels is not None and self.max_pixels < token:
            side = math.isqrt(token)
            raise InputError(f"resolution.max_pixels must be {token} ({side}x{side}) or more")
        most = self.max_pixels or sizes.max_pixels
        return replace(
            self,
            total_pixels=self.total_pixels or sizes.total_pixels,
            side=self.side or sizes.side,
            rule=self.rule or sizes.rule,
            min_pixels=self.min_pixels
            or min(sizes.min_pixels, self.max_pixels or math.inf)
            or None,
            max_pixels=max(most, self.min_pixels or 0),
        )

    def fewest_tokens(self, num_frames: int) -> int:
        """Return about how many video tokens a clip has at least, of whatever video it is.

        Args:
            num_frames: T, two of which make a temporal patch.
        """
        own = self if self.side and self.rule else self.for_model(QWEN2_5_VL)
        assert own.side
        return math.ceil(num_frames / 2) * max(int(own.min_pixels or 0) // int(own.side) ** 2, 1)

    def size(
        self, height: int, width: int, num_frames: int, pixel_aspect: float = 1.0
    ) -> tuple[int, int]:
        """Return the height and width, in pixels, of each frame of a clip for the model.

        Args:
            height: Of the source, in pixels.
            width: Of the source, in pixels.
            num_frames: T, the frames of the clip.
            pixel_aspect: Width of the source's pixels over their height.

        Raises:
            VideoError: one side is more than 200 times the other.
        """
        own = self if self.side and self.rule else self.for_model(QWEN2_5_VL)
        assert own.max_pixels
        assert own.total_pixels
        assert own.side
        if self.square_pixels:
            height = round(height / min(pixel_aspect, 1.0))
            width = round(width * max(pixel_aspect, 1.0))
        if self.short_side is not None and min(height, width) > self.short_side:
            scale = self.short_side / min(height, width)
            height, width = round(height * scale), round(width * scale)
        if own.rule == "square":
            side = math.isqrt(own.max_pixels) // own.side * own.side
            return side, side
        most, fewest = MAX_TOKENS * own.side**2, MIN_CLIP_TOKENS * own.side**2
        floor = int((own.min_pixels or fewest) * 1.05)
        if own.rule == "frame":
            limit = min(own.max_pixels, max(min(most, own.total_pixels / num_frames * 2), floor))
            return smart_resize(height, width, own.side, own.min_pixels or 0, limit)
        limit = min(own.max_pixels, max(min(most, own.total_pixels // num_frames), floor))
        if own.min_pixels:
            fewest = own.min_pixels * num_frames
        return smart_resize(height, width, own.side, fewest, limit * num_frames, num_frames)
