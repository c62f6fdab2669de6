"""Which question comes when, and on which rank: pure functions of seed, epoch and rank."""

import random
from collections.abc import Sequence

from vrts.types import InputError


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


def num_train_batches(num_questions: int, batch_size: int, world_size: int) -> int:
    """Return the batches of each rank in a training epoch; the uneven tail is left out.

    Raises:
        InputError: the questions do not fill one batch on every rank.
    """
    count = num_questions // (batch_size * world_size)
    if count == 0:
        raise InputError(
            f"{num_questions} training questions do not fill one batch of {batch_size} on each of "
            f"{world_size} ranks; lower data.batch_size or give more questions"
        )
    return count


def train_batches(
    order: Sequence[int], batch_size: int, rank: int, world_size: int, num_seen: int = 0
) -> list[list[int]]:
    """Return a rank's batches of an epoch: as many on every rank, all of the full size.

    Step s of all ranks together takes the s-th run of ``batch_size * world_size`` questions of
    the order, so that two ranks train on what one rank with a doubled batch would. What is left
    over at the end is left out; where the order is shuffled that is something else each epoch.

    Args:
        order: of the epoch, of all ranks.
        batch_size: on each rank.
        rank: whose batches these are.
        world_size: ranks.
        num_seen: questions of the order that were given out before; steps count from there.
    """
    size = batch_size * world_size
    count = (len(order) - num_seen) // size
    starts = [num_seen + step * size + rank * batch_size for step in range(count)]
    return [list(order[start : start + batch_size]) for start in starts]


def evaluation_batches(
    order: Sequence[int], batch_size: int, rank: int, world_size: int
) -> list[list[int]]:
    """Return a rank's batches where every question counts exactly once.

    Rank r takes questions r, r + world_size, …: nothing is repeated to fill a batch, so ranks
    may have different numbers of batches, and the last one may be short.
    """
    share = order[rank::world_size]
    return [list(share[i : i + batch_size]) for i in range(0, len(share), batch_size)]
