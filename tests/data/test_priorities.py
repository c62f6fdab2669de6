"""Which clip a decode worker takes next."""

import time
from pathlib import Path

import pytest

from tests.data.plugins import FakeDecoder
from vrts.data.video.frames import WHOLE, UniformSampler
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.data.workers.requests import Priority, Request, SharedClips
from vrts.types import Question


class GatedDecoder(FakeDecoder):
    """Logs each clip that it begins; the clip ``gate`` takes until a file of that name is there."""

    def __init__(self, folder):
        self.folder = str(folder)

    def decode(self, path, num_frames, sampler, resolution, window=WHOLE):
        folder = Path(self.folder)
        with (folder / "log").open("a") as file:
            file.write(f"{path} ")
        while path == "gate" and not (folder / "gate").exists():
            time.sleep(0.01)
        return super().decode(path, num_frames, sampler, resolution, window)


@pytest.fixture
def gated(tmp_path):
    """A pool of one worker that is busy, and a function that frees it and gives its log."""
    pool = DecodePool(GatedDecoder(tmp_path), UniformSampler(), Resolution(), 1, deadline_s=300)
    busy = pool.submit(question("gate"), 2)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)

    def free(futures):
        (tmp_path / "gate").touch()
        busy.result(timeout=300)
        for future in futures:
            future.result(timeout=300)
        return (tmp_path / "log").read_text().split()[1:]

    yield pool, free
    (tmp_path / "gate").touch()
    pool.close()


def question(video, id="q"):
    return Question(id, "?", video)


def test_the_most_urgent_clip_goes_first_and_equals_as_they_come(gated):
    pool, free = gated
    asked = [("s0", Priority.STREAM), ("s1", Priority.STREAM), ("next", Priority.NEXT),
             ("s2", Priority.STREAM), ("now", Priority.NOW), ("s3", Priority.STREAM)]  # fmt: skip
    futures = [pool.submit(question(video), 2, priority) for video, priority in asked]
    assert free(futures) == ["now", "next", "s0", "s1", "s2", "s3"]


def test_without_priorities_the_order_is_that_of_asking(gated):
    pool, free = gated
    videos = [f"v{i}" for i in range(8)]
    assert free([pool.submit(question(video), 2) for video in videos]) == videos


def test_a_clip_that_becomes_needed_moves_up_and_is_decoded_once(gated):
    pool, free = gated
    maybe = pool.submit(question("a", "1"), 2, Priority.STREAM)
    others = [pool.submit(question(video), 2) for video in "bc"]
    needed = pool.submit(question("a", "2"), 2, Priority.NOW)
    less = pool.submit(question("a", "3"), 2, Priority.STREAM)
    assert free([maybe, needed, less, *others]) == ["a", "b", "c"]
    assert maybe.result().clip is needed.result().clip is less.result().clip
    assert [f.result().question.id for f in (maybe, needed, less)] == ["1", "2", "3"]


def test_what_nobody_wants_any_more_is_not_decoded(gated):
    pool, free = gated
    unwanted = pool.submit(question("a"), 2, Priority.STREAM)
    raised = pool.submit(question("a"), 2, Priority.NOW)
    shared = [pool.submit(question("b", id), 2, Priority.STREAM) for id in "12"]
    assert unwanted.cancel()
    assert raised.cancel()
    assert shared[0].cancel()
    assert free([shared[1], pool.submit(question("c"), 2, Priority.NEXT)]) == ["c", "b"]


def test_closing_cancels_what_stands_in_the_queue_twice(gated):
    pool, _ = gated
    first = pool.submit(question("a"), 2, Priority.STREAM)
    second = pool.submit(question("a"), 2, Priority.NOW)
    pool.close()
    assert first.cancelled()
    assert second.cancelled()


def test_a_finished_task_holds_no_frames():
    """Its second place in the queue may be reached much later."""
    shared = SharedClips()
    future, task = shared.join(question("a"), Request("a"), Priority.STREAM)
    raised, again = shared.join(question("a"), Request("a"), Priority.NOW)
    assert again is task
    assert task.priority is Priority.NOW
    assert shared.begin(task)
    assert not shared.begin(task)
    shared.finish(task, "bad")
    assert task.waiting == []
    assert not shared.begin(task)
    shared.cancel(task)
    assert future.result(0).error == raised.result(0).error == "bad"
