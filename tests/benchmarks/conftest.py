"""A policy of the benchmarks' kind, as small as it gets."""

import pytest
import torch

from benchmarks.common import Shape, random_policy

TINY = Shape(96, 2, 4, 2, 128, 32, 2)


@pytest.fixture(scope="package")
def tiny_policy():
    return random_policy(TINY, torch.device("cpu"), torch.float32)
