"""A model's forward passes on one set of weights: what the native engine samples with.

The policy has a network on its own weights, the native engine one on a copy of them in the compute
dtype (see `vrts.models.engines.weights`). Both run the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vrts.models.attention.shared_prefix import Layout, PackedLayout, States
from vrts.models.policy import Prompt
from vrts.types import Sample


class Network(ABC):
    """Encodes, prefills and decodes; never with gradient."""

    model: Any
    """The transformers model, adapter layers in place."""
    tokenizer: Any
    vocab_size: int
    """V, of the logits."""
    end_ids: torch.Tensor
    """int64, each of which ends a completion; on the CPU."""

    @property
    @abstractmethod
    def kv_shape(self) -> tuple[int, int, int]:
        """Layers that attend, kv heads, and the size of a head."""

    @property
    def row_states(self) -> States:
        """What recurrent layers keep of a row: meta tensors ``[layers, ...]``, none for others."""
        return ()

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the keys and values of the language model."""

    @abstractmethod
    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """See `Engine.encode`."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Prompt]) -> tuple[PackedLayout, torch.Tensor]:
        """Forward B prompts once.

        Returns:
            A layout that has their keys, values and states, and float32 logits ``[B, V]`` of what
            follows.
        """

    @abstractmethod
    def first_position(self, prompt: Prompt) -> int:
        """Position of a completion's first token."""

    @abstractmethod
    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Forward one token in each of R rows.

        Args:
            tokens: int64 ``[R]``.
            positions: int64 ``[R]``.
            layout: has the keys, values and states before them.

        Returns:
            Float32 logits ``[R, V]`` of what follows, suppressed tokens at minus infinity.
        """

    @abstractmethod
    def with_model(self, model: nn.Module) -> Network:
        """The same passes on another copy of the model."""
