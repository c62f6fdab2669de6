"""Text from outside on a terminal."""

import pytest

from vrts.terminal import MOST_CHARACTERS, printable, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jx\x07", r"\x1b[2Jx\x07"),
        ("a\rb\x9b31m\x7f", r"a\rb\x9b31m\x7f"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("\udcff.mp4", r"\udcff.mp4"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("视频 é — 👩‍🚀", "视频 é — 👩‍🚀"),
    ],
)
def test_what_a_terminal_acts_on_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable(text).encode()


def test_each_long_line_is_shortened_and_keeps_its_ends():
    text = "id " + "x" * 100_000 + "; give another\nsecond line"
    first, second = printable(text).split("\n")
    assert first.startswith("id xxx")
    assert first.endswith("; give another")
    assert "characters left out" in first
    assert len(first) < MOST_CHARACTERS + 50
    assert second == "second line"
    assert printable(text, None) == text


def test_the_middle_of_a_long_text_is_left_out():
    text = "thinking " * 100 + "<answer>B</answer>"
    short = shorten(text, 90)
    assert short.startswith("thinking thinking")
    assert short.endswith("<answer>B</answer>")
    assert f"[{len(text) - 90:,} characters left out]" in short
    assert shorten(text, len(text)) == text
