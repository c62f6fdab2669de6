import json

import pytest

from vrts.data.readers.longvideobench import LongVideoBenchReader
from vrts.types import InputError

ROW = {
    "video_id": "abc",
    "id": "abc_0",
    "video_path": "abc.mp4",
    "question": "Who?",
    "candidates": ["he", "she", "they"],
    "correct_choice": 1,
    "subtitle_path": "abc_en.json",
    "duration_group": 15,
    "question_category": "S2E",
    "topic_category": "NP-News-Programs",
    "level": "L1-Perception",
    "starting_timestamp_for_subtitles": 100.0,
    "duration": 10.0,
}


def as_parquet(row):
    options = row["candidates"] + ["N/A"] * (5 - len(row["candidates"]))
    rest = {key: value for key, value in row.items() if key != "candidates"}
    return rest | {f"option{i}": option for i, option in enumerate(options)}


@pytest.mark.parametrize("name", ["lvb_val.json", "validation-00000-of-00001.parquet"])
@pytest.mark.parametrize("folder", ["", "videos/"])
def test_rows(write, touch, name, folder):
    videos = touch(f"{folder}abc.mp4")
    row = as_parquet(ROW) if name.endswith("parquet") else ROW
    five = row | {"id": "abc_1", "correct_choice": 0}
    first, second = LongVideoBenchReader(write([row, five], name), videos).read()
    assert (first.id, first.text, first.gold) == ("abc_0", "Who?", "B")
    assert first.options == ("he", "she", "they")
    assert first.video == f"{videos}/{folder}abc.mp4"
    assert first.metadata["breakdown"] == {
        "duration_group": "15", "question_category": "S2E", "topic_category": "NP-News-Programs",
    }  # fmt: skip
    assert first.metadata["max_frames"] == 128
    assert first.metadata["level"] == "L1-Perception"
    assert second.gold == "A"


def test_the_test_files_have_no_answers(write, touch):
    absent = {key: ROW[key] for key in ROW if key != "correct_choice"}
    rows = [absent, ROW | {"id": "abc_1", "correct_choice": -1}]
    questions = LongVideoBenchReader(write(rows), touch("abc.mp4")).read()
    assert [question.gold for question in questions] == [None, None]


def test_subtitles_are_those_of_the_frames_in_the_times_of_the_clip(write, touch, tmp_path):
    cues = [
        {"start": "00:00:50.000", "end": "00:00:51.000", "line": "before the clip"},
        {"start": "00:01:39.000", "end": "00:01:41.000", "line": "one"},
        {"start": "00:01:42.100", "end": "00:01:44.900", "line": "between"},
        {"start": "00:01:44.800", "end": "00:01:44.900", "line": "short"},
        {"start": "00:01:50.500", "end": "00:01:52.000", "line": "behind the clip"},
    ]
    (tmp_path / "abc_en.json").write_text(json.dumps(cues))
    head = "Subtitles of the video, each with the second at which it begins:\n"

    def text(**options):
        path = write([ROW])
        videos = touch("abc.mp4")
        return LongVideoBenchReader(path, videos, subtitles=str(tmp_path), **options).read()[0].text

    # two frames, at 0 and 5 s; a short subtitle counts for a second
    assert text(subtitle_frames=2) == f"{head}[0.0] one\n[4.8] short\nWho?"
    # never more frames than seconds
    sampled = f"{head}[0.0] one\n[2.1] between\n[4.8] short\nWho?"
    assert text() == sampled
    assert text(subtitle_frames=None) == sampled


def test_a_missing_subtitle_file_is_a_bad_row(write, touch, tmp_path):
    path, videos = write([ROW], "rows.jsonl"), touch("abc.mp4")
    with pytest.raises(InputError, match=r"rows\.jsonl:1: .*abc_en\.json: cannot be read"):
        LongVideoBenchReader(path, videos, subtitles=str(tmp_path)).read()
    with pytest.raises(InputError, match="no such folder; set subtitles"):
        LongVideoBenchReader(path, videos, subtitles=str(tmp_path / "none")).read()
    path = write([ROW | {"duration": "long"}], "rows.jsonl")
    (tmp_path / "abc_en.json").write_text("[]")
    with pytest.raises(InputError, match="'duration' must be a number, got 'long'"):
        LongVideoBenchReader(path, videos, subtitles=str(tmp_path)).read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_choice": 3}, "correct_choice is 3, expected 0 to 2"),
        ({"correct_choice": "B"}, "correct_choice is 'B', expected 0 to 2"),
        ({"candidates": ["he"]}, "needs 2 to 26 options, got 1"),
        ({"candidates": "he"}, "'candidates' must be a list of texts"),
        ({"duration_group": None}, "'duration_group' is missing"),
        ({"id": "abc_0"}, "already taken by"),
    ],
)
def test_bad_rows_name_file_line_and_fault(write, touch, change, message):
    path = write([ROW, ROW | {"id": "2"} | change], "rows.jsonl")
    with pytest.raises(InputError) as caught:
        LongVideoBenchReader(path, touch("abc.mp4")).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_a_gap_in_the_options_of_parquet(write, touch):
    path = write([as_parquet(ROW) | {"option1": "N/A"}], "rows.parquet")
    with pytest.raises(InputError, match="'option1' is missing before later ones"):
        LongVideoBenchReader(path, touch("abc.mp4")).read()
