from concurrent.futures import Future

import pytest

from vrts.data.position import Position
from vrts.data.streaming import Batch, SampleStream
from vrts.types import Question, Sample

QUESTIONS = [Question(f"q{i}", "?", "v.mp4") for i in range(6)]


class SlowPool:
    """Records what is asked for, and decodes only when told to."""

    num_workers = 1

    def __init__(self, ready=True):
        self.ready = ready
        self.asked = []
        self.futures = []

    def submit(self, question, num_frames):
        future = Future()
        self.asked.append(question.id)
        self.futures.append(future)
        if self.ready:
            future.set_result(Sample(question))
        return future


def stream(pool, **kwargs):
    def batches(position):
        epoch = [[0, 1], [2, 3], [4, 5]][:: -1 if position.epoch else 1]
        return epoch[position.num_seen // 2 :]

    return SampleStream(QUESTIONS, batches, pool, 2, **kwargs)


def ids(batches):
    return [[sample.question.id for sample in batch] for batch in batches]


def test_order_repeats_and_position():
    assert ids(stream(SlowPool())) == [["q0", "q1"], ["q2", "q3"], ["q4", "q5"]]
    twice = stream(SlowPool(), repeats=2)
    batches = list(twice)
    assert len(twice) == len(batches) == 6
    assert batches[0] is batches[1]
    assert batches[1] is not batches[2]
    for start in range(6):
        where = Position(0, start // 2 * 2, start % 2)
        rest = stream(SlowPool(), repeats=2, position=lambda where=where: where)
        assert ids(rest) == ids(batches[start:])
        assert len(rest) == 6
    other = stream(SlowPool(), position=lambda: Position(1, 2))
    assert ids(other) == [["q2", "q3"], ["q0", "q1"]]


@pytest.mark.parametrize(("ahead", "asked"), [(0, 2), (1, 4), (5, 6)])
def test_batches_are_decoded_ahead(ahead, asked):
    pool = SlowPool()
    batches = iter(stream(pool, prefetch_batches=ahead))
    assert pool.asked == [], "nothing is decoded before the first batch is due"
    next(batches)
    assert len(pool.asked) == min(asked + 2, 6)


def test_a_stream_that_is_left_cancels_what_it_asked_for():
    pool = SlowPool(ready=False)
    for future, question in zip(pool.futures, QUESTIONS, strict=False):
        future.set_result(Sample(question))
    batches = iter(stream(pool, prefetch_batches=1))
    original = pool.submit

    def submit(question, num_frames):
        future = original(question, num_frames)
        if question.id in {"q0", "q1"}:
            future.set_result(Sample(question))
        return future

    pool.submit = submit
    next(batches)
    batches.close()
    assert [future.cancelled() for future in pool.futures] == [False, False, True, True, True, True]


def test_a_batch_is_like_a_list():
    samples = [Sample(question) for question in QUESTIONS]
    batch = Batch(samples)
    assert len(batch) == 6
    assert batch[2] is samples[2]
    assert list(batch) == samples
    assert "q3" in repr(batch)
