"""Answers on the terminal."""

import dataclasses

import pytest
from rich.console import Console

from tests.callbacks.plugins import ask, completion
from tests.callbacks.runs import make_data, make_module, make_trainer, scripted
from vrts.callbacks.prediction.printer import SHOWN_TIMES, AnswerPrinter, answer_panel, times_text
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.types import InputError, ProblemType
from vrts.voting import decide, make_round


def shown(prediction) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(answer_panel(prediction))
    return capture.get()


def decided(*rounds, **changes):
    """Rounds are pairs of frames and completions."""
    question = dataclasses.replace(ask("q", "v.mp4"), **changes)
    return decide(question, [make_round(texts, question, T) for T, texts in rounds])


def test_the_answer_its_reasoning_and_all_votes_are_shown():
    texts = [completion("C"), "<think>I see blue.</think><answer>B</answer>", completion("B"), "Hm"]
    prediction = decided((4, texts[:1] + texts), (8, texts))
    last = dataclasses.replace(prediction.rounds[1], times_s=(0.0, 1.25))
    prediction = dataclasses.replace(prediction, rounds=(prediction.rounds[0], last))
    out = shown(prediction)
    assert "What colour very q?" in out
    assert "B. green" in out
    assert "I see blue." in out
    assert "round 1: 4 frames; C: 2, B: 2, no answer: 1" in out
    assert "round 2: 8 frames; B: 2, C: 1, no answer: 1" in out
    assert "frames at 0.00, 1.25 s" in out


def test_of_very_many_frames_the_first_and_the_last_times_are_shown():
    times_s = [i / 10 for i in range(SHOWN_TIMES + 1)]
    assert times_text(times_s[:-1]).count(", ") == SHOWN_TIMES - 1
    assert "…" not in times_text(times_s[:-1])
    shown_times = times_text(times_s).split(", ")
    middle = SHOWN_TIMES // 2
    assert shown_times[middle] == "…"
    assert [float(t) for t in shown_times[:middle]] == times_s[:middle]
    assert [float(t) for t in shown_times[middle + 1 :]] == times_s[-middle:]


def test_cancelled_completions_are_not_missing_answers():
    prediction = decided((4, [completion("A"), completion("B"), "I th"]))
    found = dataclasses.replace(prediction.rounds[0], cancelled=(False, False, True))
    out = shown(dataclasses.replace(prediction, rounds=(found,)))
    assert "A: 1, B: 1, cancelled: 1" in out


def test_no_answer_and_free_text():
    assert "no answer" in shown(decided((4, ["Hm", "Hm"])))
    out = shown(decided((4, ["<answer>A red car</answer>"]), problem_type=ProblemType.FREE_FORM,
                        options=(), gold=None))  # fmt: skip
    assert "red car" in out


def test_control_characters_do_not_reach_the_terminal():
    reasoning = "<think>\x1b[2Jcleared\x9b31m</think><answer>B</answer>"
    out = shown(
        decided((4, [reasoning]), text="Why \x1b]0;title\x07?", options=("x", "\x1b[31mred\r"))
    )
    assert "cleared" in out
    assert "red" in out
    assert not set(out) & {"\x1b", "\x9b", "\x07", "\r"}


def test_hostile_texts_stay_texts():
    bad = "[red]x[/nonsense] [link=http://a.b]c[/link]"
    options = (bad, "other")
    out = shown(
        decided((4, [f"<think>{bad}</think><answer>A</answer>"]), text=bad, options=options)
    )
    assert out.count(bad) == 3


def run(folder, questions):
    trainer = make_trainer(folder, [SparseToDense([4, 8], 3), AnswerPrinter()])
    script = {"q0": {4: "ABC", 8: "BBA"}}
    data = make_data(predict=questions)
    trainer.predict(make_module(scripted(script)), datamodule=data, return_predictions=False)


def test_a_run_prints_what_sparse_to_dense_decided(tmp_path, videos, capsys):
    run(tmp_path, [ask("q0", videos["long"]), ask("q1", videos["damaged"])])
    out = capsys.readouterr().out
    assert "B. green" in out
    assert "round 2: 8 frames; B: 2, A: 1" in out


def test_a_run_without_any_answer_is_a_failure(tmp_path, videos):
    with pytest.raises(InputError, match=r"damaged\.mp4"):
        run(tmp_path, [ask("q1", videos["damaged"])])
