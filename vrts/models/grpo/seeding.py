"""Random numbers that libraries draw without asking whose they are."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_globally(seed: int) -> None:
    """Seed what Python, numpy and torch draw from on all devices: dropout, a user's own reward.

    Done before each batch with a seed of its own, what is drawn does not depend on what was drawn
    before: a run that resumes from a checkpoint draws the same, on every process, without any
    generator's state in the checkpoint.

    Args:
        seed: a non-negative integer below 2**63.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
