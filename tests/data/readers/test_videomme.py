import pytest

from vrts.data.readers.videomme import VideoMMEReader, container_duration_s
from vrts.types import InputError

ROW = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=abc",
    "videoID": "abc",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "Which one?",
    "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. None."],
    "answer": "C",
}


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "videomme.json"])
@pytest.mark.parametrize("video", ["abc.mp4", "data/abc.mp4", "data/abc.mkv", "abc.MP4"])
def test_rows(write, touch, name, video):
    videos = touch(video)
    path = write([ROW, ROW | {"question_id": "001-2", "answer": "A"}], name)
    first, second = VideoMMEReader(path, videos).read()
    assert (first.id, first.text, first.gold) == ("001-1", "Which one?", "C")
    assert first.options == ("Apples.", "Candles.", "Berries.", "None.")
    assert first.video == second.video == f"{videos}/{video}"
    assert first.metadata["breakdown"] == {
        "duration": "short", "domain": "Knowledge", "sub_category": "Humanity & History",
        "task": "Counting Problem",
        "duration x domain x task": "short x Knowledge x Counting Problem",
    }  # fmt: skip
    assert first.metadata["max_frames"] == 128
    assert first.metadata["video_id"] == "001"
    assert second.source == (f"{path}:2" if name.endswith("parquet") else f"{path}: item 2")
    assert len(VideoMMEReader(path, videos, limit=1).read()) == 1


def srt(*texts):
    """Cues of two seconds, one after the other."""
    times = [f"00:00:{2 * i:02},000 --> 00:00:{2 * i + 2:02},000" for i in range(len(texts))]
    return "\n\n".join(f"{i}\n{t}\n{x}" for i, (t, x) in enumerate(zip(times, texts, strict=True)))


def test_subtitles_of_the_frames_stand_before_the_question(write, touch, tmp_path, make_video):
    make_video(tmp_path / "videos" / "abc.mp4", num_frames=64, fps=8)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "abc.srt").write_text(srt("one", "two", "three", "four", "five"))
    path = write([ROW, ROW | {"question_id": "2", "videoID": "other"}], "videomme.parquet")

    def texts(**options):
        reader = VideoMMEReader(path, str(tmp_path / "videos"), **options)
        return [question.text for question in reader.read()]

    folder = str(tmp_path / "subtitle")
    head = "This video's subtitles are listed below:\n"
    assert texts() == ["Which one?"] * 2
    # the clip lasts 8 s: frames are at 0, 4, 8 s
    assert texts(subtitles=folder, subtitle_frames=3) == [
        f"{head}one\nthree\nfive\nWhich one?", "Which one?",
    ]  # fmt: skip
    everything = f"{head}one\ntwo\nthree\nfour\nfive\nWhich one?"
    assert texts(subtitles=folder, subtitle_frames=None)[0] == everything
    assert texts(subtitles=folder)[0] == everything


def test_subtitles_last_as_long_as_a_video_that_is_not_readable(write, touch, tmp_path):
    (tmp_path / "abc.srt").write_text(srt("one", "two", "three", "four", "five"))
    videos = touch("abc.mp4")
    reader = VideoMMEReader(write([ROW]), videos, subtitles=str(tmp_path), subtitle_frames=2)
    assert reader.read()[0].text == reader.read()[0].text
    assert "one\nWhich" in reader.read()[0].text
    assert container_duration_s(f"{videos}/abc.mp4") is None
    assert container_duration_s(f"{videos}/none.mp4") is None


def test_wrong_folders_of_subtitles(write, touch, tmp_path):
    videos = touch("abc.mp4")
    with pytest.raises(InputError, match=r"no such folder; set subtitles to .* the subtitles"):
        VideoMMEReader(write([ROW]), videos, subtitles=str(tmp_path / "none")).read()
    with pytest.raises(InputError, match="no subtitles of any video"):
        VideoMMEReader(write([ROW]), videos, subtitles=str(tmp_path)).read()
    (tmp_path / "abc.srt").write_text("<html>")
    with pytest.raises(InputError, match=r"rows\.jsonl:1: .*abc\.srt: has no subtitle"):
        VideoMMEReader(write([ROW], "rows.jsonl"), videos, subtitles=str(tmp_path)).read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": "endless"}, "unknown duration 'endless'; one of short, medium, long"),
        ({"domain": None}, "'domain' is missing"),
        ({"task_type": ""}, "'task_type' is empty"),
        ({"options": None}, "needs 2 to 26 options, got 0"),
        ({"options": ["A. x", "B. y"]}, "answer 'C' is none of the letters AB"),
        ({"answer": "E"}, "answer 'E' is none of the letters ABCD"),
        ({"question_id": "001-1"}, "already taken by"),
    ],
)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_bad_rows_name_file_row_and_fault(write, touch, name, change, message):
    path = write([ROW, ROW | {"question_id": "2"} | change], name)
    with pytest.raises(InputError) as caught:
        VideoMMEReader(path, touch("abc.mp4")).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)
