"""Decoded frames on disk: found by content, bounded, and safe against damage and concurrent use."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

import vrts.data.video.cache as cache_module
from tests.data.plugins import FakeDecoder, ListReader
from tests.forked import forked_each
from tests.permissions import permissions_count
from vrts.data.datamodule import VideoQADataModule
from vrts.data.video.cache import CachingDecoder, FrameCache
from vrts.data.video.frames import WHOLE, UniformSampler, Window
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, InputError, VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=4 * 28 * 28)


class Counting(PyAVDecoder):
    def __init__(self):
        self._calls = []

    def decode(self, path, num_frames, sampler, resolution, window=WHOLE):
        self._calls.append(path)
        return super().decode(path, num_frames, sampler, resolution, window)


@pytest.fixture
def cache(tmp_path):
    made = FrameCache(str(tmp_path / "cache"), 1.0)
    made.prepare()
    return made


def entries(cache):
    return sorted(cache.folder.joinpath("clips").iterdir(), key=lambda file: file.stat().st_mtime)


def decode(decoder, path, num_frames=4, resolution=SMALL, window=WHOLE):
    return decoder.decode(str(path), num_frames, UniformSampler(), resolution, window)


def same(a, b):
    return torch.equal(a.frames, b.frames) and (
        (a.frame_indices, a.fps, a.num_source_frames, a.times_s)
        == (b.frame_indices, b.fps, b.num_source_frames, b.times_s)
    )


def test_a_clip_is_decoded_once_for_each_of_what_it_depends_on(tmp_path, cache, make_video):
    path = make_video(tmp_path / "a.mp4")
    inner = Counting()
    decoder = CachingDecoder(inner, cache)
    variants = [
        {}, {"num_frames": 6}, {"window": Window(0.5)}, {"window": Window(0.5, 1.2)},
        {"resolution": Resolution(min_pixels=28 * 28, max_pixels=28 * 28)},
    ]  # fmt: skip
    first = [decode(decoder, path, **variant) for variant in variants]
    assert len(inner._calls) == len(entries(cache)) == len(variants)
    again = [decode(decoder, path, **variant) for variant in variants]
    assert len(inner._calls) == len(variants)
    for a, b, variant in zip(first, again, variants, strict=True):
        assert same(a, b)
        assert same(b, decode(PyAVDecoder(), path, **variant))


def test_it_is_the_content_that_counts(tmp_path, cache, make_video):
    path = Path(make_video(tmp_path / "a.mp4"))
    inner = Counting()
    decoder = CachingDecoder(inner, cache)
    decode(decoder, path)
    shutil.copy(path, tmp_path / "other name.mp4")
    decode(decoder, tmp_path / "other name.mp4")
    assert len(inner._calls) == 1
    state = path.stat()
    make_video(path, num_frames=12)
    path.write_bytes(path.read_bytes().ljust(state.st_size, b"\0")[: state.st_size])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert decode(decoder, path).num_source_frames == 12
    assert len(inner._calls) == 2


def test_a_clip_of_a_video_that_changed_meanwhile_is_not_kept(tmp_path, cache, make_video):
    path = Path(make_video(tmp_path / "a.mp4"))
    old = path.read_bytes()

    class Replaced(PyAVDecoder):
        def decode(self, *args):
            make_video(path, num_frames=12)
            return super().decode(*args)

    assert decode(CachingDecoder(Replaced(), cache), path).num_source_frames == 12
    assert entries(cache) == []
    path.write_bytes(old)
    found = decode(CachingDecoder(PyAVDecoder(), cache), path)
    assert same(found, decode(PyAVDecoder(), path))


def test_failures_are_not_kept(tmp_path, cache):
    (tmp_path / "a.mp4").write_text("no video")
    for _ in range(2):
        with pytest.raises(VideoError, match=r"a\.mp4"):
            decode(CachingDecoder(Counting(), cache), tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file"):
        decode(CachingDecoder(Counting(), cache), tmp_path / "gone.mp4")
    assert entries(cache) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bit", "header"])
def test_a_damaged_entry_is_removed_and_decoded_again(tmp_path, cache, make_video, damage):
    path = make_video(tmp_path / "a.mp4")
    inner = Counting()
    decoder = CachingDecoder(inner, cache)
    right = decode(decoder, path)
    (entry,) = entries(cache)
    data = bytearray(entry.read_bytes())
    if damage == "bit":
        data[-100] ^= 1
    elif damage == "header":
        data[:8] = b"\xff" * 8
    else:
        data = {"cut": data[: len(data) // 2], "empty": b"", "text": b"text" * 99}[damage]
    entry.write_bytes(data)
    assert cache.load(entry.stem) is None
    assert entries(cache) == []
    assert same(decode(decoder, path), right)
    assert len(inner._calls) == 2
    assert same(decode(decoder, path), right)
    assert len(inner._calls) == 2


def clip(level):
    frames = torch.full((2, 3, 28, 28), level, dtype=torch.uint8)
    return Clip(frames, (0, 1), 5.0, 2, (0.0, 0.2))


def test_the_least_recently_used_go_first(tmp_path):
    cache = FrameCache(str(tmp_path), 3.5 * (2 * 3 * 28 * 28 + 300) / 2**30)
    cache.prepare()
    for i, key in enumerate("abc"):
        cache.store(key, clip(i))
        os.utime(cache.folder / "clips" / f"{key}.clip", (i, i))
    assert same(cache.load("a"), clip(0))
    cache.store("d", clip(3))
    assert sorted(file.stem for file in entries(cache)) == ["a", "c", "d"]
    total = sum(file.stat().st_size for file in entries(cache))
    assert total <= cache.max_bytes
    too_large = Clip(torch.zeros(8, 3, 56, 56, dtype=torch.uint8), (0,) * 8, 5.0, 2)
    cache.store("e", too_large)
    assert sorted(file.stem for file in entries(cache)) == ["a", "c", "d"]


def test_what_a_killed_process_left_is_removed_after_a_while(cache):
    for name, age_s in (("old", cache_module.STALE_S + 60), ("new", 0)):
        part = cache.folder / "clips" / f"{name}.clip.1.1.part"
        part.write_bytes(b"half")
        os.utime(part, (part.stat().st_mtime - age_s,) * 2)
    cache.store("a", clip(1))
    names = [file.name for file in entries(cache)]
    assert "new.clip.1.1.part" in names
    assert "old.clip.1.1.part" not in names
    assert cache.load("new") is None


def share(folder, max_gib, step):
    """Store and load many clips; print how many were found."""
    cache = FrameCache(folder, max_gib)
    hits = 0
    for turn in range(150):
        key = f"k{(turn * step) % 12}"
        found = cache.load(key)
        hits += found is not None
        assert found is None or same(found, clip(int(key[1:])))
        cache.store(key, clip(int(key[1:])))
    print(hits)  # noqa: T201 what the test reads


def test_several_processes_share_a_folder(tmp_path):
    """They write, read and remove the same entries at once; none reads a wrong one."""
    max_gib = 6 * 6000 / 2**30
    cache = FrameCache(str(tmp_path / "cache"), max_gib)
    cache.prepare()
    calls = [(share, (str(tmp_path / "cache"), max_gib, step), {}) for step in (1, 5, 7)]
    with forked_each(tmp_path / "log", calls) as processes:
        processes.succeed()
        assert sum(map(int, processes.text().split())) > 0, "some was found"
    cache.store("last", clip(1))
    assert sum(file.stat().st_size for file in entries(cache)) <= cache.max_bytes


def test_the_data_module_uses_it_in_workers(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4")
    cache = FrameCache(str(tmp_path / "cache"))
    loaded = []
    for _ in range(2):
        data = VideoQADataModule(
            predict=ListReader(1, video=path), resolution=SMALL, num_workers=1, cache=cache
        )
        data.setup("predict")
        loaded += data.load(data.questions("predict"), 4)
        data.close()
    assert len(entries(cache)) == 1
    assert same(loaded[0].clip, loaded[1].clip)


def test_an_unusable_folder_is_named_before_anything_is_decoded(tmp_path):
    (tmp_path / "file").write_text("")
    data = VideoQADataModule(
        predict=ListReader(1), decoder=FakeDecoder(), cache=FrameCache(str(tmp_path / "file" / "x"))
    )
    with pytest.raises(InputError, match=r"data\.cache\.folder: .*file"):
        data.setup("predict")


def test_where_nothing_can_be_written_the_clip_comes_with_a_warning(tmp_path, cache, make_video):
    path = make_video(tmp_path / "a.mp4")
    shutil.rmtree(cache.folder)
    with pytest.warns(UserWarning, match=r"data\.cache\.folder: .* are kept \(No such file"):
        found = decode(CachingDecoder(Counting(), cache), path)
    assert same(found, decode(PyAVDecoder(), path))


def test_a_folder_without_permission_is_named(cache):
    (cache.folder / "clips").chmod(0o500)
    with permissions_count(), pytest.raises(InputError, match=r"cannot use .*Permission den"):
        cache.prepare()


def test_a_folder_that_only_others_may_write_to_is_used_as_it_is(tmp_path, cache, make_video):
    path = make_video(tmp_path / "a.mp4")
    inner = Counting()
    decoder = CachingDecoder(inner, cache)
    right = decode(decoder, path)
    (entry,) = entries(cache)
    entry.chmod(0o400)
    (cache.folder / "clips").chmod(0o500)
    refused = pytest.warns(UserWarning, match=r"not all clips are kept \(Permission denied\)")
    with permissions_count():
        assert same(decode(decoder, path), right)
        assert len(inner._calls) == 1
        with refused:
            assert decode(decoder, path, num_frames=6).num_frames == 6
    entry.chmod(0o600)
    entry.write_bytes(b"damaged")
    with permissions_count(), refused:
        assert same(decode(decoder, path), right)
    assert entries(cache) == [entry]


@pytest.mark.parametrize(
    "words",
    [
        ["--data.cache.folder=frames", "--data.cache.max_gib=2"],
        ['--data.cache={"folder": "frames", "max_gib": 2}'],
    ],
)
def test_it_is_injected_by_its_options(words):
    parser = ArgumentParser()
    parser.add_class_arguments(VideoQADataModule, "data")
    data = parser.instantiate_classes(parser.parse_args(words)).data
    assert (data.cache.folder, data.cache.max_bytes) == (Path("frames"), 2 * 2**30)
