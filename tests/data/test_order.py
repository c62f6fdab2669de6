from hypothesis import given
from hypothesis import strategies as st

from vrts.data.progress import epoch_order
from vrts.data.stream import evaluation_batches

COUNT, BATCH, WORLD = st.integers(0, 200), st.integers(1, 7), st.integers(1, 8)


def flat(batches):
    return [index for batch in batches for index in batch]


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    assert epoch_order(5, 0, 0, shuffle=False) == [0, 1, 2, 3, 4]
    # pinned: a resumed run may be on another machine or Python
    assert epoch_order(8, 0, 0, shuffle=True) == [0, 2, 1, 4, 6, 7, 3, 5]
    orders = [epoch_order(50, seed, epoch, True) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@given(COUNT, BATCH, WORLD)
def test_evaluation_gives_every_question_to_one_rank_once(count, size, world):
    order = list(range(count))
    ranks = [evaluation_batches(order, size, rank, world) for rank in range(world)]
    assert sorted(index for batches in ranks for index in flat(batches)) == order
    lengths = [len(flat(batches)) for batches in ranks]
    assert max(lengths) - min(lengths) <= 1
    assert all(0 < len(batch) <= size for batches in ranks for batch in batches)
