"""Rewards of completions: what GRPO learns from."""

from vrts.models.rewards.accuracy import MIN_SCORE, AccuracyReward, accuracy_score
from vrts.models.rewards.base import (
    FunctionReward,
    Reward,
    RewardError,
    RewardFunction,
    as_reward,
    check_all,
    total_reward,
)
from vrts.models.rewards.format import FormatReward
from vrts.models.rewards.length import LengthReward, SoftOverlongPenalty, overlong_penalty

__all__ = [
    "MIN_SCORE",
    "AccuracyReward",
    "FormatReward",
    "FunctionReward",
    "LengthReward",
    "Reward",
    "RewardError",
    "RewardFunction",
    "SoftOverlongPenalty",
    "accuracy_score",
    "as_reward",
    "check_all",
    "overlong_penalty",
    "total_reward",
]
