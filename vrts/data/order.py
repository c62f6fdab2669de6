"""Which question comes when, and on which rank: pure functions of seed, epoch and rank."""

import random
from collections.abc import Sequence


def epoch_order(num_questions: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """Return the order of the questions in an epoch, the same on every rank and machine.

    Args:
        num_questions: How many there are.
        seed: Another seed gives another order.
        epoch: Counted from 0; each has an order of its own.
        shuffle: False keeps the order of the file.
    """
    order = list(range(num_questions))
    if shuffle:
        # a text seed goes through SHA-512: near seeds and epochs give unrelated orders
        random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def evaluation_batches(
    order: Sequence[int], batch_size: int, rank: int, world_size: int
) -> list[list[int]]:
    """Return a rank's batches where every question counts exactly once.

    Rank r takes questions r, r + world_size, …: nothing is repeated to fill a batch, so ranks
    may have different numbers of batches, and the last one may be short.
    """
    share = order[rank::world_size]
    return [list(share[i : i + batch_size]) for i in range(0, len(share), batch_size)]
