"""The oracle: every ``prompt + completion`` on its own through transformers' forward.

Nothing is shared, nothing is packed; only the position ids are vrts's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.models.conftest import make_sample
from vrts.models.families.prompt import VideoPrompt
from vrts.models.policy import Prompt, TokenLogprobs
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Completion, Sample

WORDS = "what which colour red does the circle left square two after moves then seven it".split()


def plain_logits(
    policy: TransformersPolicy, prompt: Prompt, completion_ids: torch.Tensor
) -> torch.Tensor:
    """Logits ``[length, V]`` that a completion's tokens are drawn from, at temperature 1."""
    assert isinstance(prompt, VideoPrompt)
    inputs = policy.family.model_inputs(policy.base, prompt)
    positions = inputs["position_ids"]
    steps = prompt.next_position + torch.arange(len(completion_ids))
    inputs["position_ids"] = torch.cat([positions, steps.expand(*positions.shape[:-1], -1)], -1)
    inputs["input_ids"] = torch.cat([prompt.input_ids, completion_ids])[None]
    logits = policy.base(**inputs, use_cache=False).logits[0, prompt.num_tokens - 1 : -1]
    return logits.float().index_fill(-1, policy.network().suppressed_ids, float("-inf"))


def plain_distributions(
    policy: TransformersPolicy,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probs ``[length, V]`` of all tokens at the positions of each of N completions."""
    return [
        (plain_logits(policy, prompt, c.token_ids) / temperature).log_softmax(-1)
        for prompt, group in zip(prompts, completions, strict=True)
        for c in group
    ]


def plain_logprobs(
    policy: TransformersPolicy,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probs ``[length]`` of the tokens of each of N completions."""
    found = plain_distributions(policy, prompts, completions, temperature)
    rows = [c.token_ids for group in completions for c in group]
    return [
        logprobs.gather(-1, ids[:, None])[:, 0] for ids, logprobs in zip(rows, found, strict=True)
    ]


class NaivePolicy(TransformersPolicy):
    """Scores by the oracle: G prompts for G completions, and the vision tower G times."""

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> TokenLogprobs:
        """See `Policy.logprobs`."""
        found = plain_distributions(self, prompts, completions, temperature)
        rows = [c.token_ids for group in completions for c in group]
        logprobs, entropy = [], []
        for ids, row in zip(rows, found, strict=True):
            logprobs.append(row.gather(-1, ids[:, None])[:, 0])
            finite = row.detach().masked_fill(row.isinf(), 0.0)
            entropy.append(-(row.detach().exp() * finite).sum(-1))
        return TokenLogprobs(
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


def to_float64(policy: TransformersPolicy) -> TransformersPolicy:
    """Weights and rotary frequencies in float64; compute with them under `keep_float64`."""
    policy.double()
    for module in policy.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq.double()
    return policy


def random_samples(
    generator: torch.Generator, count: int, side: int = 28, tokens: tuple[int, int] = (2, 4)
) -> list[Sample]:
    """Questions of different length about videos of different size and number of frames.

    Args:
        generator: of all that is drawn.
        count: of samples.
        side: pixels of a side of one vision token.
        tokens: fewest and most of them along a side.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    return [
        make_sample(
            draw(0, 2**30),
            2 * draw(1, 5),
            (side * draw(*tokens), side * draw(*tokens)),
            " ".join(WORDS[draw(0, len(WORDS) - 1)] for _ in range(draw(1, 20))),
        )
        for _ in range(count)
    ]


def random_completions(
    policy: TransformersPolicy, lengths: Sequence[Sequence[int]], generator: torch.Generator
) -> list[list[Completion]]:
    """Completions of random tokens.

    Args:
        policy: whose vocabulary and suppressed tokens count.
        lengths: of each question's completions; 1 is one whose first token ends it.
        generator: of the tokens.
    """
    allowed = torch.ones(policy.base.config.text_config.vocab_size)
    allowed[policy.network().suppressed_ids] = 0
    return [
        [
            Completion("", n, n, token_ids=torch.multinomial(allowed, n, True, generator=generator))
            for n in group
        ]
        for group in lengths
    ]
