"""The page: made piece by piece, titled, and in plain words."""

import re
import tracemalloc

import pytest

from tests.callbacks.report.predictions import decided, question
from vrts.callbacks.metrics.summary import summarise
from vrts.callbacks.report.entries import report_entry, summary
from vrts.callbacks.report.page import render_report, report_title

NUM_QUESTIONS, TEXT = 300, "x" * 20_000


def test_memory_does_not_grow_with_the_texts_of_the_questions():
    asked = question("q")
    prediction = decided(asked, f4="AAB")
    entry = report_entry(prediction, 1000)
    metrics = summarise([prediction] * NUM_QUESTIONS, [4])

    def items():
        for i in range(NUM_QUESTIONS):
            yield entry | {"id": f"q{i}", "question": f"{i} {TEXT}"}

    def length():
        summaries = [summary(entry)] * NUM_QUESTIONS
        return sum(len(piece) for piece in render_report(summaries, items(), metrics, {}))

    length()  # what is made once: fonts, templates
    tracemalloc.start()
    total = length()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > NUM_QUESTIONS * len(TEXT)
    assert peak < total / 2


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"path": "Qwen/Qwen2.5-VL-7B", "reader.path": "eval.json sha256:0f"},
         "Qwen/Qwen2.5-VL-7B on eval.json, 2026-01-02"),
        ({"path": "/data/runs/mine/model", "reader.paths": ["a.json sha256:1", "b.json sha256:2"]},
         "mine/model on a.json, b.json, 2026-01-02"),
        ({"policy": "ReplayPolicy", "reader": "own.Questions"},
         "ReplayPolicy on own.Questions, 2026-01-02"),
        ({"path": "a", "reader": "SingleQuestionReader", "reader.video": "clip.mp4 77"},
         "a on clip.mp4 77, 2026-01-02"),
    ],
)  # fmt: skip
def test_the_title_names_model_data_and_date(settings, title):
    assert report_title(settings, "2026-01-02") == title


def test_metrics_are_explained_in_their_rows():
    """Each row of the first table, and no category that happens to be called so."""
    asked = question("q", metadata={"breakdown": {"kind": "agreement"}})
    other = question("r", metadata={"breakdown": {"kind": "failed"}})
    found = [decided(asked, f4="AAB"), decided(other, f4="AAA")]
    entries = [report_entry(prediction, 100) for prediction in found]
    pieces = render_report([summary(i) for i in entries], iter(entries), summarise(found, [4]), {})
    rows = re.findall(r'<th scope="row">(.*?)</th>', "".join(pieces))
    bare = [row for row in rows if "<small>" not in row]
    assert bare == ["questions", "agreement", "failed"]
    assert sum(row.startswith("accuracy of 2<small>share of right") for row in rows) == 1
