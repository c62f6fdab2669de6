"""Words and option letters are one token each, the same wherever they stand."""

import pytest

from tools.tiny.tokenizer import SPECIAL_TOKENS, TAGS, build_tokenizer
from vrts.demo.questions import FIRST, FLASH, LAST, MOTION, OBJECT
from vrts.demo.scenes import COLOURS, DIRECTIONS, SHAPES

TOKENIZER = build_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("letter", list("ABCD"))
def test_a_letter_is_one_token_everywhere(letter):
    (alone,) = ids(letter)
    for text in (f"\n{letter}. red", f" {letter} ", f"<answer>{letter}</answer>", f"({letter})"):
        assert ids(text).count(alone) == 1


@pytest.mark.parametrize(
    "word",
    [
        *COLOURS,
        *DIRECTIONS,
        *SHAPES,
        *(kind.name for kind in (OBJECT, FLASH, MOTION, FIRST, LAST)),
        *"What colour Which way move the is no seen".split(),
    ],
)
def test_a_word_is_one_token_everywhere(word):
    (alone,) = ids(word)
    assert ids(f"a {word}, {word}?\n{word}").count(alone) == 3


def test_option_letter_stands_two_tokens_before_its_text():
    """Looking up an option's letter is learnt as a fixed distance."""
    letter, _, text = ids("A. red")
    assert ids("?\nA. red\nB. cyan")[1:4] == [letter, *ids(". "), text]


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, *TAGS])
def test_special_tokens_and_tags_are_one_token(token):
    assert len(ids(token)) == 1
    assert len(ids(f"a{token}b")) == 3


@pytest.mark.parametrize("text", ["Is it 42?\nÜber 日本 <think>x</think> don't", "  spaces\n\n"])
def test_any_text_survives(text):
    assert TOKENIZER.decode(ids(text)) == text


def test_building_twice_gives_the_same_vocabulary():
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_chat_template_puts_the_video_before_the_question():
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    chat = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
