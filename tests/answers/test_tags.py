"""The parser of <think> and <answer>."""

# ruff: noqa: RUF001 - full-width and look-alike characters are what is tested

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.answers import has_format, split_completion
from vrts.answers.tags import final_answer, strip_lead_in


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("", None, ""),
        ("B", None, "B"),
        ("<answer> B </answer>", None, "B"),
        ("Hm. <answer>B</answer> Bye.", None, "B"),
        ("<think>r</think><answer>B</answer>", "r", "B"),
        ("<THINK> r </Think>\n<Answer>B</ANSWER>", "r", "B"),
        ("r</think><answer>B</answer>", "r", "B"),
        ("<think>r</think> It is B.", "r", "It is B."),
        ("<think>r</think>", "r", ""),
        ("<think>r", "r", ""),
        ("<think>r <answer>B</answer>", "r", "B"),
        ("<think>r <answer>A</answer></think><answer>B</answer>", "r <answer>A</answer>", "B"),
        ("<think>r <answer>A</answer></think> It is B", "r <answer>A</answer>", "It is B"),
        ("<think>r <answer>A</answer></think>", "r <answer>A</answer>", "A"),
        ("<think>r</think><answer>A</answer><answer>B</answer>", "r", "B"),
        ("<think>r</think><answer>A</answer><answer></answer>", "r", "A"),
        ("<think>r</think><answer>B", "r", "B"),
        ("<think>r</think><answer>B</answe", "r", "B"),
        ("<think>r</think><answer>B<answer>", "r", "B"),
        ("<think>a</think>b<think>c</think><answer>B</answer>", "a</think>b<think>c", "B"),
        ("<answer>B</answer><think>r</think>", "r", "B"),
        ("</think><think><answer>B</answer>", "", "B"),
    ],
)
def test_split(text, reasoning, answer):
    assert split_completion(text) == (reasoning, answer)


@given(st.text(), st.text())
def test_split_takes_the_template_apart(reasoning, answer):
    text = f"<think>{reasoning}</think><answer>{answer}</answer>"
    if not re.search(r"[<>]", reasoning + answer):
        assert split_completion(text) == (reasoning.strip(), answer.strip())
        assert has_format(text)
        assert has_format(text, strict=False)


VIDEO_R1 = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
tags = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x", "<", ">"])


@settings(max_examples=500)
@given(st.lists(tags, max_size=12).map("".join), st.booleans())
def test_strict_format_is_that_of_video_r1(text, framed):
    if framed:
        text = f"<think>{text}</answer>"
    assert has_format(text) == bool(VIDEO_R1.fullmatch(text.strip()))


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("<think>r</think><answer>B</answer>", True, True),
        (" <think>r</think>\n\n<answer>B</answer>\n", True, True),
        ("<think></think><answer></answer>", True, True),
        ("<think>r</think> so <answer>B</answer>", False, True),
        ("<THINK>r</THINK><answer>B</answer>", False, True),
        ("<think>r</think><answer>B</answer>.", False, True),
        ("<answer>B</answer><think>r</think>", False, False),
        ("<think>r</think><answer>B", False, False),
        ("<think><answer>B</answer></think>", False, False),
        ("<think></answer>", False, False),
        ("", False, False),
    ],
)
def test_format(text, strict, lenient):
    assert has_format(text) is strict
    assert has_format(text, strict=False) is lenient


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("（Ｃ）", "(C)"),
        ("```\nC\n```", "C"),
        ('```json\n{"answer": "C"}\n```', "C"),
        ('{"answer": 13}', "13"),
        ('{"answer": true}', '{"answer": true}'),
        ('{"other": "C"}', '{"other": "C"}'),
        ('["C"]', "C"),
        ("[C]", "[C]"),
        ("``````", "``````"),
        ("“red”", '"red"'),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("The answer is: red", "red"),
        ("So, the correct answer is red", "red"),
        ("Answer: red", "red"),
        ("The answers vary", "The answers vary"),
        ("red is the answer", "red is the answer"),
        ("The option isolated here", "The option isolated here"),
    ],
)
def test_strip_lead_in(text, rest):
    assert strip_lead_in(text) == rest


@pytest.mark.parametrize(
    "unit", ["<", "< ", "<think>", "</think>", "<answer>", "</answer>", "</think><answer>",
             "</think>" + " " * 50, "<answer></answer>", "{", "[", "`", "the ", "<   "]
)  # fmt: skip
def test_time_is_linear(unit):
    text = (unit * (200_000 // len(unit) + 1))[:200_000]
    start = time.process_time()
    for candidate in (text, f"<think>{text}</answer>", f"the answer {text}"):
        final_answer(candidate)
        has_format(candidate)
        has_format(candidate, strict=False)
        strip_lead_in(candidate)
    assert (time.process_time() - start) / 3 < 2
