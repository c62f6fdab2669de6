"""The values that travel between the parts of vrts, and the one notation they share.

Shapes are written with these letters everywhere in the package:

===  ==================================================================
B    questions in a batch
G    completions sampled for each question (a GRPO group; M at prediction)
N    rows of completions, ``N = B * G``, question-major: row ``b * G + g``
P    prompt tokens, video tokens included
L    completion tokens
T    frames
C    colour channels, H height and W width of a frame in pixels
V    vocabulary entries
===  ==================================================================

Masks are boolean and True where something counts. Names have units:
``start_s`` is in seconds, ``fps`` in frames a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import torch

FRAMES_PER_PATCH = 2
"""Frames that a vision tower takes together; a video is sampled in multiples of it."""


class InputError(ValueError):
    """Bad input from outside: a file, a record, an option. The message names it and the remedy."""


class VideoError(RuntimeError):
    """A video that cannot be decoded. The message names the file and the reason."""


class ProblemType(StrEnum):
    """How a question is to be answered. The values are those of Video-R1's annotation files."""

    MULTIPLE_CHOICE = "multiple choice"
    NUMERICAL = "numerical"
    """A number that is right or wrong, such as a count."""
    REGRESSION = "regression"
    """A number that can be nearly right, such as a distance."""
    OCR = "OCR"
    """Text that is to be read off."""
    FREE_FORM = "free-form"
    TEMPORAL_GROUNDING = "temporal grounding"
    """When something happens: a start and an end. Not among Video-R1's."""


@dataclass(frozen=True, slots=True)
class FrameSizes:
    """How large a family of models takes frames: what `Resolution` leaves open."""

    rule: Literal["frame", "clip", "square"]
    """Whether each frame has a budget, all have one together, or they are squares of one size."""
    side: int
    """Pixels of a side of one vision token."""
    min_pixels: int
    """Of a frame; 0 for none but that of the rule."""
    max_pixels: int
    """Of a frame."""
    total_pixels: float
    """Of a clip."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one video or image."""

    id: str
    """Unique within an annotation file."""
    text: str
    """The question itself, without options and without instructions."""
    video: str
    """Path of the video file, or of the image."""
    problem_type: ProblemType = ProblemType.MULTIPLE_CHOICE
    options: tuple[str, ...] = ()
    """Option texts without their letters; the first one is A. Empty unless multiple choice."""
    gold: str | None = None
    """The right answer in canonical form: a letter, a number as text, a text; None where it is not
    known."""
    source: str = ""
    """Where the record comes from, ``file:line``, for error messages."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further fields of the record, such as its category."""
    is_image: bool = False
    """Whether ``video`` is an image, which makes a clip of one frame."""
    start_s: float = 0.0
    """Frames are sampled from here on."""
    end_s: float | None = None
    """Frames are sampled up to here; None is the video's end."""

    @property
    def max_frames(self) -> int | None:
        """The most frames that its benchmark gives a video, from the metadata; None for any."""
        cap = self.metadata.get("max_frames")
        return cap if isinstance(cap, int) else None

    @property
    def breakdown(self) -> dict[str, str]:
        """Category by name, as its benchmark breaks accuracy down, from the metadata."""
        found = self.metadata.get("breakdown")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames sampled from one video, resized for the model."""

    frames: torch.Tensor
    """uint8 ``[T, C, H, W]``, T even, or 1 for an image; H and W multiples of a
    vision token's side."""
    frame_indices: tuple[int, ...]
    """Which frames of the source these are, T of them."""
    fps: float
    """Frames a second of the source."""
    num_source_frames: int
    """Frames in the source, as counted by the decoder; of a time window, those in it."""
    times_s: tuple[float, ...] = ()
    """When each frame is shown, from the first frame of the source on; empty for an image."""
    num_damaged: int = 0
    """Frames that are damaged, and replaced by the nearest sound ones."""

    @property
    def num_frames(self) -> int:
        """T, the number of frames that the model sees."""
        return len(self.frame_indices)

    @property
    def is_image(self) -> bool:
        """Whether this is an image and no video."""
        return self.num_frames == 1

    @property
    def sampled_fps(self) -> float:
        """Frames a second after sampling: ``T / total * fps``, as in qwen_vl_utils 0.0.14.

        A frame that is repeated to make their number even does not make it more.
        """
        return min(self.num_frames / max(self.num_source_frames, 1), 1.0) * self.fps


@dataclass(frozen=True, slots=True)
class Sample:
    """A question with its clip, or with the reason why it has none. A batch is a list of these."""

    question: Question
    clip: Clip | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Defaults draw from the model's own distribution, unchanged."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches it; 1 is all of them."""
    top_k: int = 0
    """Draw from that many most likely tokens; 0 is all of them."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the completion holds already."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time that the completion holds it."""
    stop: tuple[str, ...] = ()
    """A completion ends with the token that completes one of these texts, which stay in it with
    whatever else their last token says."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: a value outside its range.
        """
        for name in ("temperature", "presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.temperature < 0:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if 0 < self.temperature < 1e-6:  # logits divided by less may not be numbers any more
            raise InputError(
                f"temperature must be 0 (the most likely token) or at least 1e-6, "
                f"got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if any(not text for text in self.stop):
            raise InputError("stop has an empty text, which every completion holds; remove it")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion."""

    text: str
    """Without special tokens."""
    num_tokens: int
    """Tokens that were sampled, the end token included; L of this completion."""
    max_new_tokens: int
    """Tokens after which it would have been cut off."""
    finished: bool = True
    """False where it was cut off or cancelled."""
    token_ids: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """int64 ``[L]``, on the CPU; None where they are not known."""
    logprobs: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Float ``[L]``, on the CPU: of each token when it was sampled, at the sampling temperature and
    before penalties and any truncation of the distribution; None where they are not known."""
    cancelled: bool = False
    """Whether it was stopped before its end, because it was not needed any more."""

    @property
    def mean_logprob(self) -> float:
        """Mean log-prob of the tokens, to 4 digits, as it is recorded; NaN where not known.

        Votes count with this value and no finer one, so that they come out the same when a record
        is replayed. The sum is exact: it does not depend on padding.
        """
        if self.logprobs is None:
            return math.nan
        return round(math.fsum(self.logprobs.tolist()) / max(self.num_tokens, 1), 4)


@dataclass(frozen=True, slots=True)
class Round:
    """The answers that were sampled for one question at one number of frames."""

    num_frames: int
    """Frames that the model saw, which is fewer than the level where the video is shorter."""
    completions: tuple[str, ...]
    answers: tuple[str | None, ...]
    """Canonical answers, one for each completion; None where a completion has none."""
    agreement: float
    """Share of the completions that gave the most frequent answer."""
    times_s: tuple[float, ...] = ()
    """When in the video the frames are."""
    num_tokens: tuple[int, ...] = ()
    """Tokens of each completion."""
    mean_logprobs: tuple[float, ...] = ()
    """Mean log-prob of each completion's tokens, at its temperature and before truncation."""
    cancelled: tuple[bool, ...] = ()
    """Which completions were cancelled unfinished, since they could not change the result; such a
    one has no answer."""
    is_last: bool = False
    """Whether the video is known to have no more frames to show, at whatever denser level."""
    num_damaged: int = 0
    """Frames that are damaged, and replaced by the nearest sound ones."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was decided for one question, and how."""

    question: Question
    rounds: tuple[Round, ...] = ()
    answer: str | None = None
    """Canonical answer, or None where no completion gave one or the video failed."""
    error: str | None = None
    """Why the question failed, or None."""
    correct: bool | None = None
    """Whether the answer is right; None where the right one is not known. A failure is wrong."""
    clip: Clip | None = field(default=None, compare=False, repr=False)
    """Frames of the deciding round, for callbacks that show them; None behind these, and never
    recorded."""

    @property
    def num_frames(self) -> int:
        """Frames of the round that decided; 0 where there was none."""
        return self.rounds[-1].num_frames if self.rounds else 0

    @property
    def num_damaged(self) -> int:
        """Damaged frames of that round, replaced by the nearest sound ones."""
        return self.rounds[-1].num_damaged if self.rounds else 0

    def to(self, device: torch.device) -> Prediction:
        """Give itself back: it has no tensors. Lightning moves all that a prediction returns."""
        return self


def letters(options: Sequence[str]) -> str:
    """Option letters in order: ``"ABCD"`` for four options."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
