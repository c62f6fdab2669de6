"""Answer extraction for multiple choice: a table of cases and properties."""

# ruff: noqa: RUF001 - full-width and look-alike characters are what is tested

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.prompts import extract_choice, option_texts

OPTIONS = ("red car", "green car", "brown car", "The man opens the door")
PREFIXED = tuple(f"{letter}. {text}" for letter, text in zip("ABCD", OPTIONS, strict=True))

LETTERS = [
    "C", "c", " C\n", "C.", "c.", "C)", "c)", "(C)", "(c)", "( C )", "[C]", "{C}", "<C>", '"C"',
    "'C'", "`C`", "**C**", "*C*", "__C__", "**(C)**", "**C.**", "(C).", "\\boxed{C}",
    "$\\boxed{C}$", "\\boxed{\\text{C}}", "\\(\\boxed{(C)}\\)", "\\text{C}", "Answer: C",
    "answer: c", "Answer:C", "**Answer:** C", "**Answer: C**", "Answer - C", "Answer = C",
    "Answer:\nC", "The answer is C", "the answer is c", "The answer is: C", "The answer is (C).",
    "the correct answer is **C**.", "The answer is option C", "The answer would be C.",
    "the answer must be (c)", "Option C", "option c", "Option C.", "Option (C)",
    "option C is correct", "Choice C", "Option C shows it", "C. brown car", "C) brown car",
    "(C) brown car", "C: brown car", "C - brown car", "c. brown car", "C brown car",
    "**C. brown car**", "C.brown car", "C. whatever else", "C, brown car", "Option C: brown car",
    "The answer is C. brown car", "brown car", "Brown car.", "BROWN  CAR", "a brown car",
    "A brown car.", "The answer is brown car", "The correct option is: brown car.", '"brown car"',
    "<answer>C</answer>", "<ANSWER>c</ANSWER>", "<Answer> C. </aNSWER>", "< answer >C</ answer >",
    "<answer>C", "<answer>C</ans", "<answer>C<answer>", "<answer><answer>C</answer></answer>",
    "<think>A or B?</think><answer>C</answer>", "<think>It is A.</think>\nC",
    "<think>x <answer>A</answer> y</think><answer>C</answer>",
    "<think>x <answer>C</answer></think>", "<think>A, surely. <answer>C</answer>",
    "A, no. </think><answer>C</answer>", "<answer>A</answer> No. <answer>C</answer>",
    "<answer><think>A?</think>C</answer>", "<answer>Option C</answer>", "<answer>(C) brown car",
    '{"answer": "C"}', '{"Answer": "c", "reason": "A man (B)"}', '```json\n{"answer": "C"}\n```',
    '["C"]', "{'answer': 'C'}", 'Result: {"answer": "C"}', '{"answer": "brown car"}',
    '<answer>{"answer": "C"}</answer>', '{"answer": ["C"]}', '{"result": {"answer": "C"}}', "Ｃ",
    "（Ｃ）", "（C）", "Ｃ．", "C。", "【C】", "「C」", "答案：C", "答案是C。",
    "选C", "选项C", "＜answer＞C＜/answer＞",
    "“C”", "Ⓒ", "C\u200b", "A man opens the door. The answer is C.", "Because the car stops, C",
    "It is C.", "So C.", "I choose C.", "I'd go with C, because it stops.", "C is correct.",
    "C, since it is brown.", "C because it is brown", "I think the answer is C",
    "Therefore, the answer is C.", "Vitamin B makes it clear: C", "The answer is C-shaped? No: C",
    "A T-shirt is seen, so C.", "The U.S. flag is brown.\nC", "The car(s) stop. Answer: C",
    "J. Smith is shown. The answer is C.", "The final answer is:\n\n**C**", "### Answer\nC",
    "C (brown car)", "My answer: C!",
]  # fmt: skip

NONE = [
    "", "   ", "<answer></answer>", "<answer> </answer>", "<think>C", "<think>The answer is C",
    "A or B", "A and B", "A, B", "A/B", "A & B", "A B", "AB", "A; B", "a or b", "(A) or (B)",
    "(A) (B)", "(A)(B)", "**A** **B**", "The answer is A or B", "The answer is either A or B.",
    "Answer: A, B and C", "A\nB", "Option A or option B", "A or option B", "(A) or B", "a or B",
    "A or the answer is B", '["A", "B"]', '{"answer": ["A", "B"]}',
    "The answer is A. The answer is B.", "A. The answer is B", "\\boxed{A} or \\boxed{B}", "E",
    "e", "(E)", "Z.", "The answer is E", "Option Z", "E or B", "The answer is E. So B.",
    "Cannot determine the answer", "No answer found", "None", "N/A", "I don't know", "I", "Brown",
    "Brown van", "Because", "Door", "A man opens a door", "A man", "a man", "The answer is a man",
    "Answer: A man is there", "Vitamin C", "U.S.", "C-shaped", "B's car", "car(s)",
    "It is not clear", "D-Day", "C++", "The answer is not C", "1", "13", "?", "...",
    '{"answer": null}', '{"answer": ""}', "{}", "[]", "[" * 2000, "\\boxed{}", "()", "**",
    "Error: CUDA out of memory", "<answer>A</answer><answer></answer>", "Abcd", "BROWN",
    "Both brown car and red car", "neither",
]  # fmt: skip


@pytest.mark.parametrize("options", [OPTIONS, PREFIXED], ids=["bare", "prefixed"])
@pytest.mark.parametrize("text", LETTERS)
def test_means_c(text, options):
    assert extract_choice(text, options) == "C"


@pytest.mark.parametrize("options", [OPTIONS, PREFIXED], ids=["bare", "prefixed"])
@pytest.mark.parametrize("text", NONE)
def test_means_nothing(text, options):
    assert extract_choice(text, options) is None


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("Brown car", ("blue", "brown car"), "B"),
        ("Brown car", ("blue", "brown"), None),
        ("Because the car stops, B", ("x", "y"), "B"),
        ("A", ("C", "B", "A"), "A"),  # a letter, not a text
        ("R", ("C", "R", "M"), "B"),  # no letter of an option, so a text
        ("D", ("C", "R", "M"), None),
        ("Vitamin A or B", ("Vitamin A", "Vitamin A or B"), "B"),
        ("B. Vitamin A or C", ("Vitamin A", "Vitamin A or C", "x"), "B"),
        ("The answer is B. Vitamin A or C.", ("Vitamin A", "Vitamin A or C", "x"), "B"),
        ("red", ("red", "Red", "blue"), "A"),
        ("RED", ("red", "Red", "blue"), None),
        ("dog", ("the dog", "a dog", "dogs"), None),
        ("-1", ("1", "-1"), "B"),
        ("1.", ("1", "-1"), "A"),
        ("+", ("-", "+"), "B"),
        ("4", ("4+", "4"), "B"),
        ("①", ("②", "①"), "B"),
        ("I", tuple("qrstuvwxyz"), "I"),
        ("The answer is I.", tuple("qrstuvwxyz"), "I"),
        ("I think it is red.", tuple("qrstuvwxyz"), None),
        ("I am sure that the answer is B", tuple("qrstuvwxyz"), "B"),
        ("A because it stops", ("x", "y"), "A"),
        ("The answer is A because it stops", ("x", "y"), "A"),
        ("The answer is a.", ("x", "y"), "A"),
        ("a", ("x", "y"), "A"),
        ("A man opens a door", ("x", "a man opens a door"), "B"),
        ("A man opens a door", ("x", "man opens a door"), "B"),
        ("A man opens the door. The answer is B", ("man opens the door", "y"), "B"),
        ("上海", ("北京", "上海"), "B"),
        ("B.上海", ("北京", "上海"), "B"),
        ("$Na^+$", ("$Cl$", "$Na^+$"), "B"),
        ("A", (), None),
        ("The answer is C", ("E", "Q", "C"), "C"),
        ("B. A bus with an 'O' on it", ("x", "A bus with an 'O' on it"), "B"),
        ("A bus with an “O” on it", ("x", 'A bus with an "O" on it'), "B"),
        ("A: $3, B: $4", ("A: $2, B: $4", "A: $3, B: $4"), "B"),
        ("A. A: $3, B: $4", ("A: $3, B: $4", "A: $2, B: $4"), "A"),
        ("A D：E", ("D：E", "F"), "A"),
        ("H", tuple("stuvwxyz"), "H"),
    ],
)
def test_depends_on_the_options(text, options, letter):
    assert extract_choice(text, options) == letter


def test_prefixes_are_removed_only_from_all():
    assert option_texts(["(A) red", "(B) blue"]) == ("red", "blue")
    assert option_texts(["A. Lincoln", "George"]) == ("A. Lincoln", "George")
    assert option_texts(["B. red", "A. blue"]) == ("B. red", "A. blue")


WRAPPERS = [
    "{}", "({})", "[{}]", "**{}**", "{}.", "{})", "\\boxed{{{}}}", "Answer: {}", "The answer is {}",
    "the correct answer is ({}).", "Option {}", "`{}`", "option **{}**", '"{}"', "It is {}.",
    "So the answer must be \\boxed{{{}}}",
]  # fmt: skip
AROUND = [
    "{}",
    "<answer>{}</answer>",
    "<ANSWER> {} </Answer>",
    "<answer>{}",
    "<think>B?</think> {}",
]
LOWER_TOO = [w for w in WRAPPERS if w not in ("**{}**", "`{}`", '"{}"', "It is {}.")]
wrapped = st.sampled_from(WRAPPERS)
ten_options = tuple(f"thing number {i}" for i in range(10))


@given(st.sampled_from("ABCDEFGHIJ"), wrapped, st.sampled_from(AROUND))
def test_a_wrapped_letter_is_that_letter(letter, wrapper, around):
    assert extract_choice(around.format(wrapper.format(letter)), ten_options) == letter


@given(st.sampled_from("abcdefghij"), st.sampled_from(LOWER_TOO), st.sampled_from(AROUND))
def test_a_wrapped_lower_case_letter_is_that_letter(letter, wrapper, around):
    assert extract_choice(around.format(wrapper.format(letter)), ten_options) == letter.upper()


@settings(max_examples=1500)
@given(
    st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=2, max_size=2, unique=True),
    wrapped,
    wrapped,
    st.sampled_from([", ", " or ", " and ", "\n", "\n\n", "; ", " / "]),
    st.sampled_from(AROUND),
)
def test_two_letters_are_no_answer(pair, first, second, between, around):
    text = first.format(pair[0]) + between + second.format(pair[1])
    assert extract_choice(around.format(text), ten_options) is None


@given(st.sampled_from("KLMNOPQRSTUVWXYZ"), wrapped, st.sampled_from(AROUND))
def test_a_letter_of_no_option_is_no_answer(letter, wrapper, around):
    assert extract_choice(around.format(wrapper.format(letter)), ten_options) is None


@given(st.integers(0, 3), st.sampled_from(["{t}", "{l}. {t}", "({l}) {t}", "The answer is {t}"]))
def test_a_text_is_its_letter(index, wrapper):
    letter = "ABCD"[index]
    assert extract_choice(wrapper.format(l=letter, t=OPTIONS[index]), PREFIXED) == letter


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "(", ")", "**", "\\boxed{", "}", "A", "b", "I",
     " or ", " ", "\n", ".", "answer", " is ", "option ", '{"answer": ', '"', "Ｃ", "é", "答案"]
)  # fmt: skip


@settings(max_examples=400)
@given(st.one_of(st.text(), st.lists(pieces, max_size=25).map("".join)), st.lists(st.text()))
def test_any_text_gives_a_letter_of_an_option_or_nothing(text, options):
    letter = extract_choice(text, options)
    assert letter is None or letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    if letter is not None:
        assert extract_choice(letter, options) == letter


HOSTILE = [
    "<", "<answer>", "</think>", "<think>", "<answer></answer>", "</think> <answer>", "( ", "(A",
    "A ", "A or ", "answer ", "answer is ", "the answer is the ", '"', "**", "*A", "\\boxed{", "{",
    "[", " ", "\n", "a.b.", "A.", "a-", "a'", "option A ", "<  ", "A. red ", "=", "\u0301\u0327",
    "is the correct ", "```", "`A", "x ", "The ",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear(unit):
    text = (unit * (200_000 // len(unit) + 1))[:200_000]
    start = time.process_time()
    for candidate in (text, "<answer>answer" + text + "x"):
        extract_choice(candidate, OPTIONS)
    assert (time.process_time() - start) / 2 < 2
