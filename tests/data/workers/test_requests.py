"""Questions about one clip: decoded once, given to all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.data.plugins import FakeDecoder, NaughtyDecoder
from vrts.data.video.frames import UniformSampler, Window
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.data.workers.requests import (
    KEPT_BYTES,
    KEPT_CLIPS,
    Request,
    SharedClips,
    request_for,
)
from vrts.types import Clip, Question


class CountingDecoder(FakeDecoder):
    def __init__(self, file):
        self.file = str(file)

    def decode(self, path, num_frames, sampler, resolution, window):
        with open(self.file, "a") as file:  # noqa: PTH123
            file.write(f"{path} {num_frames} {window.start_s:g}\n")
        return super().decode(path, num_frames, sampler, resolution, window)


def ask(id, video="a.mp4", **options):
    return Question(id, "?", video, **options)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_adjacent_questions_about_a_video_decode_it_once(tmp_path, num_workers):
    log = tmp_path / "log"
    pool = DecodePool(CountingDecoder(log), UniformSampler(), Resolution(), num_workers)
    try:
        asked = [ask("1"), ask("2"), ask("3", "b.mp4"), ask("4"), ask("5", start_s=2.0), ask("6")]
        samples = [f.result(timeout=300) for f in [pool.submit(q, 4) for q in asked]]
        denser = [f.result(timeout=300) for f in [pool.submit(q, 8) for q in asked[:2]]]
    finally:
        pool.close()
    assert sorted(log.read_text().splitlines()) == [
        "a.mp4 4 0", "a.mp4 4 2", "a.mp4 8 0", "b.mp4 4 0",
    ]  # fmt: skip
    assert [sample.question.id for sample in samples] == list("123456")
    assert samples[0].clip is samples[1].clip is samples[3].clip is samples[5].clip
    assert [sample.clip.num_frames for sample in denser] == [8, 8]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failure_is_shared_too_and_names_the_video(num_workers):
    pool = DecodePool(NaughtyDecoder(), UniformSampler(), Resolution(), num_workers)
    try:
        futures = [pool.submit(ask(id, "bad.mp4"), 4) for id in "123"]
        errors = [future.result(timeout=300).error for future in futures]
    finally:
        pool.close()
    assert errors == ["bad.mp4: has no frame"] * 3


def clip(num_bytes=3):
    return Clip(torch.empty(1, 3, 1, num_bytes // 3, dtype=torch.uint8), (0,), 1.0, 1)


def test_one_that_waits_may_be_cancelled_and_the_others_not():
    shared = SharedClips()
    first, task = shared.join(ask("1"), Request("a"))
    second, joined = shared.join(ask("2"), Request("a"))
    assert joined is None
    assert first.cancel()
    assert shared.begin(task)
    third, _ = shared.join(ask("3"), Request("a"))
    assert not second.cancel()
    assert not third.cancel(), "what is being decoded comes"
    shared.finish(task, clip())
    assert second.result(0).clip is third.result(0).clip is not None
    lonely, task = shared.join(ask("4"), Request("b"))
    lonely.cancel()
    assert not shared.begin(task)
    _, again = shared.join(ask("5"), Request("b"))
    assert again is not None, "a cancelled one is decoded when it is asked for anew"
    shared.fail(again, OSError("no worker"))
    assert shared.join(ask("6"), Request("b"))[1] is not None


def test_few_clips_are_kept_and_few_bytes():
    shared = SharedClips()

    def finish(name, result):
        _, task = shared.join(ask("x"), Request(name))
        shared.begin(task)
        shared.finish(task, result)

    def kept(name):
        _, task = shared.join(ask("x"), Request(name))
        if task is not None:
            shared.cancel(task)
        return task is None

    for i in range(KEPT_CLIPS + 3):
        finish(str(i), f"{i} is bad")
    assert [kept(str(i)) for i in range(5)] == [False, False, False, True, True]
    finish("large", clip(KEPT_BYTES // 2))
    finish("larger", clip(KEPT_BYTES // 2 + 6))
    assert [kept(name) for name in ("5", "large", "larger")] == [False, False, True]
    finish("huge", clip(KEPT_BYTES * 2))
    assert [kept(name) for name in ("larger", "huge")] == [False, True]


def test_many_threads_ask_at_once(tmp_path):
    log = tmp_path / "log"
    pool = DecodePool(CountingDecoder(log), UniformSampler(), Resolution(), num_workers=2)
    try:
        with ThreadPoolExecutor(8) as threads:
            questions = [ask(str(i), f"{i % 4}.mp4") for i in range(64)]
            futures = list(threads.map(lambda q: pool.submit(q, 2), questions))
        assert [f.result(timeout=300).question.id for f in futures] == [q.id for q in questions]
    finally:
        pool.close()
    assert len(log.read_text().splitlines()) == 4


def test_a_request_is_capped_and_has_the_window():
    capped = ask("1", metadata={"max_frames": 64}, start_s=1.0, end_s=3.0)
    assert request_for(capped, 128) == Request("a.mp4", 64, False, Window(1.0, 3.0))
    assert request_for(capped, 32).num_frames == 32
    assert request_for(ask("2", metadata={"max_frames": None}), 128).num_frames == 128
    assert request_for(ask("3", metadata={"fps": "12.5"}), 4, 2.0).frames_fps == 12.5
    assert request_for(ask("4"), 4, 2.0).frames_fps == 2.0
    assert request_for(ask("5", metadata={"fps": "fast"}), 4, 2.0).frames_fps is None
    image = ask("6", is_image=True)
    assert request_for(image, 4) == request_for(image, 8)
