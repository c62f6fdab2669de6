import json

import pytest

from vrts.data.readers.subtitles import Cue, cues_at, read_longvideobench, read_srt
from vrts.types import InputError

SRT = """\ufeff1
00:00:00,000 --> 00:00:02,500
<font color="white" size=".72c">Hi   guys</font>
{\\an8}and girls

2
00:00:02,500 --> 00:00:04,000


3
01:00:04.5 --> 01:00:06.000 align:start
<i>Bye</i>, 3 < 5
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_srt(tmp_path, newline):
    path = tmp_path / "a.srt"
    path.write_bytes(SRT.replace("\n", newline).encode())
    assert read_srt(path) == [
        Cue(0.0, 2.5, "Hi guys and girls"),
        Cue(3604.5, 3606.0, "Bye, 3 < 5"),
    ]


def test_srt_that_is_odd(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(b"00:00:01,000 --> 00:00:02,000\ncaf\xe9\n")
    assert read_srt(path) == [Cue(1.0, 2.0, "caf\ufffd")]
    path.write_bytes(b"")
    assert read_srt(path) == []
    path.write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"a\.srt: has no subtitle"):
        read_srt(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_srt(tmp_path / "none.srt")


def test_cues_at_times():
    cues = [Cue(0, 1, "a"), Cue(1, 2, "b"), Cue(2, 3, "b"), Cue(3, 9, "c"), Cue(9, 9.5, "a")]
    assert [cue.text for cue in cues_at(cues, [0.5, 0.6, 2.5, 9.0])] == ["a", "b", "a"]
    assert [cue.start_s for cue in cues_at(cues, [1.0, 2.0, 4.0])] == [1, 3]
    assert cues_at([], [1.0]) == []


def test_longvideobench(tmp_path):
    path = tmp_path / "a.json"
    rows = [
        {"start": "00:01:00.5", "end": "00:01:02", "line": "one"},
        {"timestamp": [62.0, 63.5], "text": "two"},
        {"timestamp": [64, None], "text": "three"},
        {"timestamp": [65.0, 66.0], "text": " "},
    ]
    path.write_text(json.dumps(rows))
    assert read_longvideobench(path, start_s=60.0, duration_s=10.0) == [
        Cue(0.5, 2.0, "one"), Cue(2.0, 3.5, "two"), Cue(4.0, 10.0, "three"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", '["x"]', '[{"text": "x"}]', '[{"timestamp": [1], "text": "x"}]',
     '[{"start": "soon", "end": "00:00:01", "line": "x"}]'],
)  # fmt: skip
def test_damaged_longvideobench(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json: is not LongVideoBench's subtitle JSON"):
        read_longvideobench(path, 0.0, 1.0)
