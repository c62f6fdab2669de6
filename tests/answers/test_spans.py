"""Time spans in answers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrts.answers.numbers import canonical_span, extract_span, span_iou


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("12.5 to 20", (12.5, 20)),
        ("<think>At 3 s it starts.</think><answer>12-20</answer>", (12, 20)),
        ("<answer>[12.5, 20.25]</answer>", (12.5, 20.25)),
        ("from 12.5s to 20.0 seconds.", (12.5, 20)),
        ("12.5 sec - 20secs", (12.5, 20)),
        ("00:12 \u2013 01:20", (12, 80)),
        ("1:00:05 to 1:00:06.5", (3605, 3606.5)),
        ("The event happens between 3 and 3.", (3, 3)),
        ("0 到 7", (0, 7)),
        ("5 minutes to 6 minutes", None),
        ("20 to 12", None),
        ("12", None),
        ("1, 2 or 3", None),
        ("frame12 to frame20", None),
        ("12% to 20%", None),
        ("1.2.3 to 4", None),
        ("", None),
        ("never", None),
    ],
)
def test_spans_are_read(text, span):
    assert extract_span(text) == span


@given(
    st.floats(0, 9999).map(lambda x: round(x, 3)),
    st.floats(0, 999).map(lambda x: round(x, 3)),
)
def test_a_canonical_span_is_read_again(start, length):
    span = (start, start + length)
    text = canonical_span(span)
    again = extract_span(text)
    assert again == pytest.approx(span, rel=1e-9)
    assert canonical_span(again) == text


def test_iou_is_the_share_of_time_steps():
    """Against counting small steps of time."""
    rng = random.Random(0)
    for _ in range(200):
        a, b = sorted(rng.choices(range(30), k=2)), sorted(rng.choices(range(30), k=2))
        steps_a, steps_b = set(range(*a)), set(range(*b))
        if steps_a | steps_b and max(a[0], b[0]) <= min(a[1], b[1]):
            want = len(steps_a & steps_b) / len(steps_a | steps_b)
            assert span_iou(tuple(a), tuple(b)) == pytest.approx(want)
        assert span_iou(tuple(a), tuple(b)) == span_iou(tuple(b), tuple(a))
        assert 0 <= span_iou(tuple(a), tuple(b)) <= 1
    assert span_iou((0, 1), (5, 6)) == 0
    assert span_iou((3, 3), (3, 3)) == 1


@pytest.mark.parametrize("text", ["9" * 20000, "1:" * 20000, "1." * 20000, "1 s " * 20000])
def test_long_runs_are_read_quickly(text):
    assert extract_span(text) is None
