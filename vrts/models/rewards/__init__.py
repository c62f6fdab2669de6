"""Rewards of completions: what GRPO learns from."""

from vrts.models.rewards.accuracy import AccuracyReward as AccuracyReward
from vrts.models.rewards.base import FunctionReward as FunctionReward
from vrts.models.rewards.base import Reward as Reward
from vrts.models.rewards.base import RewardError as RewardError
from vrts.models.rewards.format import FormatReward as FormatReward
from vrts.models.rewards.length import LengthReward as LengthReward
from vrts.models.rewards.length import SoftOverlongPenalty as SoftOverlongPenalty
