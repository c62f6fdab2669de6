"""Frame sizes: the rule of the model's family within a pixel budget."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from jsonargparse.typing import PositiveFloat, PositiveInt

from vrts.types import FRAMES_PER_PATCH, FrameSizes, InputError, VideoError

MAX_RATIO = 200
MAX_TOKENS = 768  # of a frame; models were not trained on larger ones in videos
MIN_CLIP_TOKENS = 4  # of all frames together, if they share a budget without ``min_pixels``
QWEN2_5_VL = FrameSizes("frame", 28, 128 * 28**2, MAX_TOKENS * 28**2, 128000 * 28**2 * 0.9)
"""Of qwen_vl_utils 0.0.14; the default without a model."""


def smart_resize(
    height: int, width: int, side: int, min_pixels: float, max_pixels: float, num_frames: int = 1
) -> tuple[int, int]:
    """Return the size nearest in shape whose sides are multiples of a token's, within a budget.

    The rule of qwen_vl_utils 0.0.14 for one frame, and of transformers' Qwen3VLVideoProcessor for
    ``num_frames`` that share the budget; importing it from transformers takes longer than decoding
    many clips. Raises `VideoError` if one side is more than 200 times the other.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise VideoError(f"frames of {width}x{height} are too narrow: more than {MAX_RATIO} to 1")
    rows = max(side, round(height / side) * side)
    columns = max(side, round(width / side) * side)
    if num_frames * rows * columns > max_pixels:
        beta = math.sqrt(num_frames * height * width / max_pixels)
        # a very narrow frame would get no row at all in qwen_vl_utils
        rows = max(side, math.floor(height / beta / side) * side)
        columns = max(side, math.floor(width / beta / side) * side)
    elif num_frames * rows * columns < min_pixels:
        beta = math.sqrt(min_pixels / (num_frames * height * width))
        rows = math.ceil(height * beta / side) * side
        columns = math.ceil(width * beta / side) * side
    return rows, columns


@dataclass(frozen=True)
class Resolution:
    """The pixel budget of a clip. Null is the model's own value.

    For a clip of 1280x720 and 32 frames and Qwen2.5-VL: the defaults give 11,520 video tokens;
    ``max_pixels: 200704`` (256 tokens a frame, as Video-RTS evaluates) gives 4,032; ``short_side:
    224`` with ``min_pixels: 3136`` (as Video-RTS trains) gives 1,792.
    """

    min_pixels: PositiveInt | None = None
    """Minimum of pixels per frame: smaller ones are enlarged."""
    max_pixels: PositiveInt | None = None
    """Maximum of pixels per frame, next to the models' own limit of 768 tokens."""
    total_pixels: PositiveFloat | None = None
    """Maximum of pixels of all frames together, for Qwen2.5-VL of all pairs of frames."""
    short_side: PositiveInt | None = None
    """First shrink frames to this many pixels on their shorter side; never enlarges."""
    square_pixels: bool = True
    """Correct for non-square pixels as a player does; qwen_vl_utils takes all to be square."""
    side: PositiveInt | None = None
    """Side of one video token in pixels: 28 for Qwen2.5-VL, 32 for Qwen3-VL."""
    rule: Literal["frame", "clip", "square"] | None = None
    """Each frame has a budget (Qwen2.5-VL), all share one (Qwen3-VL), or frames become squares
    (SmolVLM2), of the model's own size unless ``max_pixels`` is less."""

    def __post_init__(self) -> None:
        """Raise `InputError` if ``max_pixels`` is below ``min_pixels``."""
        if self.max_pixels and self.min_pixels and self.max_pixels < self.min_pixels:
            raise InputError(
                f"resolution.max_pixels ({self.max_pixels}) is below resolution.min_pixels "
                f"({self.min_pixels}); lower min_pixels too"
            )

    def for_model(self, sizes: FrameSizes) -> Self:
        """Return it with what is null taken from a family of models.

        Raises:
            InputError: ``max_pixels`` is below one token, or the model takes squares alone.
        """
        rule, side = self.rule or sizes.rule, self.side or sizes.side
        if sizes.rule == "square" and rule != "square":
            raise InputError(
                f"resolution.rule is {rule}, but the model takes squares alone; set it to null"
            )
        if self.max_pixels is not None and self.max_pixels < side**2:
            raise InputError(f"resolution.max_pixels must be {side**2} ({side}x{side}) or more")
        most = max(self.max_pixels or sizes.max_pixels, self.min_pixels or 0)
        fewest = self.min_pixels or min(sizes.min_pixels, self.max_pixels or math.inf) or None
        if rule == "square":
            most = self.max_pixels or sizes.max_pixels
            if sizes.rule == "square" and most >= sizes.max_pixels:
                most = sizes.max_pixels  # as the weights know them, whole tokens or not
            else:
                most = (math.isqrt(most) // side * side) ** 2
            fewest = most
        return replace(
            self,
            total_pixels=None if rule == "square" else self.total_pixels or sizes.total_pixels,
            side=side,
            rule=rule,
            min_pixels=fewest,
            max_pixels=most,
        )

    def fewest_tokens(self, num_frames: int) -> int:
        """Return about how many video tokens a clip has at least, of whatever video it is.

        Args:
            num_frames: T, two of which make a temporal patch where they are no squares.
        """
        own = self if self.side and self.rule else self.for_model(QWEN2_5_VL)
        assert own.side
        if own.rule == "square":
            assert own.max_pixels
            return num_frames * int(math.isqrt(own.max_pixels) // own.side) ** 2
        return math.ceil(num_frames / FRAMES_PER_PATCH) * max(
            int(own.min_pixels or 0) // int(own.side) ** 2, 1
        )

    def size(
        self, height: int, width: int, num_frames: int, pixel_aspect: float = 1.0
    ) -> tuple[int, int]:
        """Return the height and width of T frames for the model from those of the source.

        ``pixel_aspect`` is the width of the source's pixels over their height. Raises as
        `smart_resize`.
        """
        own = self if self.side and self.rule else self.for_model(QWEN2_5_VL)
        assert own.max_pixels
        assert own.side
        if self.square_pixels:
            height = round(height / min(pixel_aspect, 1.0))
            width = round(width * max(pixel_aspect, 1.0))
        if self.short_side is not None and min(height, width) > self.short_side:
            scale = self.short_side / min(height, width)
            height, width = round(height * scale), round(width * scale)
        if own.rule == "square":
            side = math.isqrt(own.max_pixels)
            return side, side
        assert own.total_pixels
        most, fewest = MAX_TOKENS * own.side**2, MIN_CLIP_TOKENS * own.side**2
        floor = int((own.min_pixels or fewest) * 1.05)
        if own.rule == "frame":  # as in qwen_vl_utils: temporal patches share the total
            share = own.total_pixels / num_frames * FRAMES_PER_PATCH
            limit = min(own.max_pixels, max(min(most, share), floor))
            return smart_resize(height, width, own.side, own.min_pixels or 0, limit)
        limit = min(own.max_pixels, max(min(most, own.total_pixels // num_frames), floor))
        if own.min_pixels:
            fewest = own.min_pixels * num_frames
        return smart_resize(height, width, own.side, fewest, limit * num_frames, num_frames)
