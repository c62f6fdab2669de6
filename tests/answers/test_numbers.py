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
    ],
)
def test_reads(text, value):
    assert extract_number(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "", "none", "12 or 13", "12-14", "12 to 14", "12, 13", "12,13", "1,23", "1:30", "1/2/2020",
        "1.2.3", "2^3", "1/0", "1e9999", "CO2", "covid-19", "m^2", "inf", "nan", "the one I saw",
        "<answer></answer>", "<think>13", "9" * 5000, "[12, 13]", '{"answer": null}', "10^99999",
        "a = 3, b = 4", "-", ".", ",", "3 cats. And 2 dogs.",
    ],
)  # fmt: skip
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
             "\\boxed{1", "²", "½", "1 1/", "because ", "$", "( "]
)  # fmt: skip
def test_time_is_linear(unit):
    text = (unit * (200_000 // len(unit) + 1))[:200_000]
    start = time.process_time()
    extract_number(text)
    extract_number("1" + text + "x")
    assert (time.process_time() - start) / 2 < 2
