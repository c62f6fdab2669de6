"""The page is made piece by piece."""

import tracemalloc

from tests.callbacks.report.predictions import decided, question
from vrts.callbacks.report.items import outline, report_item
from vrts.callbacks.report.page import render_report
from vrts.callbacks.summary import summarise

NUM_QUESTIONS, TEXT = 300, "x" * 20_000


def test_memory_does_not_grow_with_the_texts_of_the_questions():
    asked = question("q")
    prediction = decided(asked, f4="AAB")
    item = report_item(prediction, 1000)
    metrics = summarise([prediction] * NUM_QUESTIONS, [4])

    def items():
        for i in range(NUM_QUESTIONS):
            yield item | {"id": f"q{i}", "question": f"{i} {TEXT}"}

    def length():
        outlines = [outline(item)] * NUM_QUESTIONS
        return sum(len(piece) for piece in render_report(outlines, items(), metrics, {}))

    length()  # what is made once: fonts, templates
    tracemalloc.start()
    total = length()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > NUM_QUESTIONS * len(TEXT)
    assert peak < total / 2
