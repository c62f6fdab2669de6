"""Asking questions for votes: M completions of each, and no more of them than the vote needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vrts.models.pairs import FRAMES_PER_PAIR
from vrts.models.policy import Policy, Prompts
from vrts.models.sampling import mean_logprob, row_seed
from vrts.prompts import parse_answer
from vrts.types import Clip, Question, Round, Sample, Sampling
from vrts.votes import VotingRule, naming
from vrts.voting import make_round


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """How questions are asked at one level."""

    sampling: tuple[Sampling, ...]
    """M of them, one for each completion of a question."""
    rule: VotingRule = field(default_factory=VotingRule)
    """From what on the votes are decided."""
    level: int | None = None
    """Frames that are asked for where a level with more follows; None at the last one."""
    reuse_features: bool = False
    """Whether pairs of frames that an earlier level has encoded are not encoded again."""

    def is_last(self, question: Question, clip: Clip) -> bool:
        """Whether a question is not asked again: no level follows, or no more frames.

        False where a sampler of one's own finds no more frames, which only it can tell.

        Args:
            question: its benchmark may give a video no more than so many frames.
            clip: that it is asked on.
        """
        return (
            self.level is None or clip.num_frames < self.level or shows_all_frames(question, clip)
        )


def shows_all_frames(question: Question, clip: Clip) -> bool:
    """Whether a clip has all pairs of frames that its question may be asked on.

    Args:
        question: its benchmark may give a video no more than so many frames.
        clip: of its video.
    """
    # the last frame of an odd number is repeated
    available = -(-clip.num_source_frames // FRAMES_PER_PAIR) * FRAMES_PER_PAIR
    if question.max_frames is not None:
        most_pairs = round(question.max_frames / FRAMES_PER_PAIR)
        available = min(available, most_pairs * FRAMES_PER_PAIR)
    return clip.num_frames >= available


def ask(
    policy: Policy,
    samples: Sequence[Sample],
    prompts: Prompts,
    plan: RoundPlan,
    seed: int,
    max_new_tokens: int,
) -> list[Round]:
    """Sample M completions of each question, and parse them.

    Args:
        policy: is asked.
        samples: all with clips.
        prompts: these samples, encoded.
        plan: how they are asked.
        seed: of the sampling. The random numbers of a completion depend on it, its question, the
            clip's number of frames and its place among the M, and on nothing beside it.
        max_new_tokens: completions are cut off there.

    Returns:
        One round for each sample, with an error where its completions cannot be had.
    """
    pairs = [(s.question, s.clip) for s in samples if s.clip is not None]
    M = len(plan.sampling)
    seeds = [row_seed(seed, q.id, clip.num_frames, m) for q, clip in pairs for m in range(M)]

    def stop_early(b: int, texts: Sequence[str | None], mean_logprobs: Sequence[float]) -> bool:
        question, clip = pairs[b]
        with naming(question):
            return plan.rule.may_stop(
                [None if text is None else parse_answer(text, question) for text in texts],
                mean_logprobs,
                [text is not None for text in texts],
                is_last=plan.is_last(question, clip),
            )

    rollout = policy.rollout(
        prompts,
        plan.sampling,
        seeds,
        max_new_tokens,
        stop_early if plan.rule.early_stop and M > 1 else None,
    )
    lengths = rollout.lengths.tolist()
    logprobs = [
        mean_logprob(row[:length])
        for row, length in zip(rollout.logprobs.tolist(), lengths, strict=True)
    ]
    abandoned = [False] * len(lengths) if rollout.abandoned is None else rollout.abandoned.tolist()
    errors = rollout.errors or (None,) * len(pairs)
    rounds = []
    for b, (question, clip) in enumerate(pairs):
        if errors[b] is not None:
            rounds.append(Round(clip.num_frames, (), (), 0.0, error=errors[b]))
            continue
        own = slice(b * M, (b + 1) * M)
        rounds.append(
            make_round(
                rollout.texts[own],
                question,
                clip.num_frames,
                times_s=clip.times_s or [index / clip.fps for index in clip.frame_indices],
                num_tokens=lengths[own],
                mean_logprobs=logprobs[own],
                abandoned=abandoned[own],
                is_last=shows_all_frames(question, clip),
                num_damaged=clip.num_damaged,
            )
        )
    return rounds
