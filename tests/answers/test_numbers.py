"""Numbers in answers."""

# ruff: noqa: RUF001 - full-width and look-alike characters are what is tested

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrts.answers import canonical_number, extract_number, numbers_match


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("13", 13),
        ("<answer>13</answer>", 13),
        ("<think>12? 14?</think><answer>about 13 seconds.</answer>", 13),
        ("13.", 13),
        ("13 s", 13),
        ("13s", 13),
        ("1,234,567.5", 1234567.5),
        ("1,00,000", 100000),
        ("$1,250", 1250),
        ("-$5", -5),
        ("-3.5 m/s", -3.5),
        ("−3", -3),
        ("+4", 4),
        (".5", 0.5),
        ("50%", 50),
        ("12.5 percent", 12.5),
        ("1/2", 0.5),
        ("3 / 4", 0.75),
        ("1 1/2", 1.5),
        ("½", 0.5),
        ("3½", 3.5),
        ("\\frac{1}{4}", 0.25),
        ("\\(1\\frac{1}{4}\\)", 1.25),
        ("\\boxed{42}", 42),
        ("3 and 4, so \\boxed{7}", 7),
        ("1e-3", 0.001),
        ("2.5E+3", 2500),
        ("1e+20", 1e20),
        ("2 x 10^3", 2000),
        ("1.6 × 10^{-19} C", 1.6e-19),
        ("2*10^3", 2000),
        ("10³", 1000),
        ("10^3", 1000),
        ("9.81 m/s^2", 9.81),
        ("9.81 m/s²", 9.81),
        ("3 million", 3e6),
        ("１３", 13),
        ("共13秒", 13),
        ("The answer is 13. The video has 390 frames.", 13),
        ("The answer is: 13", 13),
        ("3 + 4 = 7", 7),
        ("1/3 ≈ 0.33", 0.33),
        ("13 seconds (390 frames)", 13),
        ("13 because 390 / 30 is that", 13),
        ("13 or 13.0", 13),
        ("(13)", 13),
        ("five", 5),
        ("Two people.", 2),
        ('{"answer": 13}', 13),
        ("CO2 is 40 ppm", 40),
        ("84 g/mol", 84),
        ("150 µV", 150),
        ("-0", 0),
        ("\\boxed{-\\frac{1}{2}}", -0.5),
        ("-\\frac{1}{2}", -0.5),
        ("\\frac{-1}{2}", -0.5),
        ("-½", -0.5),
        ("- ½", -0.5),
        ("-3½", -3.5),
        ("The answer is -½.", -0.5),
        ("minus 5", -5),
        ("negative 5", -5),
        ("Negative 5.5 m", -5.5),
        ("minus ½", -0.5),
        ("- 5", -5),
        ("x = - 5", -5),
        ("The answer is - 5.", -5),
        ("Answer - 5", 5),
        ("\u20135", -5),
        ("\u20145", -5),
        ("负5", -5),
        ("零下5度", -5),
        ("5 degrees below zero", -5),
        ("5 °C below zero", -5),
        ("minus five", -5),
        ("negative twenty-one", -21),
        ("负三", -3),
        ("one hundred", 100),
        ("a hundred", 100),
        ("three thousand", 3000),
        ("two hundred and five cars", 205),
        ("one million five hundred thousand", 1.5e6),
        ("twelve hundred", 1200),
        ("thirteen", 13),
        ("Twenty-five.", 25),
        ("about thirteen", 13),
        ("two and a half", 2.5),
        ("2 and a half hours", 2.5),
        ("three point one four", 3.14),
        ("one half", 0.5),
        ("half", 0.5),
        ("two thirds", 2 / 3),
        ("a dozen", 12),
        ("two dozen eggs", 24),
        ("The answer is forty two.", 42),
        ("5k", 5000),
        ("5K", 5000),
        ("5 k", 5000),
        ("3.5 bn", 3.5e9),
        ("$5M", 5e6),
        ("5 M", 5),
        ("0.1M", 0.1),
        ("300 K", 300),
        ("5 hundred", 500),
        ("5 hundred thousand", 5e5),
        ("2 dozen", 24),
        ("3万", 30000),
        ("1.2亿", 1.2e8),
        ("5千", 5000),
        ("5千米", 5),
        ("1 234", 1234),
        ("1 234 567.5", 1234567.5),
        ("1'000", 1000),
        ("1’000’000", 1e6),
        ("1_000", 1000),
        ("四", 4),
        ("两个", 2),
        ("十三", 13),
        ("二十五个人", 25),
        ("一百零五", 105),
        ("一百五", 150),
        ("一万二千", 12000),
        ("三千", 3000),
        ("三点五", 3.5),
        ("百分之五十", 50),
        ("半", 0.5),
        ("一亿", 1e8),
        ("not 5 but 6", 6),
        ("不是5，是6", 6),
        ("5 is wrong. 6", 6),
        ("The answer is 5. Wait, no. The answer is 6.", 6),
        ("Five. No, six.", 6),
        ("It is 5. Actually, 7.", 7),
        ("<answer><b>13</b></answer>", 13),
        ("<result>13</result>", 13),
        ("-> 13", 13),
        ("13...", 13),
        ("five months", 5),
        ("one second", 1),
        ("10x", 10),
        ("5 m2", 5),
    ],
)
def test_reads(text, value):
    assert extract_number(text) == pytest.approx(value, rel=1e-12)


NO_NUMBER = [
    "", "none", "12 or 13", "12-14", "12 to 14", "12, 13", "12,13", "1,23", "1:30", "1/2/2020",
    "1.2.3", "2^3", "1/0", "1e9999", "CO2", "covid-19", "m^2", "inf", "nan", "the one I saw",
    "<answer></answer>", "<think>13", "9" * 5000, "[12, 13]", '{"answer": null}', "10^99999",
    "a = 3, b = 4", "-", ".", ",", "3 cats. And 2 dogs.", "0x10", "0b1", "1..2", "1...2", "<5",
    "> 5", "≤5", "≥ 5", "less than 5", "more than 5", "at least 5", "up to 5", "大于5", "不到5",
    "±5", "5 ± 1", "+/-5", "plus or minus 5", "--5", "3x4", "1920x1080", "3 × 4", "2π", "2 pi",
    "2\\pi", "\\sqrt{2}", "√2", "log 5", "not 5", "The answer is not 5", "It isn't 5", "不是5",
    "5 is wrong", "5 is not correct", "5. Wait, no.", "3 quarters", "5 or more", "five or six",
    "five, six", "five six", "twenty twenty", "five-star", "thirteen hundredths", "hundreds",
    "thousand", "a", "an hour", "half of them", "two three", "hundred and", "zero zero",
    "5 hundred and three", "one hundred two hundred", "minus", "minus minus five", "half a million",
    "一些", "两三个", "十几", "三千米", "第一", "一起", "点", "三点", "百", "万", "Temperature - 5",
    "-\\frac{-1}{2}", "5 - 5", "1 100/200/300",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_NUMBER)
def test_reads_none(text):
    assert extract_number(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(["{}", "{} m"]))
def test_any_number_comes_back(value, wrapper):
    text = canonical_number(value)
    again = extract_number(wrapper.format(text))
    assert again == pytest.approx(value, rel=1e-11, abs=0)
    assert canonical_number(again) == text


@given(st.integers(-(10**11), 10**11))
def test_thousands_separators_change_nothing(value):
    assert extract_number(f"{value:,}") == extract_number(str(value)) == value
    assert canonical_number(value) == str(value)


MINUS = ["-{}", "\u2212{}", "- {}", "minus {}", "negative {}", "\\boxed{{-{}}}", "负{}", "–{}"]
SCALED = [
    ("{}", 1), ("{}k", 1e3), ("{} thousand", 1e3), ("{} million", 1e6), ("{} bn", 1e9),
    ("{} hundred", 1e2), ("{}万", 1e4), ("{}亿", 1e8), ("{} x 10^3", 1e3), ("{}e3", 1e3),
]  # fmt: skip
FORMS = ["{}", "{}.", "The answer is {}.", "<answer>{}</answer>", "**{}**", "x = {}", "Answer: {}"]
magnitudes = st.one_of(st.integers(1, 999), st.decimals("0.01", "999", places=2)).map(str)


@given(magnitudes, st.sampled_from(MINUS), st.sampled_from(SCALED), st.sampled_from(FORMS))
def test_neither_a_sign_nor_a_magnitude_is_dropped(digits, minus, scaled, form):
    written, factor = scaled
    value = float(digits) * factor
    assert extract_number(form.format(written.format(digits))) == pytest.approx(value)
    assert extract_number(form.format(minus.format(written.format(digits)))) == pytest.approx(
        -value
    )


@given(st.integers(0, 999_999), st.sampled_from(["{}", "minus {}", "{} cars", "The answer is {}."]))
def test_a_number_in_words_is_that_number(value, form):
    read = extract_number(form.format(in_words(value)))
    assert read == (-value if form.startswith("minus") else value)


@given(
    magnitudes, st.sampled_from(["not {}", "It isn't {}", "{} is wrong", "不是{}", "<{}", "±{}"])
)
def test_what_is_denied_or_only_bounded_is_no_number(digits, form):
    assert extract_number(form.format(digits)) is None


def in_words(value: int) -> str:
    """English words for a number below a million, by the definition of the decimal system."""
    small = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen"
    ).split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    if value < 20:
        return small[value]
    if value < 100:
        return tens[value // 10 - 2] + (f"-{small[value % 10]}" if value % 10 else "")
    unit, name = (100, "hundred") if value < 1000 else (1000, "thousand")
    rest = f" {in_words(value % unit)}" if value % unit else ""
    return f"{in_words(value // unit)} {name}{rest}"


@given(st.text(alphabet="0123456789.,-+/^ex*() =%½²\\{}:<answer> or", max_size=40))
def test_any_text_gives_a_finite_number_or_nothing(text):
    value = extract_number(text)
    assert value is None or math.isfinite(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(13.0, "13"), (0.5, "0.5"), (-0.0, "0"), (0.1 + 0.2, "0.3"), (1e20, "1e+20"), (-2.5, "-2.5")],
)
def test_one_way_to_write_a_value(value, text):
    assert canonical_number(value) == text


@pytest.mark.parametrize(
    ("value", "gold", "tolerance", "right"),
    [
        (13.01, 13, 0.01, True),
        (13.02, 13, 0.01, False),
        (201, 200, 0.01, False),
        (0.505, 0.5, 0.01, True),
        (0.51, 0.5, 0.01, False),
        (1.61e-19, 1.6e-19, 0.01, True),
        (2e-19, 1.6e-19, 0.01, False),
        (0, 0, 0.01, True),
        (0.001, 0, 0.01, False),
        (-3, 3, 0.01, False),
        (13, 13, 0, True),
        (math.inf, 13, 0.01, False),
        (math.nan, math.nan, 0.01, False),
    ],
)
def test_tolerance(value, gold, tolerance, right):
    assert numbers_match(value, gold, tolerance) is right


@pytest.mark.parametrize(
    "unit", ["1", "1,", "1,22,", "1 ", "1/", "1.", "-", "1e", "10^", "=", "\\frac{", "answer is ",
             "\\boxed{1", "²", "½", "1 1/", "because ", "$", "( ",
             "- ", "1 000 ", "wait, 1 ", "not 1 ", "minus ", "one ", "一", "<", "k", "1k "]
)  # fmt: skip
def test_time_is_linear(unit):
    text = (unit * (50_000 // len(unit) + 1))[:50_000]
    start = time.process_time()
    extract_number(text)
    extract_number("1" + text + "x")
    assert (time.process_time() - start) / 2 < 0.5
