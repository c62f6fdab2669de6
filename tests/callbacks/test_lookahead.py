"""What is decoded ahead, in which order, and what becomes of it."""

from concurrent.futures import Future

import pytest
import torch

from vrts.callbacks import lookahead
from vrts.callbacks.lookahead import FrameLookahead
from vrts.data.requests import Priority
from vrts.types import Clip, Question, Sample

LEVELS = [4, 8, 16]


def question(id):
    return Question(id, "?", f"{id}.mp4")


def sample(id, level=0, has_more=True):
    T = LEVELS[level]
    frames = torch.zeros(T, 3, 28, 28, dtype=torch.uint8)
    return Sample(question(id), Clip(frames, tuple(range(T)), 8.0, 100 if has_more else T))


class FakeData:
    """Records what is asked for, as ``priority id level``; clips come when they are told to."""

    def __init__(self, num_workers=1):
        self.num_workers = num_workers
        self.log: list[str] = []
        self.futures: dict[tuple[str, int], list[Future]] = {}

    def submit(self, questions, num_frames, priority):
        level = LEVELS.index(num_frames)
        futures = []
        for q in questions:
            self.log.append(f"{priority.name} {q.id} {level}")
            futures.append(Future())
            self.futures.setdefault((q.id, level), []).append(futures[-1])
        return futures

    def news(self):
        """What was asked for since the last time."""
        log, self.log = self.log, []
        return log

    def arrive(self, id, level, **options):
        for future in self.futures[id, level]:
            if not future.cancelled():
                future.set_result(sample(id, level, **options))

    def all_cancelled(self, id, level):
        return all(future.cancelled() for future in self.futures[id, level])


def has_more(level, question, clip):
    return level + 1 < len(LEVELS) and clip.num_frames < clip.num_source_frames


def make(enabled=True, **options):
    data = FakeData(**options)
    return FrameLookahead(data, LEVELS, has_more, enabled), data


def announce(ahead, id, ready=True, **options):
    """Let the stream ask for a question's first clip."""
    future = Future()
    if ready:
        future.set_result(sample(id, **options))
    ahead.watch(question(id), future)
    return future


def test_the_batch_comes_before_those_that_follow():
    ahead, data = make()
    for id in "abc":
        announce(ahead, id)
    late = announce(ahead, "d", ready=False)
    announce(ahead, "e", has_more=False)
    ahead.ask([sample("a")], 0)
    assert data.news() == ["NEXT a 1", "AHEAD b 1", "AHEAD c 1"]
    late.set_result(sample("d"))
    data.arrive("a", 1)
    data.arrive("b", 1)
    (got,) = ahead.take([question("a")], 1)
    assert got.clip.num_frames == 8
    assert data.news() == [], "it is there"
    ahead.ask([got], 1)
    assert data.news() == ["NEXT a 2", "AHEAD b 2", "AHEAD d 1"], "c 1 is on its way"
    ahead.drop()
    assert data.all_cancelled("a", 2)
    assert not data.all_cancelled("c", 1), "those of other batches stay"
    ahead.ask([sample("b")], 0)
    assert data.news() == [], "both are there or on their way"
    data.arrive("c", 1)
    ahead.ask([sample("b")], 0)
    assert data.news() == ["AHEAD c 2"]


def test_what_becomes_more_urgent_is_asked_for_again():
    ahead, data = make()
    announce(ahead, "b")
    ahead.ask([sample("a")], 0)
    assert data.news() == ["NEXT a 1", "AHEAD b 1"]
    ahead.drop()
    ahead.ask([sample("b")], 0)
    assert data.news() == ["NEXT b 1"]
    first, second = data.futures["b", 1]
    assert first.cancelled(), "or a clip that is given up would be decoded for it"
    assert not second.cancelled()
    threshold = ahead.count.cancelled
    data.submit = lambda *args: [completed(FakeData.submit(data, *args)[0])]
    (got,) = ahead.take([question("b")], 1)
    assert data.news() == ["NOW b 1"]
    assert got.question.id == "b"
    assert (ahead.count.begun, ahead.count.used, threshold) == (2, 1, 1)


def completed(future):
    future.set_result(sample("b", 1))
    return future


def test_what_a_decided_question_does_not_need_is_cancelled():
    ahead, data = make()
    ahead.ask([sample("a"), sample("b"), sample("c", has_more=False)], 0)
    assert data.news() == ["NEXT a 1", "NEXT b 1"]
    data.arrive("a", 1)
    ahead.take([question("a")], 1)
    assert data.all_cancelled("b", 1)
    assert ahead.count.cancelled == 1


def test_a_question_that_is_refused_keeps_nothing():
    """Its denser clip may have been begun, and nobody will ask for it."""
    ahead, data = make()
    ahead.ask([sample("a"), sample("b")], 0)
    data.arrive("a", 1)
    data.arrive("b", 1)
    ahead.ask([sample("a"), sample("b")], 0)
    assert data.news()[-2:] == ["AHEAD a 2", "AHEAD b 2"]
    kept = ahead.take([question("a"), question("b")], 1)[:1]
    ahead.ask(kept, 1)
    assert data.news() == ["NEXT a 2"]
    assert data.all_cancelled("b", 2)


def test_frames_of_questions_that_follow_are_bounded(monkeypatch):
    clip_bytes = 8 * 3 * 28 * 28
    monkeypatch.setattr(lookahead, "AHEAD_BYTES", 2 * clip_bytes)
    ahead, data = make()
    for id in "abcde":
        announce(ahead, id)
    ahead.ask([sample("a")], 0)
    assert data.news() == ["NEXT a 1", "AHEAD b 1", "AHEAD c 1"]
    data.arrive("a", 1)
    data.arrive("b", 1, has_more=False)
    data.arrive("c", 1, has_more=False)
    ahead.ask([sample("a")], 0)
    assert data.news() == [], "frames that are decoded and not used yet count too"
    ahead.drop()
    ahead.ask([sample("b")], 0)
    assert data.news() == ["AHEAD d 1"], "those of the batch do not count"


def test_a_failure_ahead_is_raised_where_it_is_needed_only():
    ahead, data = make()
    broken = announce(ahead, "b", ready=False)
    broken.set_exception(OSError("no worker"))
    gone = announce(ahead, "c", ready=False)
    gone.cancel()
    ahead.ask([sample("a")], 0)
    assert data.news() == ["NEXT a 1"]
    data.futures["a", 1][0].set_exception(OSError("no worker"))
    ahead.ask([sample("a")], 0)
    with pytest.raises(OSError, match="no worker"):
        ahead.take([question("a")], 1)


def test_closing_gives_everything_up():
    ahead, data = make()
    announce(ahead, "b")
    announce(ahead, "c")
    ahead.ask([sample("a")], 0)
    ahead.close()
    assert all(data.all_cancelled(id, 1) for id in "abc")
    assert ahead.count.cancelled == 3


@pytest.mark.parametrize("options", [{"enabled": False}, {"num_workers": 0}])
def test_nothing_is_begun_ahead_where_it_cannot_help(options):
    ahead, data = make(**options)
    announce(ahead, "b")
    ahead.ask([sample("a")], 0)
    assert data.news() == []
    data.submit = lambda *args: [completed(FakeData.submit(data, *args)[0])]
    assert [s.question.id for s in ahead.take([question("b")], 1)] == ["b"]
    assert data.news() == [f"{Priority.NOW.name} b 1"]
    assert ahead.count.begun == ahead.count.used == 0
