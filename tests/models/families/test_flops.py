"""Operations by formula against those that torch counts while the tiny model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vrts.models.vlm.flops as qwen_flops
from tests.models.conftest import make_sample
from tests.models.engines.running import make_engine, make_requests
from vrts.models.families.flops import (
    Matrices,
    attention_flops,
    frame_pairs,
    visible_pairs,
    window_pairs,
)
from vrts.models.vlm.loading import Lora
from vrts.types import Completion, SamplingParams

LENGTHS = [[5, 9, 2], [1, 12, 7], [3, 3, 4]]


def make_completions() -> list[list[Completion]]:
    ids = torch.randint(0, 200, (9, 12), generator=torch.Generator().manual_seed(3))
    rows = iter(ids)
    return [[Completion("", n, n, token_ids=next(rows)[:n]) for n in group] for group in LENGTHS]


def counted(run) -> int:
    """Operations of a call; attention is split into its products, which torch then counts."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def computed_pairs(prompt_length: int, lengths: list[int]) -> float:
    """What the plain products compute: a full square and rectangle, masked afterwards."""
    own = sum(lengths)
    return float(prompt_length**2 + own * (prompt_length + own))


@pytest.fixture(autouse=True)
def _no_kernels_of_attention(monkeypatch):
    """Torch does not count inside of those that are called by name."""
    monkeypatch.setattr("vrts.models.attention.shared_prefix.has_flash", lambda *_: False)


KINDS = {
    "full": {},
    "vision": {"freeze_vision": False},
    "lora": {"lora": Lora(rank=4)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind, load_policy, samples, monkeypatch):
    policy = load_policy(**KINDS[kind])
    encode = policy.network().encode
    prompts, completions = encode(samples), make_completions()
    monkeypatch.setattr(qwen_flops, "visible_pairs", computed_pairs)
    work = policy.workload(prompts, completions)
    head = 2 * policy.base.lm_head.weight.numel() * work.num_completion_tokens

    assert counted(lambda: encode(samples)) == pytest.approx(work.vision_flops, rel=0.01)
    with torch.no_grad():
        scored = counted(lambda: policy.logprobs(prompts, completions, 1.0))
    assert scored == pytest.approx(work.scoring_flops, rel=0.01)
    updated = counted(lambda: policy.logprobs(prompts, completions, 1.0).logprobs.sum().backward())
    # backward computes the head's logits again, which is not work done
    assert updated - head == pytest.approx(work.update_flops, rel=0.01)
    assert work.trains_vision is (kind == "vision")


def test_checkpointing_does_not_count(load_policy, samples):
    completions = make_completions()
    found = []
    for checkpointing in (False, True):
        policy = load_policy(gradient_checkpointing=checkpointing)
        policy.train()
        prompts = policy.network().encode(samples)
        work = policy.workload(prompts, completions)
        run = lambda p=policy, e=prompts: p.logprobs(e, completions, 1.0).logprobs.sum().backward()  # noqa: E731
        found.append((work, counted(run)))
    (plain, less), (recomputed, more) = found
    assert plain == recomputed
    assert more > 1.2 * less


def test_sampling_computes_what_one_scoring_does(load_policy):
    """Prefill and decoding forward the same tokens as the shared pass, by the same pairs."""
    policy = load_policy()
    engine = make_engine(policy)
    prompts = engine.encode([make_sample(5, 6, (56, 56), "What?")])
    results = []
    found = counted(
        lambda: results.extend(
            engine.generate(make_requests(prompts, [SamplingParams()], 8, seed=1))
        )
    )
    completions = [results[0].completions]
    P, L = prompts[0].num_tokens, completions[0][0].num_tokens
    work = policy.workload(prompts, completions)
    width = 3 * 96
    visible = attention_flops(width, visible_pairs(P, [L - 1]))
    computed = attention_flops(width, P * P)
    plain = found - (work.forward_flops - visible) - computed
    # decoding's attention: each of L - 1 steps reads the prompt and 8 own tokens at most
    assert 0 <= plain <= attention_flops(width, (L - 1) * (P + 8))
    assert (work.num_prompt_tokens, work.num_completion_tokens) == (P, L)


def test_pairs_by_hand():
    assert visible_pairs(3, []) == 6
    # prompt 1+2+3; a completion of two tokens sees 3+1 and 3+2
    assert visible_pairs(3, [2, 1]) == 6 + (4 + 5) + 4
    # 5 patches in windows of 4 and 1, 3 in one of 3: (16 + 1) * 9, twice
    assert window_pairs((2, 5, 3), 4) == 2 * 17 * 9
    assert frame_pairs((2, 5, 3)) == 2 * 15**2


def test_matrices_by_hand():
    assert Matrices(10, 4).forward(3) == 2 * 10 * 3
    assert Matrices(10, 4).backward(3) == 2 * (10 + 4) * 3
    assert Matrices(10, 4, 5).backward(3) == 2 * (5 + 4) * 3
