"""predictions.jsonl: its schema, round trips, and complete lines whatever happened."""

import dataclasses
import json

import pytest

from tests.callbacks.plugins import ask
from vrts.files import read_predictions
from vrts.files.predictions import (
    StoredPredictions,
    append_predictions,
    prediction_from_json,
    prediction_to_json,
    without_texts,
    write_predictions,
)
from vrts.types import InputError, Prediction, Round

ROUNDS = (
    Round(
        4, ("<answer>A</answer>", "Hm?"), ("A", None), 1 / 3,
        (0.0, 1 / 3, 2.0, 3.0), (9, 3), (-0.1234, -2.0), (False, True),
    ),
    Round(8, ("<answer>B</answer>", "**B**"), ("B", "B"), 1.0, is_last=True),
)  # fmt: skip


def test_the_line_of_an_answer():
    line = prediction_to_json(Prediction(ask("q", "v.mp4", "B"), ROUNDS, "B", correct=True))
    assert line == {
        "id": "q",
        "gold": "B",
        "answer": "B",
        "correct": True,
        "num_frames": 8,
        "damaged": 0,
        "rounds": [
            {
                "num_frames": 4,
                "times_s": [0.0, 0.3333, 2.0, 3.0],
                "completions": ["<answer>A</answer>", "Hm?"],
                "answers": ["A", None],
                "agreement": 0.3333,
                "num_tokens": [9, 3],
                "mean_logprobs": [-0.1234, -2.0],
                "cancelled": [False, True],
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
                "cancelled": [],
                "is_last": True,
                "damaged": 0,
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
        "id", "gold", "answer", "correct", "num_frames", "damaged", "rounds", "status", "error",
        "question", "options", "problem_type", "video", "breakdown",
    ]  # fmt: skip
    assert json.loads(json.dumps(line)) == line


def test_the_line_of_a_failure():
    failed = Prediction(ask("q", "v.mp4", None), error="v.mp4: no such file")
    assert prediction_to_json(failed) == {
        "id": "q",
        "gold": None,
        "answer": None,
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
    assert prediction_to_json(Prediction(question, error="lost"))["breakdown"] == kept


def line(id: str) -> str:
    failed = Prediction(dataclasses.replace(ask("q", "v.mp4", None), id=id), error="lost")
    return json.dumps(prediction_to_json(failed), ensure_ascii=False)


def ids(path):
    return [found.question.id for found in read_predictions(path)]


def test_what_is_written_is_read_again(tmp_path):
    """Numbers come back as they were rounded; of the question, what a line has of it."""
    path = tmp_path / "predictions.jsonl"
    asked = dataclasses.replace(ask("q \u2028 视频", "v.mp4"), metadata={"breakdown": {"a": "b"}})
    rounds = (dataclasses.replace(ROUNDS[0], agreement=0.3333, times_s=(0.0, 0.3333)), ROUNDS[1])
    written = [
        Prediction(asked, rounds, "B", correct=True),
        Prediction(dataclasses.replace(asked, id="x"), rounds[:1], error="lost", correct=False),
    ]
    append_predictions(path, written[:1])
    append_predictions(path, written[1:])
    read = list(read_predictions(path))
    assert [found.question.source for found in read] == [f"{path}:1", f"{path}:2"]
    plain = [dataclasses.replace(p.question, source="") for p in read]
    assert [dataclasses.replace(p, question=q) for p, q in zip(read, plain, strict=True)] == written
    text = path.read_bytes()
    write_predictions(path, read)
    assert path.read_bytes() == text
    assert [path.name] == [other.name for other in tmp_path.iterdir()]


def test_they_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("a") + "\nnonsense\n")
    found = read_predictions(str(path))
    assert next(found).question.id == "a"
    with pytest.raises(InputError, match=":2: "):
        next(found)


@pytest.mark.parametrize("rest", ["", '{"id": "c", "rou', "{", "视", line("c")])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_behind_the_last_line_break_is_passed_over(tmp_path, rest, mark):
    """An editor may have put a byte order mark before the first line."""
    path = tmp_path / "predictions.jsonl"
    name = "b \u2028 视频"  # no line break of JSON Lines, though str.splitlines takes it for one
    text = (f"{line('a')}\n{line(name)}\n" + rest).encode()[: -1 if rest == "视" else None]
    path.write_bytes(mark + text)
    assert ids(path) == ["a", name]
    assert path.read_bytes() == mark + text


@pytest.mark.parametrize("bad", ["nonsense", "[1]", '{"id": "a"}', "", '"id rounds status"'])
def test_a_whole_line_that_is_not_ours_is_named(tmp_path, bad):
    path = tmp_path / "predictions.jsonl"
    path.write_text(f"{line('a')}\n{bad}\n{line('c')}\n")
    for read in (ids, StoredPredictions):
        with pytest.raises(InputError, match=rf"{path}:2: .*repair or remove"):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*none\.jsonl; give"):
        ids(tmp_path / "none.jsonl")


@pytest.mark.parametrize("field", sorted(json.loads(line("a")).keys() - {"num_frames", "damaged"}))
def test_a_line_that_lacks_a_field_is_refused(tmp_path, field):
    older = json.loads(line("a"))
    del older[field]
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(older) + "\n")
    with pytest.raises(InputError, match=rf"{path}:1: .*an older version \(field '{field}' is"):
        ids(path)


def test_the_names_of_an_older_version_are_read():
    """It called the right answer "answer", and what was answered "prediction"."""
    new = prediction_to_json(Prediction(ask("q", "v.mp4", "B"), ROUNDS, "A", correct=False))
    old = {"answer": "B", "prediction": "A"} | {k: v for k, v in new.items() if k not in OLD}
    assert prediction_from_json(old) == prediction_from_json(new)
    assert (prediction_from_json(old).question.gold, prediction_from_json(old).answer) == (
        "B", "A",
    )  # fmt: skip


OLD = ("gold", "answer")
DAMAGE = {
    "no rounds": {"rounds": []},
    "answer": {"answer": ["B"]},
    "gold": {"gold": 3},
    "correct": {"correct": "yes"},
    "category": {"breakdown": {"task": ["a"]}},
    "problem type": {"problem_type": "riddle"},
    "status": {"status": "done"},
    **{
        f"round's {name}": {"rounds": [prediction_to_json(
            Prediction(ask("q", "v.mp4", "B"), ROUNDS)
        )["rounds"][0] | {name: value}]}
        for name, value in {
            "num_frames": None,
            "agreement": float("nan"),
            "completions": "text",
            "answers": [3, 4],
            "num_tokens": [1, 2, 3],
            "cancelled": None,
            "times_s": None,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_field_of_another_type_is_named_before_metrics_stumble_over_it(tmp_path, change):
    line = prediction_to_json(Prediction(ask("q", "v.mp4", "B"), ROUNDS, "B", correct=True))
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl:2: not a line that vrts"):
        ids(path)


def test_they_are_found_by_id_where_they_lie_in_the_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(f"{line(id)}\n" for id in ("a", "视", "c")) + '{"id')
    stored = StoredPredictions(path)
    assert stored.get("d") is None
    for id in ("c", "a", "视", "c"):
        assert stored.get(id).question.id == id


def test_without_texts_metrics_have_what_they_need(tmp_path):
    found = Prediction(ask("q", "v.mp4", "B"), ROUNDS, "B", correct=True)
    bare = without_texts(found)
    assert (bare.question.text, bare.rounds[0].completions) == ("", ())
    assert (bare.answer, bare.correct, bare.num_frames) == ("B", True, 8)
    assert [r.cancelled for r in bare.rounds] == [(False, True), ()]
