"""The oracle: every ``prompt + completion`` on its own through transformers' forward.

Nothing is shared, nothing is packed; only the position ids are vrts's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.models.conftest import make_sample
from vrts.models.policy import Prompts, Scores
from vrts.models.qwen import QwenPolicy
from vrts.types import Rollout, Sample

WORDS = "what which colour red does the circle left square two after moves then seven it".split()


def vision_inputs(policy: QwenPolicy, prompt) -> dict[str, torch.Tensor]:
    """What transformers' forward calls the patches of a video or a picture."""
    grid = torch.tensor([prompt.grid])
    if (prompt.input_ids == policy.base.config.image_token_id).any():
        return {"pixel_values": prompt.patches, "image_grid_thw": grid}
    return {"pixel_values_videos": prompt.patches, "video_grid_thw": grid}


def plain_distributions(
    policy: QwenPolicy, prompts: Prompts, rollout: Rollout, temperature: float = 1.0
) -> list[torch.Tensor]:
    """Log-probs ``[length, V]`` of all tokens at each completion's positions."""
    out = []
    num_samples = len(rollout.completion_ids) // len(prompts.encoded)
    for row, mask in enumerate(rollout.completion_mask):
        prompt = prompts.encoded[row // num_samples]
        ids = rollout.completion_ids[row][mask]
        steps = prompt.next_position + torch.arange(len(ids))
        logits = policy.base(
            input_ids=torch.cat([prompt.input_ids, ids])[None],
            position_ids=torch.cat([prompt.positions, steps.expand(3, -1)], 1)[:, None],
            **vision_inputs(policy, prompt),
            use_cache=False,
        ).logits[0, len(prompt.input_ids) - 1 : -1]
        logits = logits.float().index_fill(-1, policy._banned_ids, float("-inf")) / temperature
        out.append(logits.log_softmax(-1))
    return out


def plain_logprobs(
    policy: QwenPolicy, prompts: Prompts, rollout: Rollout, temperature: float = 1.0
) -> list[torch.Tensor]:
    """Log-probs ``[length]`` of the tokens of each completion."""
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    found = plain_distributions(policy, prompts, rollout, temperature)
    return [
        logprobs.gather(-1, ids[mask][:, None])[:, 0]
        for (ids, mask), logprobs in zip(rows, found, strict=True)
    ]


class NaivePolicy(QwenPolicy):
    """Scores by the oracle: G prompts for G completions, and the vision tower G times."""

    def score(self, prompts: Prompts, rollout: Rollout, temperature: float) -> Scores:
        """See `Policy.score`."""
        found = plain_distributions(self, prompts, rollout, temperature)
        rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
        logprobs, entropy = [], []
        for (ids, mask), row in zip(rows, found, strict=True):
            logprobs.append(row.gather(-1, ids[mask][:, None])[:, 0])
            finite = row.detach().masked_fill(row.isinf(), 0.0)
            entropy.append(-(row.detach().exp() * finite).sum(-1))
        return Scores(
            pad_sequence(logprobs, batch_first=True), pad_sequence(entropy, batch_first=True)
        )


def keep_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 stays float64 where norms, rotations and heads ask for float32.

    They do so to be more exact than in 16 bits; here it would hide everything below 1e-7.
    """
    to, to_float32 = torch.Tensor.to, torch.Tensor.float

    def kept(value):
        return torch.float64 if value is torch.float32 else value

    def patched_to(tensor, *args, **kwargs):
        if tensor.dtype == torch.float64:
            args, kwargs = map(kept, args), {key: kept(value) for key, value in kwargs.items()}
        return to(tensor, *args, **kwargs)

    def patched_float(tensor):
        return tensor if tensor.dtype == torch.float64 else to_float32(tensor)

    monkeypatch.setattr(torch.Tensor, "to", patched_to)
    monkeypatch.setattr(torch.Tensor, "float", patched_float)


def to_float64(policy: QwenPolicy) -> QwenPolicy:
    """Weights and rotary frequencies in float64; compute with them under `keep_float64`."""
    policy.double()
    for module in policy.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq.double()
    return policy


def random_samples(generator: torch.Generator, count: int) -> list[Sample]:
    """Questions of different length about videos of different size and number of frames."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    return [
        make_sample(
            draw(0, 2**30),
            2 * draw(1, 5),
            (28 * draw(2, 4), 28 * draw(2, 4)),
            " ".join(WORDS[draw(0, len(WORDS) - 1)] for _ in range(draw(1, 20))),
        )
        for _ in range(count)
    ]


def random_rollout(
    policy: QwenPolicy,
    lengths: Sequence[int],
    generator: torch.Generator,
) -> Rollout:
    """Completions of random tokens.

    Args:
        policy: whose vocabulary and banned tokens count.
        lengths: N, 1 is a completion whose first token ends it.
        generator: of the tokens.
    """
    L, allowed = max(lengths), torch.ones(policy.base.config.text_config.vocab_size)
    allowed[policy._banned_ids] = 0
    ids = torch.multinomial(allowed, len(lengths) * L, replacement=True, generator=generator)
    mask = torch.arange(L) < torch.tensor(list(lengths))[:, None]
    N = len(lengths)
    return Rollout(
        ids.view(N, L), mask, torch.zeros(N, L), torch.ones(N, dtype=torch.bool), ("",) * N
    )
