"""JSON Lines whose last line may be torn."""

import errno
import json
import math

import pytest

from tests.files.test_writing import room_for
from vrts.files.json_lines import (
    append_lines,
    append_steps,
    cut_torn_line,
    keep_steps,
    read_steps,
    whole_lines,
)
from vrts.types import InputError

WHOLE = '{"step": 1, "text": "a\u2028é"}\n{"step": 2, "value": NaN}\n'


@pytest.mark.parametrize("rest", ["", "{", '{"step": 3}', "é"])
def test_what_is_behind_the_last_line_break_is_no_line(tmp_path, rest):
    path = tmp_path / "a.jsonl"
    path.write_bytes((WHOLE + rest).encode()[: -1 if rest == "é" else None])
    assert [source for source, _ in whole_lines(path)] == [f"{path}:1", f"{path}:2"]
    first, second = read_steps(path)
    assert first == {"step": 1, "text": "a\u2028é"}
    assert math.isnan(second["value"])
    cut_torn_line(path)
    assert path.read_text(encoding="utf-8") == WHOLE


def test_lines_that_found_no_room_are_cut_off_and_written_again(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"step": i, "text": "x" * 50} for i in range(9)]
    append_lines(path, lines[:2])
    with room_for(300), pytest.raises(OSError, match=str(path)) as caught:
        append_lines(path, lines[2:])
    assert caught.value.errno == errno.EFBIG
    assert path.stat().st_size == 300
    cut_torn_line(path)
    done = sum(1 for _ in whole_lines(path))
    assert 2 <= done < 9
    append_lines(path, lines[done:])
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines


def test_steps_behind_a_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "a.jsonl"
    append_steps(path, [{"step": step, "n": n} for step in (1, 2, 2, 5) for n in range(2)])
    with path.open("a") as file:
        file.write('{"step": 5, "n"')
    keep_steps(path, 4)
    assert [(line["step"], line["n"]) for line in read_steps(path)] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    keep_steps(path, 0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("bad", ["nonsense", "[1]", "{}", '{"step": "1"}', ""])
def test_a_line_of_something_else_is_named_and_stays(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    text = f'{{"step": 1}}\n{bad}\n'
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{path}:2: not a line that vrts fit wrote"):
        keep_steps(path, 9)
    assert path.read_text() == text
    assert [other.name for other in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_training_run_is_told_what_to_do_about_a_full_disk(tmp_path):
    path = tmp_path / "a.jsonl"
    message = rf"cannot write {path} \(File too large\); .*--ckpt_path last"
    with room_for(10), pytest.raises(InputError, match=message):
        append_steps(path, [{"step": 1, "text": "x" * 100}])
