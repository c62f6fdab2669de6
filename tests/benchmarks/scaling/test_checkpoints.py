"""The shapes of published checkpoints have the numbers of parameters that their cards name."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.scaling.checkpoints import CHECKPOINTS, shaped_policy

BILLIONS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": 0.256,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 0.507,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2.25,
}
"""As their safetensors have them."""


@pytest.mark.parametrize("name", BILLIONS)
def test_numbers_of_parameters(name):
    policy = shaped_policy(CHECKPOINTS[name], torch.device("meta"), torch.bfloat16)
    count = sum(p.numel() for p in policy.parameters())
    assert count / 1e9 == pytest.approx(BILLIONS[name], rel=3e-3)


def test_each_has_a_recipe():
    folder = Path(__file__).parents[3] / "configs/models"
    paths = [re.search(r"path: (\S+)}", file.read_text())[1] for file in folder.glob("*.yaml")]
    assert sorted(paths) == sorted(CHECKPOINTS)
