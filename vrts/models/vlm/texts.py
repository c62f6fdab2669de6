"""Completions as text, and what ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vrts.models.families.family import TAGS, special_tokens


class CompletionTokenizer:
    """Decodes completions: tags stay, also where a checkpoint has special tokens for them.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        special = special_tokens(tokenizer)
        self.all_special_ids = frozenset(i for i, text in special.items() if text not in TAGS)
        """Ids that are no text: ends of turns, placeholders of images, and so on."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of tokens, with or without those that are no text."""
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.all_special_ids]
        return str(self._decode(ids))


def end_token_ids(generation_config: Any, tokenizer: Any) -> torch.Tensor:
    """All ids that end a completion: those of the generation config and the tokenizer's own."""
    ids = generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return torch.tensor(sorted({*ids, tokenizer.eos_token_id} - {None}), device="cpu")
