"""Floating point operations of a model, counted by formula from its matrices and real tokens.

Those of the model are counted, as for MFU (Chowdhery et al., 2022, arXiv 2204.02311, appendix B):
recomputation by gradient checkpointing or a kernel does not count, nor does a pair of tokens that
do not see each other. A matrix costs two operations an element and token forward; in backward two
for the gradient of its input, and two more for its own where it is trained. Norms, rotations and
activations are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matrices:
    """Elements of the matrices that every token goes through."""

    total: int
    trained: int  # with a gradient of the weights
    no_input_gradient: int = 0  # of the first trained layers, whose input needs none

    def forward(self, num_tokens: float) -> float:
        """Operations of a forward."""
        return 2.0 * self.total * num_tokens

    def backward(self, num_tokens: float) -> float:
        """Operations of a backward."""
        return 2.0 * (self.total - self.no_input_gradient + self.trained) * num_tokens


def visible_pairs(prompt_length: int, lengths: Sequence[int]) -> float:
    """Pairs of tokens that see each other, in a prompt of P and completions that share it."""
    own = sum(n * prompt_length + n * (n + 1) / 2 for n in lengths)
    return prompt_length * (prompt_length + 1) / 2 + own


def attention_flops(width: int, pairs: float) -> float:
    """Forward of attention: queries with keys, weights with values. A backward is twice it.

    `width` is the number of heads times their size, summed over layers.
    """
    return 4.0 * width * pairs


def window_pairs(grid: tuple[int, int, int], window: int) -> float:
    """Pairs of patches within the windows of a video.

    Args:
        grid: temporal, vertical and horizontal patches.
        window: vertical and horizontal patches of a window; those at the edge are smaller.
    """

    def squares(size: int) -> int:
        full, rest = divmod(size, window)
        return full * window**2 + rest**2

    return float(grid[0] * squares(grid[1]) * squares(grid[2]))


def frame_pairs(grid: tuple[int, int, int]) -> float:
    """Pairs of patches within the temporal patches of a video; these do not see each other."""
    return float(grid[0] * (grid[1] * grid[2]) ** 2)
