"""Rewards of completions: what GRPO learns from."""

from vrts.models.rewards.accuracy import MIN_SCORE, AccuracyReward, accuracy_score
from vrts.models.rewards.base import Reward, RewardError
from vrts.models.rewards.format import FormatReward, format_score
from vrts.models.rewards.function import FunctionReward, RewardFunction, as_reward
from vrts.models.rewards.length import LengthReward, SoftOverlongPenalty, overlong_penalty
from vrts.models.rewards.total import check_all, total_reward

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
    "format_score",
    "overlong_penalty",
    "total_reward",
]
