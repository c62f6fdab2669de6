"""The values that the parts of vrts exchange, and the notation that they share.

Letters of shapes:

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

Masks are boolean and True where something counts. Names have units: ``start_s`` is in seconds,
``fps`` in frames per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import torch

FRAMES_PER_PATCH = 2
"""Frames that a vision tower encodes together; videos are sampled in multiples of it."""


class InputError(ValueError):
    """A bad file, record or option. The message names it and the remedy."""


class VideoError(RuntimeError):
    """A video that cannot be decoded. The message names the file and the reason."""


class ProblemType(StrEnum):
    """The form of an answer, as Video-R1's annotation files name it; it has no grounding."""

    MULTIPLE_CHOICE = "multiple choice"
    NUMERICAL = "numerical"  # right or wrong, such as a count
    REGRESSION = "regression"  # can be nearly right, such as a distance
    OCR = "OCR"
    FREE_FORM = "free-form"
    TEMPORAL_GROUNDING = "temporal grounding"  # a start and an end in seconds


@dataclass(frozen=True, slots=True)
class FrameSizes:
    """Frame sizes of a model family: defaults of `Resolution`."""

    rule: Literal["frame", "clip", "square"]
    """Each frame has a budget, all share one, or frames are squares of one size."""
    side: int
    """Of one vision token, in pixels."""
    min_pixels: int
    """Of a frame; 0 for that of the rule."""
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
    """Without options and instructions."""
    video: str
    """Path of the video file, folder of frames or image."""
    problem_type: ProblemType = ProblemType.MULTIPLE_CHOICE
    options: tuple[str, ...] = ()
    """Option texts without their letters, the first one is A; empty unless multiple choice."""
    gold: str | None = None
    """The right answer in canonical form (a letter, a number as text, a text), if known."""
    source: str = ""
    """``file:line`` of the record, for error messages."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The fields of its record."""
    is_image: bool = False
    """Whether ``video`` is an image: a clip of one frame."""
    start_s: float = 0.0
    """Start of the part of the video that frames are sampled from."""
    end_s: float | None = None
    """Its end; None is the video's end."""

    @property
    def max_frames(self) -> int | None:
        """The benchmark's limit of frames per video, from the metadata; None for no limit."""
        cap = self.metadata.get("max_frames")
        return cap if isinstance(cap, int) else None

    @property
    def breakdown(self) -> dict[str, str]:
        """Categories by which the benchmark breaks down accuracy, from the metadata."""
        found = self.metadata.get("breakdown")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames sampled from one video, resized for the model."""

    frames: torch.Tensor
    """uint8 ``[T, C, H, W]``, T even, or 1 for an image; sides are multiples of a token's."""
    frame_indices: tuple[int, ...]
    """T indices into the source's frames."""
    fps: float
    """Frames per second of the source."""
    num_source_frames: int
    """Frames in the source, or in the question's time window."""
    times_s: tuple[float, ...] = ()
    """Presentation times, counted from the source's first frame; empty for an image."""
    num_damaged: int = 0
    """Damaged frames, each replaced by the nearest intact one."""

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.frame_indices)

    @property
    def is_image(self) -> bool:
        """Whether this is an image, not a video."""
        return self.num_frames == 1

    @property
    def sampled_fps(self) -> float:
        """Frames per second after sampling: ``T / total * fps``, as in qwen_vl_utils 0.0.14.

        A frame that is repeated to make their number even does not raise it.
        """
        return min(self.num_frames / max(self.num_source_frames, 1), 1.0) * self.fps


@dataclass(frozen=True, slots=True)
class Sample:
    """A question with its clip, or with the reason why it has none."""

    question: Question
    clip: Clip | None = None
    error: str | None = None
    """The reason; it does not name the question, which whoever reports it does."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters; the defaults sample from the model's own distribution."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy decoding."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches it; 1 is all of them."""
    top_k: int = 0
    """Sample from that many most likely tokens; 0 is all of them."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that already occurs in the completion."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once per occurrence in the completion."""
    stop: tuple[str, ...] = ()
    """A completion ends with the token that completes one of these texts, all of which is kept."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value outside its range."""
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
            raise InputError("stop has an empty text, which is in every completion; remove it")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion."""

    text: str
    """Without special tokens."""
    num_tokens: int
    """L of this completion, the end token included."""
    max_new_tokens: int
    """Limit of its length."""
    finished: bool = True
    """False if it was truncated or cancelled."""
    token_ids: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """int64 ``[L]`` on the CPU, if known."""
    logprobs: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Float ``[L]`` on the CPU, if known: of the sampled tokens, at the sampling temperature and
    before penalties and truncation (top-k, top-p)."""
    cancelled: bool = False
    """Whether it was stopped early because its result was no longer needed."""

    @property
    def mean_logprob(self) -> float:
        """Mean log-prob of the tokens, rounded to the 4 digits that are recorded; NaN if not known.

        Votes use this value, so that a replayed record gives the same result.
        """
        if self.logprobs is None:
            return math.nan
        # fsum is exact, so the order of the tokens and padding do not matter
        return round(math.fsum(self.logprobs.tolist()) / max(self.num_tokens, 1), 4)


@dataclass(frozen=True, slots=True)
class Round:
    """M completions sampled for one question at one number of frames."""

    num_frames: int
    """Frames that the model saw; fewer than the level's if the video is shorter."""
    completions: tuple[str, ...]
    answers: tuple[str | None, ...]
    """Canonical answers, M; None for a completion without one."""
    agreement: float
    """Fraction of the completions that gave the most frequent answer."""
    times_s: tuple[float, ...] = ()
    """Presentation times of the frames."""
    num_tokens: tuple[int, ...] = ()
    """M lengths."""
    mean_logprobs: tuple[float, ...] = ()
    """M, see `Completion.mean_logprob`."""
    cancelled: tuple[bool, ...] = ()
    """M: which were cancelled, since they could not change the result; these have no answer."""
    is_last: bool = False
    """Whether denser levels would show no further frames of this video."""
    num_damaged: int = 0
    """See `Clip.num_damaged`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one question, and the rounds that led to it."""

    question: Question
    rounds: tuple[Round, ...] = ()
    answer: str | None = None
    """Canonical; None if no completion gave one or the question failed."""
    error: str | None = None
    """Why the question failed, without its id, or None."""
    correct: bool | None = None
    """None if the gold answer is not known; a failure is wrong."""
    clip: Clip | None = field(default=None, compare=False, repr=False)
    """Frames of the deciding round, for callbacks; dropped after them, and never recorded."""

    @property
    def num_frames(self) -> int:
        """Frames of the deciding round; 0 without one."""
        return self.rounds[-1].num_frames if self.rounds else 0

    @property
    def num_damaged(self) -> int:
        """Damaged frames of that round."""
        return self.rounds[-1].num_damaged if self.rounds else 0

    def to(self, device: torch.device) -> Prediction:
        """Return itself: Lightning moves predictions, but this has no tensors."""
        return self


def letters(options: Sequence[str]) -> str:
    """Option letters in order: ``"ABCD"`` for four options."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
