"""Lines of predictions.jsonl: exactly the issue's schema, and whole lines whatever happened."""

import dataclasses
import json

import pytest

from tests.callbacks.plugins import ask
from vrts.callbacks.records import prediction_line, read_lines, read_other_run
from vrts.types import InputError, Prediction, Round

ROUNDS = (
    Round(
        4, ("<answer>A</answer>", "Hm?"), ("A", None), 1 / 3,
        (0.0, 1 / 3, 2.0, 3.0), (9, 3), (-0.1234, -2.0), (False, True),
    ),
    Round(8, ("<answer>B</answer>", "**B**"), ("B", "B"), 1.0, is_last=True, num_damaged=1),
)  # fmt: skip


def test_the_line_of_an_answer():
    line = prediction_line(Prediction(ask("q", "v.mp4", "B"), ROUNDS, "B", correct=True))
    assert line == {
        "id": "q",
        "answer": "B",
        "prediction": "B",
        "correct": True,
        "num_frames": 8,
        "damaged": 1,
        "rounds": [
            {
                "num_frames": 4,
                "times_s": [0.0, 0.3333, 2.0, 3.0],
                "completions": ["<answer>A</answer>", "Hm?"],
                "answers": ["A", None],
                "agreement": 0.3333,
                "num_tokens": [9, 3],
                "mean_logprobs": [-0.1234, -2.0],
                "abandoned": [False, True],
                "is_last": False,
                "damaged": 0,
            },
            {
                "num_frames": 8,
                "times_s": [],
                "completions": ["<answer>B</answer>", "**B**"],
                "answers": ["B", "B"],
                "agreement": 1.0,
                "num_tokens": [],
                "mean_logprobs": [],
                "abandoned": [],
                "is_last": True,
                "damaged": 1,
            },
        ],
        "status": "ok",
        "error": None,
        "question": "What colour very q?",
        "options": ["red", "green", "blue"],
        "problem_type": "multiple choice",
        "video": "v.mp4",
        "breakdown": {},
    }
    assert list(line) == [
        "id", "answer", "prediction", "correct", "num_frames", "damaged", "rounds", "status",
        "error", "question", "options", "problem_type", "video", "breakdown",
    ]  # fmt: skip
    assert json.loads(json.dumps(line)) == line


def test_the_line_of_a_failure():
    failed = Prediction(ask("q", "v.mp4", None), error="v.mp4: no such file")
    assert prediction_line(failed) == {
        "id": "q",
        "answer": None,
        "prediction": None,
        "correct": None,
        "num_frames": 0,
        "damaged": 0,
        "rounds": [],
        "status": "failed",
        "error": "v.mp4: no such file",
        "question": "What colour very q?",
        "options": ["red", "green", "blue"],
        "problem_type": "multiple choice",
        "video": "v.mp4",
        "breakdown": {},
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"duration": "short", "domain": "Art"}, {"duration": "short", "domain": "Art"}),
        ({"level": 3}, {"level": "3"}),
        ("of a car", {}),
    ],
)
def test_a_line_has_the_breakdown_of_its_question(given, kept):
    question = dataclasses.replace(ask("q", "v.mp4"), metadata={"breakdown": given})
    assert prediction_line(Prediction(question, error="lost"))["breakdown"] == kept


def line(id: str) -> str:
    failed = Prediction(dataclasses.replace(ask("q", "v.mp4", None), id=id), error="lost")
    return json.dumps(prediction_line(failed), ensure_ascii=False)


def test_no_file_has_no_lines(tmp_path):
    assert list(read_lines(tmp_path / "predictions.jsonl")) == []
    assert not (tmp_path / "predictions.jsonl").exists()


@pytest.mark.parametrize("rest", ["", '{"id": "c", "rou', "{", "视", line("c")])
def test_what_is_behind_the_last_line_break_is_cut_off(tmp_path, rest):
    path = tmp_path / "predictions.jsonl"
    name = "b \u2028 视频"  # no line break of JSON Lines, though str.splitlines takes it for one
    whole = f"{line('a')}\n{line(name)}\n"
    path.write_bytes((whole + rest).encode()[: -1 if rest == "视" else None])
    assert [found["id"] for found in read_lines(path)] == ["a", name]
    assert path.read_text(encoding="utf-8") == whole


def test_a_file_with_nothing_whole_is_emptied(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a"')
    assert list(read_lines(path)) == []
    assert path.read_text() == ""


@pytest.mark.parametrize("bad", ["nonsense", "[1]", '{"id": "a"}', "", '"id rounds status"'])
def test_a_whole_line_that_is_not_ours_is_named(tmp_path, bad):
    path = tmp_path / "predictions.jsonl"
    path.write_text(f"{line('a')}\n{bad}\n{line('c')}\n")
    with pytest.raises(InputError, match=rf"{path}:2: .*repair or remove"):
        list(read_lines(path))
    with pytest.raises(InputError, match=rf"{path}:2: .*give Some.option another file"):
        list(read_other_run(path, "Some.option"))
    assert len(path.read_text().splitlines()) == 3, "the file stays as it is"


@pytest.mark.parametrize("field", ["video", "breakdown"])
def test_a_line_of_an_older_version_is_refused(tmp_path, field):
    older = json.loads(line("a"))
    del older[field]
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(older) + "\n")
    with pytest.raises(InputError, match=rf"{path}:1: .*an older version"):
        list(read_lines(path))


def test_the_file_of_another_run_stays_as_it_is(tmp_path):
    path = tmp_path / "predictions.jsonl"
    text = f'{line("a")}\n{{"id": "b", "rou'
    path.write_text(text)
    assert [found["id"] for found in read_other_run(path, "Some.option")] == ["a"]
    assert path.read_text() == text
    with pytest.raises(InputError, match=r"Some\.option: no file .*none\.jsonl"):
        list(read_other_run(tmp_path / "none.jsonl", "Some.option"))


DAMAGE = {
    "no rounds": {"rounds": []},
    "frames": {"num_frames": "8"},
    "prediction": {"prediction": ["B"]},
    "category": {"breakdown": {"task": ["a"]}},
    **{
        f"round's {name}": {"rounds": [{"num_frames": 4, "agreement": 1.0} | {name: value}]}
        for name, value in {
            "num_frames": None,
            "agreement": float("nan"),
            "completions": "text",
            "answers": [3],
            "abandoned": None,
            "times_s": None,
        }.items()
    },
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_field_of_another_type_is_named_before_metrics_stumble_over_it(tmp_path, change):
    line = prediction_line(Prediction(ask("q", "v.mp4", "B"), ROUNDS, "B", correct=True))
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl:2: not a line that vrts"):
        list(read_lines(path))


def test_a_line_of_a_failure_has_no_rounds(tmp_path):
    line = prediction_line(Prediction(ask("q", "v.mp4", "B"), error="gone", correct=False))
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert list(read_lines(path)) == [line]
