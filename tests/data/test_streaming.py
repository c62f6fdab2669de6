from concurrent.futures import Future

import pytest

from vrts.data.stream import Batch, SampleStream
from vrts.types import Question, Sample

QUESTIONS = [Question(f"q{i}", "?", "v.mp4") for i in range(6)]


class SlowPool:
    """Records what is submitted, and decodes only on demand."""

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
    return SampleStream(QUESTIONS, [[0, 1], [2, 3], [4, 5]], pool, 2, **kwargs)


def ids(batches):
    return [[sample.question.id for sample in batch] for batch in batches]


def test_order():
    batches = stream(SlowPool())
    assert ids(batches) == ids(batches) == [["q0", "q1"], ["q2", "q3"], ["q4", "q5"]]
    assert len(batches) == 3
    assert [batch.end for batch in batches] == [None] * 3


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
