"""What runs depend on, as recorded: another file or option is seen, and named."""

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data.plugins import FakeDecoder, ListReader
from vrts.data.datamodule import VideoQADataModule
from vrts.data.readers.longvideobench import LongVideoBenchReader
from vrts.data.readers.plain import PlainReader
from vrts.data.readers.video_rts import VideoRTSReader
from vrts.data.readers.videommmu import VideoMMMUReader
from vrts.data.video.cache import FrameCache
from vrts.data.video.decord import DecordDecoder
from vrts.data.video.resolution import Resolution
from vrts.files.fingerprints import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    describe,
    folder_digests,
    sampled_digest,
    yaml_line,
)


def fingerprint(reader, **options):
    found = VideoQADataModule(predict=reader, **options).fingerprint()
    assert json.loads(json.dumps(found)) == found, "plain JSON values"
    return found


def changed(a, b):
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def test_the_annotation_file_counts_by_its_content(tmp_path):
    path, moved = tmp_path / "mine.csv", tmp_path / "elsewhere" / "mine.csv"
    path.write_text("video,question\na.mp4,What?\n")
    before = fingerprint(PlainReader(str(path), str(tmp_path)))
    assert before["reader"] == "PlainReader"
    assert before["reader.path"].startswith("mine.csv sha256:")
    moved.parent.mkdir()
    path.rename(moved)
    assert fingerprint(PlainReader(str(moved), str(tmp_path))) == before
    moved.write_text("video,question\na.mp4,Who?\n")
    after = fingerprint(PlainReader(str(moved), str(tmp_path)))
    assert changed(before, after) == {"reader.path"}


def test_each_option_of_a_reader_is_named(tmp_path):
    (tmp_path / "lvb.json").write_text("[]")
    (tmp_path / "map.json").write_text('{"*": "a.mp4"}')
    make = LongVideoBenchReader
    path = str(tmp_path / "lvb.json")
    before = fingerprint(make(path))
    assert changed(before, fingerprint(make(path, limit=3))) == set()
    for option, value in {
        "video_root": str(tmp_path), "subtitles": str(tmp_path), "subtitle_frames": 64,
    }.items():  # fmt: skip
        assert changed(before, fingerprint(make(path, **{option: value}))) == {f"reader.{option}"}
    several = fingerprint(VideoMMMUReader([path, str(tmp_path / "map.json")]))
    assert [text.partition(" ")[0] for text in several["reader.paths"]] == ["lvb.json", "map.json"]
    mapped = VideoRTSReader(path, video_map=str(tmp_path / "map.json"))
    first = fingerprint(mapped)
    (tmp_path / "map.json").write_text('{"*": "b.mp4"}')
    assert changed(first, fingerprint(mapped)) == {"reader.video_map"}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"decoder": DecordDecoder()}, "decoder"),
        ({"resolution": Resolution(short_side=224)}, "resolution"),
        ({"frames_fps": 2.0}, "frames_fps"),
        ({"max_damaged": 0.2}, "max_damaged"),
    ],
)
def test_what_clips_depend_on_is_recorded(options, key):
    assert changed(fingerprint(ListReader()), fingerprint(ListReader(), **options)) == {key}


def test_what_changes_no_clip_is_not_recorded(tmp_path):
    plain = fingerprint(ListReader())
    options = {"num_workers": 7, "deadline_s": 5.0, "cache": FrameCache(str(tmp_path))}
    assert fingerprint(ListReader(), **options) == plain
    assert plain["decoder"] == {"class": "PyAVDecoder"}
    assert plain["reader"] == "tests.data.plugins.ListReader"
    assert (plain["reader.count"], plain["reader.prefix"]) == (10, "q")


def test_any_object_is_described():
    @dataclass
    class Part:
        size: int = 3
        _secret: int = 4

    class Whole:
        def __init__(self):
            self.parts = (Part(), None, 1.5, True)
            self.table = {1: Path("a/b")}
            self.names = {"b", "a"}
            self._memo = object()

    found = describe(Whole())
    name = found.pop("class")
    assert name.endswith("Whole")
    assert found == {
        "parts": [{"class": found["parts"][0]["class"], "size": 3}, None, 1.5, True],
        "table": {"1": "a/b"},
        "names": ["a", "b"],
    }
    assert describe(FakeDecoder()) == {"class": "tests.data.plugins.FakeDecoder"}


def video_digest(path):
    """As the cache of frames distinguishes videos."""
    return sampled_digest(path, with_time=True)


def write_at(path, place, data, mtime_ns=None):
    """Change a file in place, at another time or as if at none."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)
    os.utime(path, ns=(state.st_atime_ns, mtime_ns or state.st_mtime_ns))


@pytest.mark.parametrize("seed", range(3))
def test_a_video_that_changed_has_another_digest(tmp_path, seed):
    """Of a small one every byte counts; of a large one every time of change, and many bytes."""
    rng = random.Random(seed)
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(rng.randbytes(NUM_BLOCKS * BLOCK_BYTES - rng.randrange(5)))
    with large.open("wb") as file:
        file.truncate(NUM_BLOCKS * BLOCK_BYTES * rng.randrange(2, 50) + rng.randrange(9))
    seen = set()
    size = large.stat().st_size
    places = {small: rng.randrange(small.stat().st_size), large: 0}
    for path in (small, large):
        seen.add(video_digest(path))
        write_at(path, places[path], b"x" if path.read_bytes()[places[path]] != 120 else b"y")
        seen.add(video_digest(path))
    assert len(seen) == 4
    write_at(large, size - 1, b"y")
    seen.add(video_digest(large))
    write_at(large, rng.randrange(size), b"z", large.stat().st_mtime_ns + 1)
    seen.add(video_digest(large))
    with large.open("ab") as file:
        file.write(b"z")
    seen.add(video_digest(large))
    assert len(seen) == 7
    shutil.copy2(large, tmp_path / "copy.mp4")
    shutil.copy(small, tmp_path / "small copy.mp4")
    assert {video_digest(tmp_path / name) for name in ("copy.mp4", "small copy.mp4")} < seen


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux, which counts reads")
def test_little_of_a_long_film_is_read(tmp_path):
    path = tmp_path / "film.mkv"
    with path.open("wb") as file:
        file.truncate(2**33)

    def num_bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = num_bytes_read()
    assert len(video_digest(path)) == 64
    assert num_bytes_read() - before < 2 * NUM_BLOCKS * BLOCK_BYTES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_large", [False, True])
def test_it_is_that_of_the_content_whenever_it_was_written(tmp_path, seed, is_large):
    rng = random.Random(seed)
    size = NUM_BLOCKS * BLOCK_BYTES + (rng.randrange(1, 10**6) if is_large else -rng.randrange(9))
    path, copy = tmp_path / "one", tmp_path / "two"
    path.write_bytes(rng.randbytes(size))
    shutil.copy(path, copy)
    os.utime(copy, (1e9, 1e9))
    assert sampled_digest(copy) == sampled_digest(path)
    assert (sampled_digest(copy, True) == sampled_digest(path, True)) != is_large
    content = bytearray(path.read_bytes())
    for place in (0, size - 1):  # in the first and in the last block
        content[place] ^= 1
        copy.write_bytes(content)
        assert sampled_digest(copy) != sampled_digest(path)
        content[place] ^= 1
    copy.write_bytes(content + b"x")
    assert sampled_digest(copy) != sampled_digest(path)


def test_of_a_folder_files_that_are_asked_for(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "c.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d.safetensors").mkdir()
    found = folder_digests(tmp_path, "*.safetensors")
    assert list(found) == ["a.safetensors", "b.safetensors"]
    assert found["a.safetensors"] == sampled_digest(tmp_path / "a.safetensors")
    assert len(set(folder_digests(tmp_path).values())) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), ([], "[]"), (0, "0"), (False, "false"), (1e-06, "1.0e-06"), ("a b", "a b"),
        ([4, 8], "[4, 8]"), ({"class": "Majority"}, "{class: Majority}"), ("視频", "視频"),
        ({"class": "Decoder", "decoders": [{"class": "A"}, {"class": "B" * 200, "n": 3}]},
         f"{{class: Decoder, decoders: [{{class: A}}, {{class: {'B' * 200}, n: 3}}]}}"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_in_a_configuration(value, text):
    assert yaml_line(value) == text
