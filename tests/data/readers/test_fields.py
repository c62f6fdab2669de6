import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrts.data.readers.fields import bare_options, keyed_options, place_video
from vrts.data.readers.records import Record
from vrts.types import InputError, letters

TEXTS = st.lists(st.text("abc xyz.:()BM").filter(str.strip), min_size=2, max_size=26)


@given(TEXTS, st.data())
def test_ascending_labels_come_off_and_nothing_else(texts, data):
    texts = [text.strip() for text in texts]
    plain = [f"x{text}" for text in texts]
    assert bare_options(plain) == tuple(plain)
    rest = st.lists(st.sampled_from("BCDEFGHIJKLMNOPQRSTUVWXYZ"), unique=True,
                    min_size=len(texts) - 1, max_size=len(texts) - 1)  # fmt: skip
    names = ["A", *sorted(data.draw(rest))]
    labelled = [f"{name}. {text}" for name, text in zip(names, plain, strict=True)]
    assert bare_options(labelled) == tuple(plain)
    partly = [*labelled[:-1], plain[-1]]
    assert bare_options(partly) == tuple(partly)


@pytest.mark.parametrize("options", [["M: 1", "M: 2"], ["B. x", "A. y"], ["C. x", "D. y"]])
def test_letters_that_do_not_ascend_from_a_are_text(options):
    assert bare_options(options) == tuple(options)


def test_a_letter_without_text_is_the_text():
    assert bare_options(["A.", "B."]) == ("A.", "B.")
    with pytest.raises(InputError, match="option B is empty"):
        bare_options(["x", " "])


@given(TEXTS)
def test_keyed_options_in_any_order(texts):
    pairs = list(zip(letters(texts), [text.strip() for text in texts], strict=True))
    record = Record("", {"options": dict(reversed(pairs))})
    assert keyed_options(record, "options") == [text for _, text in pairs]


def test_place_video():
    assert place_video("a/b.mp4", None, "/x/rows.json") == "/x/a/b.mp4"
    assert place_video("/a/b.mp4", None, "/x/rows.json") == "/a/b.mp4"
    assert place_video("a/b.mp4", "/v", "/x/rows.json") == "/v/a/b.mp4"
    assert place_video("/a/b.mp4", "/v", "/x/rows.json") == "/v/b.mp4"
