"""What the report shows of a question, and how much text it takes."""

from dataclasses import replace

import pytest

from tests.callbacks.plugins import completion
from tests.callbacks.report.predictions import decided, failed, question
from vrts.callbacks.report.entries import (
    TAGS,
    by_priority,
    completion_limit,
    entry_tags,
    report_entry,
    summary,
)

UNKNOWN = question("unknown", answer=None)
RIGHT = question("right")


def test_an_entry_has_question_answer_and_votes():
    asked = question("q", metadata={"breakdown": {"domain": "kitchen", "duration": 60}})
    entry = report_entry(decided(asked, f4="ABB", f8="BA-"), 1000)
    assert entry == {
        "id": "q",
        "question": "What is q?",
        "video": "q.mp4",
        "options": [["A", "a red cup"], ["B", "a blue cup"], ["C", "a green cup"]],
        "gold": "A",
        "answer": "B",
        "error": None,
        "tags": ["wrong", "undecided"],
        "groups": {"domain": "kitchen", "duration": "60", "problem type": "multiple choice"},
        "rounds": [
            {
                "frames": 4,
                "damaged": 0,
                "span_s": None,
                "agreement": 2 / 3,
                "votes": [("B", 2), ("A", 1)],
                "right": False,
                "completions": [
                    {"text": completion(c), "answer": c, "cancelled": False} for c in "ABB"
                ],
            },
            {
                "frames": 8,
                "damaged": 0,
                "span_s": None,
                "agreement": 1 / 3,
                "votes": [("B", 1), ("A", 1), (None, 1)],
                "right": False,
                "completions": [
                    {"text": completion(c), "answer": None if c == "-" else c, "cancelled": False}
                    for c in "BA-"
                ],
            },
        ],
    }


def test_damaged_frames_are_shown_and_can_be_filtered_by():
    found = decided(RIGHT, f4="AAA")
    found = replace(found, rounds=(replace(found.rounds[0], num_damaged=3),))
    entry = report_entry(found, 1000)
    assert entry["tags"] == ["right", "damaged"]
    assert entry["rounds"][0]["damaged"] == 3
    assert TAGS["damaged"] == "with damaged frames"


def test_optional_fields_of_a_round_are_shown():
    found = decided(RIGHT, f4="AA-")
    later = {"cancelled": (False, False, True), "times_s": (0.5, float("nan"), 7.256)}
    entry = report_entry(replace(found, rounds=(replace(found.rounds[0], **later),)), 1000)
    assert entry["rounds"][0]["votes"] == [("A", 2)], "a cancelled one is not a vote"
    assert [c["cancelled"] for c in entry["rounds"][0]["completions"]] == [False, False, True]
    assert entry["rounds"][0]["span_s"] == [0.5, 7.26]


@pytest.mark.parametrize(
    ("prediction", "tags"),
    [
        (decided(RIGHT, f4="AAA"), ["right"]),
        (decided(RIGHT, f4="AAB"), ["right", "undecided"]),
        (decided(RIGHT, f4="AA-"), ["right", "undecided"]),
        (decided(RIGHT, f4="AAB", f8="BBB"), ["wrong", "agreed-wrong"]),
        (decided(RIGHT, f4="BBC"), ["wrong", "undecided"]),
        (decided(RIGHT, f4="---"), ["wrong", "undecided", "no-answer"]),
        (failed(RIGHT), ["failed"]),
        (failed(RIGHT, f4="ABC"), ["failed"]),
        (failed(UNKNOWN), ["failed", "unscored"]),
        (decided(UNKNOWN, f4="CCC"), ["unscored"]),
    ],
)
def test_tags(prediction, tags):
    assert entry_tags(prediction) == tags
    assert set(tags) <= TAGS.keys()


def test_all_completions_together_stay_within_a_budget():
    found = [decided(RIGHT, f4="AAA"), decided(RIGHT, f4="ABA", f8="AAA")]
    total = sum(len(text) for p in found for r in p.rounds for text in r.completions)
    assert completion_limit(found, 1000, total) == 1000
    limit = completion_limit(found, 1000, total - 1)
    assert limit * 9 <= total - 1 < (limit + 1) * 9
    assert completion_limit([], 1000, 0) == 1000


def test_frames_of_wrong_questions_come_first():
    found = [decided(RIGHT, f4=v) for v in ("AAA", "AAB", "BBB")] + [failed(RIGHT)]
    entries = [report_entry(prediction, 10) | {"id": i} for i, prediction in enumerate(found)]
    assert [entry["id"] for entry in by_priority(entries)] == [2, 3, 1, 0]


def test_a_summary_has_no_texts_and_all_that_charts_and_filters_need():
    asked = question("q", metadata={"breakdown": {"domain": "kitchen"}})
    entry = report_entry(decided(asked, f4="ABB", f8="AAA"), 1000)
    assert summary(entry) == {
        "id": "q",
        "tags": ["right"],
        "groups": {"domain": "kitchen", "problem type": "multiple choice"},
        "rounds": [{"frames": 4, "right": False}, {"frames": 8, "right": True}],
    }
