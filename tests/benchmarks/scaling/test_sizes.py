"""Counts against known models, and against a loaded one."""

from dataclasses import replace

import pytest
import torch

from benchmarks.common import random_policy, random_sample
from benchmarks.scaling.sizes import MODELS, Model, workload
from tests.benchmarks.conftest import TINY
from vrts.models.vlm.flops import count_workload
from vrts.models.vlm.loading import Lora, add_lora

SMALL_7B, LARGE_72B = MODELS


def test_parameters_of_the_published_models():
    assert SMALL_7B.language == 7_615_616_512
    assert SMALL_7B.language + SMALL_7B.vision == 8_292_166_656
    assert LARGE_72B.language == 72_706_203_648


def test_keys_and_values_by_hand():
    assert SMALL_7B.kv_bytes(1) == 28 * 2 * 4 * 128 * 2
    assert LARGE_72B.kv_bytes(3) == 3 * 80 * 2 * 8 * 128 * 2


@pytest.mark.parametrize("rank", [None, 4])
def test_operations_are_those_of_a_loaded_model(rank):
    policy = random_policy(TINY, torch.device("cpu"), torch.float32)
    (prompt,) = policy.network().encode([random_sample(6, 56, 84, seed=1)])
    model = policy.model
    for weight in model.model.visual.parameters():
        weight.requires_grad_(False)
    if rank is not None:
        model = add_lora(model, Lora(rank=rank)).get_base_model()
    visual, vocab_size = model.config.vision_config, model.lm_head.weight.shape[0]
    mine = Model(
        "tiny",
        replace(TINY, vocab_size=vocab_size),
        visual.intermediate_size,
        len(visual.fullatt_block_indexes),
    )
    lengths = [7, 3, 5]
    want = count_workload(policy.family, model, [prompt], [lengths])
    got = workload(mine, rank, prompt.grid, prompt.num_tokens, lengths)
    assert got.num_prompt_tokens == want.num_prompt_tokens
    assert got.num_completion_tokens == want.num_completion_tokens
    assert got.vision_flops == pytest.approx(want.vision_flops)
    assert got.forward_flops == pytest.approx(want.forward_flops)
    assert got.backward_flops == pytest.approx(want.backward_flops)
    own = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
    # the tiny model's head is its embeddings, the published ones' is not
    assert mine.language + mine.vision - mine.head == own
    if rank is not None:
        adapter = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
        assert mine.adapter(rank) == adapter
