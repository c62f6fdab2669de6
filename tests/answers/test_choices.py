"""Answer extraction for multiple choice: a table of cases and properties."""

# ruff: noqa: RUF001 - full-width and look-alike characters are what is tested

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.answers import extract_choice, option_texts

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
    "C (brown car)", "My answer: C!", "<answer>C</answer><answer></answer>",
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
    "Error: CUDA out of memory", "Abcd", "BROWN",
    "Both brown car and red car", "neither",
]  # fmt: skip


DENIED = [
    "not (B)", "not B", "B is not correct", "Option B is wrong.", "The wrong answer is B.",
    "The answer cannot be B.", "We can eliminate option B.", "B: false", "B is wrong.",
    "(B) is wrong", "The answer is not B.", "It isn't B.", "It's not B", "The answer can't be B",
    "B is incorrect", "B cannot be right", "B can be ruled out", "We rule out B", "B is ruled out.",
    "B is not it.", "Eliminate B.", "I would not choose B", "I don't think the answer is B.",
    "B doesn't fit", "B does not match the video.", "Option B is not shown in the video.",
    "B (wrong)", "B - incorrect", "B ✗", "B: no", "B. Wrong.", "Options A and B are wrong.",
    "Neither A nor B", "Not A or B.", "The incorrect option is B", "B is the wrong answer",
    "B was never shown", "B contradicts it", "B fails", "B. green car is wrong",
    "Option B: green car - wrong", "**B** is not correct", "The answer is anything except B",
    "A is wrong, and so is B.", "B is unlikely", "\\boxed{B} is wrong", "B is probably not right",
    "Everything else than B", "B isn’t shown", "None of A, B, C and D", "不选B", "答案不是B",
    "B不对", "B不正确", "选项B错误", "B选项是错的", "排除B", "B是错误的", "不是B", "选项A和B都不对",
    "可以排除选项B。", "答案不可能是B", "B没有出现", "错误的选项是B", "B不符合", "并非B",
    "正确答案不应该是B", "B被排除", "It's certainly not option B.", "B? No.", "I disagree with B",
    "I doubt it's B", "B is far from correct", "B is never correct", "选项B不符合视频内容",
    "B：错误", "Option B is incorrect because the car is red.", "绝不是B", "我不认为答案是B",
    "Not option B",
]  # fmt: skip
"""B is denied, so there is no answer: also where every letter but one is."""

DISCUSSED = [
    "Let me check each option.\nOption A: the car is red, which is not what the video shows.",
    "Let me check each option.\nOption A: the car is red", "Let me check.\nA: the car turns left",
    "The video has two parts. Option A describes a man, option B", "Could it be B?",
    "Is the answer B?", "Which is right, A or B?", "Is it B",
    "If the car were red, the answer would be B.", "At first I thought it was B.",
    "The answer is B. Wait, no.", "The answer is B. No, that is wrong.",
    "B. Sorry, I made a mistake.", "答案是B。不对。", "B. red car", "B (red car)", "B: the red car",
    "The answer is B. Red car.", "red car (B)", "The answer is red car. So B.",
    "Red car. The answer is B.", "The answer is (B) brown car", "Let's look at option B",
    "Considering option B", "Let's consider option B. The car is green, and",
    "B is wrong, but the answer is B", "A. red car\nB. green car",
]  # fmt: skip
"""No letter is given as the answer, or one against itself."""

FOUND = [
    "The answer is B. Wait, no. The answer is C.", "It is A. Actually, it is C.", "A. No, C.",
    "B, no, C", "The answer is B. Hmm, wait. Let me re-check. The answer is C.",
    "The answer is A. Sorry, I meant to say C.", "Answer: B\nCorrection: C", "It's A, I mean C.",
    "Answer: B. Scratch that. Answer: C",
    "The answer is red car. Wait, no. The answer is brown car.",
    "The answer is C. Wait, let me double-check. The car is brown.", "Is it A? No. C.",
    "The answer is C. Actually, A and B are wrong.", "答案是B。不对，答案是C。",
    "选A。等等，应该选C。", "答案是A，更正：C",
    "A. red car\nB. green car\nC. brown car\nD. The man opens the door\n\nAnswer: C",
    "A. red car\nB. green car\nC. brown car\nD. The man opens the door\n\nC",
    "Options: A. red car, B. green car, C. brown car, D. The man opens the door. The answer is C.",
    "A) red\nB) green\nC) brown\nD) door\nThe answer is C.",
    "- A. red\n- B. green\n- C. brown\n\n**C**",
    "| Option | Shown |\n|---|---|\n| A | no |\n| B | no |\n| C | yes |\n\nThe answer is C.",
    "C\n\n| Option | Shown |\n|---|---|\n| A | no |\n| B | no |",
    "C. brown car\n\nExplanation: options A, B and D are never shown.",
    "C. a bus\n\nExplanation: options A, B and D are never shown.",
    "C\n\n**Explanation:** Option A shows a red car (A).",
    "Explanation: A is red, so B and A are out.\nAnswer: C", "(C). Reason: A is what B did.",
    "答案：C\n解释：选项A是红色的车。", "<answer><b>C</b></answer>",
    "<answer><span class=\"x\">C</span></answer>", "<answer>C<br/></answer>",
    "<answer>\n<p><strong>C</strong></p></answer>", "我选择C，因为车是棕色的", "C选项正确",
    "选项A和B都不对，所以选C", "应该选C。", "正确答案是C选项", "不是A，而是C", "不是A而是C。",
    "C是正确的", "答案应该是C", "排除A、B、D，选C", "我认为答案是C", "A不对，B不对，C正确",
    "正确选项为C", "C项", "选C项。", "C符合视频内容",
    "Option B is wrong; option C is right. Answer: C", "Option B is wrong; option C is right.",
    "A is wrong. B is wrong. C is correct.", "A: false\nB: false\nC: true", "Not A but C.",
    "I choose C, not (B).", "It's not A, it's C", "C, not B", "The answer is C rather than B.",
    "Rule out A and B, so C.", "Since A is not shown, the answer is C.", "C instead of B",
    "Option A is not shown. Option B shows a red car. The answer is C.", "Only C is correct.",
    "I believe C is correct", "A and B can be eliminated, hence C", "C fits and B does not fit.",
    "The car does not stop, so C.", "The man is not shown: C", "Without a doubt, C.", "C, no doubt",
    "I ruled out the others. C", "Option C shows this.", "Option C matches the video.",
    "It cannot be A or B; C.", "A ✗\nB ✗\nC ✓", "C: correct", "Brown car, because it stops.",
    "Brown car. The man drives it.", "The man enters. The answer is brown car.",
    "Is it B? No, it is C.", "选C，不选B", "不是A也不是B，是C", "C是正确答案", "A、B、D错误，C正确",
    "A... no, C", "A. No wait, C.", "I said A, but C is right", "The answer is **C**, not **B**.",
    "Not A, not B, but C", "The only option that isn't wrong is C", "Not sure, but C",
    "The car is not red but brown. The answer is C.",
]  # fmt: skip
"""C is the answer, whatever else is said."""


@pytest.mark.parametrize("around", ["{}", "<answer>{}</answer>", "<think>C</think>{}"])
@pytest.mark.parametrize("text", DENIED + DISCUSSED)
def test_what_is_denied_or_discussed_is_no_answer(text, around):
    assert extract_choice(around.format(text), OPTIONS) is None


@pytest.mark.parametrize("options", [OPTIONS, PREFIXED], ids=["bare", "prefixed"])
@pytest.mark.parametrize("text", FOUND)
def test_c_is_found_beside_other_letters(text, options):
    assert extract_choice(text, options) == "C"


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
        ("No, the man does not.", ("Yes", "No"), "B"),
        ("Yes, he does.", ("Yes", "No"), "A"),
        ("No. The man stays.", ("Yes", "No", "Not sure"), "B"),
        ("Yes. Wait, no.", ("Yes", "No"), "B"),
        ("No, the answer is A.", ("Yes", "No"), None),
        ("不是，他没有。", ("是", "不是"), "B"),
        ("<answer>1000 m</answer>", ("100 m", "1,000 m"), "B"),
        ("1,000m", ("100 m", "1000 m"), "B"),
        ("B. He is not walking", ("He walks", "He isn't walking"), "B"),
        ("B. Wrong way", ("Right way", "Wrong way"), "B"),
        ("B. Wrong", ("Right", "Wrong"), "B"),
        ("Red. Green.", ("red", "green"), None),
        ("The answer is not red", ("red", "green"), None),
        ("B. 1", ("1", "2"), None),
        ("Option B: no", ("yes", "no"), "B"),
        ("B: no", ("no", "yes"), None),
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
BARE = ["{}", "({})", "[{}]", "**{}**", "`{}`", '"{}"', "\\boxed{{{}}}"]
DENIALS = [
    "not {}", "The answer is not {}", "The answer cannot be {}", "It isn't {}", "{} is wrong",
    "{} is not correct", "{} cannot be right", "Option {} is incorrect",
    "We can eliminate option {}", "The wrong answer is {}", "不选{}", "答案不是{}", "{}不对",
    "选项{}错误", "可以排除{}",
]  # fmt: skip
CORRECTIONS = [
    ". Wait, no. ", ". Wait, ", ". No, ", "\nCorrection: ", ". Actually, ", ". Sorry, ",
    ".\n\nHmm, that's not right. ", "。不对，", "。等等，", ". On second thought, ",
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    "is the correct ", "```", "`A", "x ", "The ", "wait, ", "no. A ", "| A ", "A. x\n", "not A ",
    "<b>", "A, which is not ", "Explanation: ", "(A) ", "答案", "不", "the answer is red car. ",
    "B is ", "red car (A", "\nAnswer", "actually A. ", "A\n",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear(unit):
    text = (unit * (25_000 // len(unit) + 1))[:25_000]
    start = time.process_time()
    for candidate in (text, "<answer>answer" + text + "x"):
        extract_choice(candidate, OPTIONS)
    assert (time.process_time() - start) / 2 < 0.5


@given(
    st.sampled_from("ABCDEFGHIJ"), wrapped, st.sampled_from(DENIALS), st.sampled_from(AROUND[:4])
)
def test_a_denied_letter_is_no_answer(letter, wrapper, denial, around):
    """Whatever form the letter has, and whatever the letter: its negation is not read."""
    bare = wrapper if wrapper in BARE else "{}"
    text = denial.format(bare.format(letter))
    assert extract_choice(around.format(text), ten_options) is None


@given(
    st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=2, max_size=2, unique=True),
    wrapped,
    st.sampled_from(DENIALS),
    st.sampled_from([". ", "\n", ".\n\n", "; "]),
    st.booleans(),
    st.sampled_from(AROUND[:4]),
)
def test_an_answer_counts_beside_a_denied_letter(pair, wrapper, denial, between, first, around):
    parts = [wrapper.format(pair[0]), denial.format(pair[1])]
    text = between.join(parts if first else parts[::-1])
    assert extract_choice(around.format(text), ten_options) == pair[0]


@given(
    st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=2, max_size=2, unique=True),
    wrapped,
    wrapped,
    st.sampled_from(CORRECTIONS),
    st.sampled_from(AROUND[:4]),
)
def test_the_last_correction_counts(pair, first, second, correction, around):
    text = first.format(pair[0]) + correction + second.format(pair[1])
    assert extract_choice(around.format(text), ten_options) == pair[1]
