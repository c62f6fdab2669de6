"""What a prediction run depends on, as recorded: another file or option is seen, and named."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data.plugins import FakeDecoder, ListReader
from vrts.data.benchmarks.longvideobench import LongVideoBenchReader
from vrts.data.benchmarks.plain import PlainReader
from vrts.data.benchmarks.videommmu import VideoMMMUReader
from vrts.data.cache import FrameCache
from vrts.data.content import describe
from vrts.data.datamodule import VideoQADataModule
from vrts.data.pyav_decoder import PyAVDecoder
from vrts.data.readers import VideoRTSReader
from vrts.data.resolution import Resolution


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
        ({"decoder": PyAVDecoder()}, "decoder"),
        ({"resolution": Resolution(short_side=224)}, "resolution"),
        ({"frames_fps": 2.0}, "frames_fps"),
    ],
)
def test_what_clips_depend_on_is_recorded(options, key):
    assert changed(fingerprint(ListReader()), fingerprint(ListReader(), **options)) == {key}


def test_what_changes_no_clip_is_not_recorded(tmp_path):
    plain = fingerprint(ListReader())
    options = {"num_workers": 7, "deadline_s": 5.0, "cache": FrameCache(str(tmp_path))}
    assert fingerprint(ListReader(), **options) == plain
    assert plain["decoder"]["decoders"] == [{"class": "DecordDecoder"}, {"class": "PyAVDecoder"}]
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
