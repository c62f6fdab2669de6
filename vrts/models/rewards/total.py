"""All rewards of a run together: checked before training, and added up."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vrts.models.rewards.base import Reward, RewardError
from vrts.terminal import shorten
from vrts.types import Completion, InputError, Question


def check_all(rewards: Sequence[Reward], questions: Sequence[Question]) -> None:
    """Check all questions against all rewards, before anything long begins.

    Raises:
        InputError: some completions could not be scored; the first one is named and all counted.
    """
    problems: list[str] = []
    for question in questions:
        try:
            for reward in rewards:
                reward.check(question)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(
            f"{len(problems)} of {len(questions)} training questions cannot be rewarded; "
            f"the first: {problems[0]}"
        )


def total_reward(
    rewards: Sequence[Reward], completions: Sequence[Completion], questions: Sequence[Question]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add up the rewards of completions.

    Args:
        rewards: At least one, with different names.
        completions: N completions: text, tokens, whether it was cut off.
        questions: N questions, the one that each completion answers.

    Returns:
        The weighted sum, float32 ``[N]``, and by name each reward before its weight, float32
        ``[N]``. Both are on the CPU.

    Raises:
        InputError: no rewards, two of one name, or not one question per completion.
        RewardError: a reward raised, or gave another number of scores than completions or a score
            that is not finite.
    """
    if not rewards:
        raise InputError("no rewards; list at least one under model.rewards")
    if len(completions) != len(questions):
        raise InputError(f"{len(completions)} completions, but {len(questions)} questions")
    total = torch.zeros(len(completions), dtype=torch.float32, device="cpu")
    parts: dict[str, torch.Tensor] = {}
    for reward in rewards:
        if reward.name in parts:
            raise InputError(
                f"two rewards have the name {reward.name!r}, the second is "
                f"{type(reward).__name__}; give each a name of its own"
            )
        scores = _checked_scores(reward, completions, questions)
        parts[reward.name] = scores
        total = total + reward.weight * scores
    return total, parts


def _checked_scores(
    reward: Reward, completions: Sequence[Completion], questions: Sequence[Question]
) -> torch.Tensor:
    """Scores of one reward, float32 ``[N]``, known to be N and finite."""
    kind = type(reward).__name__
    try:
        given = reward.score(completions, questions)
    except Exception as error:
        raise RewardError(f"{kind} raised {type(error).__name__}: {error}") from error
    remedy = f"score() must return one number for each completion: a list of {len(completions)}"
    code = getattr(type(reward).score, "__code__", None)  # none where it is no Python function
    where = f"\n  in {code.co_filename}:{code.co_firstlineno}" if code else ""
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError):
        raise RewardError(f"{kind} gave {shorten(repr(given), 100)}; {remedy}{where}") from None
    if len(values) != len(completions):
        raise RewardError(
            f"{kind} gave {len(values)} scores for {len(completions)} completions; {remedy}{where}"
        )
    scores = torch.tensor(values, dtype=torch.float32, device="cpu")
    usable = torch.isfinite(scores * reward.weight)
    if not usable.all():
        row = int((~usable).nonzero()[0])
        raise RewardError(
            f"{kind} gave {values[row]} (weight {reward.weight}) for completion {row} of "
            f"{len(values)}, question {questions[row].id}; scores must be finite"
        )
    return scores
