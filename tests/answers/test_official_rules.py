"""Answers as the benchmarks' own evaluators read them, and as ours does."""

import itertools

import pytest

from tests.answers.official_rules import longvideobench, mmvu, video_holmes, video_mme, videommmu
from vrts.answers import extract_choice

RULES = {
    "Video-MME": video_mme,
    "LongVideoBench": longvideobench,
    "VideoMMMU": videommmu,
    "Video-Holmes": video_holmes,
    "MMVU": mmvu,
}
OPTIONS = ("red paint", "the green bus", "two children", "snow")

DIRECT = ("{}", "{}.", "({})", "The answer is {}.", "The correct answer is ({}).")
"""What the prompts that ask for the letter alone are answered with."""
CLEAN = {
    "Video-MME": (*DIRECT, "{}. {text}", "The best answer is {}. {text}"),
    "LongVideoBench": (*DIRECT, "{}. {text}", "The best answer is {}. {text}"),
    "VideoMMMU": (*DIRECT, "{}. {text}", "Answer: ({})"),
    "Video-Holmes": (
        *DIRECT,
        "<think>It is {text}.</think><answer>{}</answer>",
        "<think>Not A, not B.</think>\n<answer>{}: {text}</answer>",
        "<think>Hm.</think><answer>[{}]</answer>",
        "<think>Hm.</think><answer>{}. {text}</answer>",
    ),
    "MMVU": (*DIRECT, "Therefore, the final answer is: {}", "Therefore, the final answer is: {}."),
}


@pytest.mark.parametrize(
    ("name", "form", "index"),
    [
        (name, form, index)
        for name, forms in CLEAN.items()
        for form, index in itertools.product(forms, range(len(OPTIONS)))
    ],
)
def test_clean_answers_are_read_alike(name, form, index):
    letter = "ABCD"[index]
    response = form.format(letter, text=OPTIONS[index])
    assert RULES[name](response, OPTIONS) == {letter}
    assert extract_choice(response, OPTIONS) == letter


CLEAN_TEXT = ("An Airbus", "Ben's dog", "Cold Air", "Data")
"""Options whose texts have capitals that are letters of other options."""

MESSY = [
    # response, ours, Video-MME, LongVideoBench, VideoMMMU, Video-Holmes, MMVU; "" is no answer
    ("Answer: C", OPTIONS, "C", "A", "A", "C", "A", "C"),
    ("the answer is c", OPTIONS, "C", "", "", "", "", "C"),
    ("**C**", OPTIONS, "C", "C", "C", "", "C", "C"),
    ("Two children", OPTIONS, "C", "", "", "", "", "C"),
    ("C\n", OPTIONS, "C", "C", "C", "", "C", "C"),
    ("A man opens the door. The answer is C.", OPTIONS, "C", "A", "A", "C", "A", "AC"),
    ("Cannot determine the answer", OPTIONS, "", "C", "C", "", "C", ""),
    ("Because the car stops, D", OPTIONS, "D", "B", "B", "D", "B", "BD"),
    ("A or B", OPTIONS, "", "A", "A", "B", "A", "AB"),
    ("A, B and D are wrong.", OPTIONS, "", "A", "A", "D", "B", "ABD"),
    ("", OPTIONS, "", "", "", "", "", ""),
    ("<think>A or B? B.</think><answer>D</answer>", OPTIONS, "D", "A", "A", "B", "D", "ABD"),
    ("<think>A cat jumps on", OPTIONS, "", "A", "A", "A", "A", "A"),
    ("D. Data", CLEAN_TEXT, "D", "D", "D", "D", "D", "D"),
    ("C. Cold Air", CLEAN_TEXT, "C", "C", "C", "C", "A", "C"),
    ("Cold Air", CLEAN_TEXT, "C", "C", "C", "", "A", "C"),
]


@pytest.mark.parametrize("row", MESSY, ids=lambda row: row[0][:25])
def test_messy_answers_are_read_differently(row):
    """The table of the README; every cell is what a rule makes of a response."""
    response, options, ours, *others = row
    assert (extract_choice(response, options) or "") == ours
    found = ["".join(sorted(rule(response, options))) for rule in RULES.values()]
    assert found == others
