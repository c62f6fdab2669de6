"""Denser frames are decoded while questions are answered, which changes no answer."""

import logging
import re
import time
from pathlib import Path

import pytest

from tests.callbacks.plugins import MarkingDecoder, ScriptedPolicy, ask
from tests.callbacks.runs import by_id, predict, questions, run_prediction, scripted
from tests.callbacks.test_early_stop import random_script


class Watching(ScriptedPolicy):
    """Waits in each rollout for clips of the next level, whose decoders leave a file behind."""

    def __init__(self, script, folder, patience_s: float) -> None:
        super().__init__(script)
        self.folder, self.patience_s = folder, patience_s
        self.overlapped: list[bool] = []

    def rollout(self, prompts, *args):
        # a video of 6 frames has no next level, and 16 is the last one
        asked = zip(prompts.questions, prompts.num_frames, strict=True)
        marks = [self.folder / f"{2 * T}-{Path(q.video).stem}" for q, T in asked if T in (4, 8)]
        end_s = time.monotonic() + self.patience_s
        while time.monotonic() < end_s and not all(mark.exists() for mark in marks):
            time.sleep(0.01)
        if marks:
            self.overlapped.append(all(mark.exists() for mark in marks))
        return super().rollout(prompts, *args)


@pytest.mark.parametrize("ahead", [True, False])
def test_denser_frames_are_decoded_while_a_question_is_answered(tmp_path, videos, ahead, caplog):
    caplog.set_level(logging.INFO, "vrts.callbacks.densify")
    script = {
        "a": {4: "ABC", 8: "ABC", 16: "CCA"},
        "f": {4: "ABB"},
        "u": {4: "AAA"},
        "s": {4: "-AA", 6: "BBA"},
    }
    asked = [ask("a", videos["long"]), ask("f", videos["fragile"]), ask("u", videos["long"]),
             ask("s", videos["short"]), ask("x", videos["damaged"])]  # fmt: skip
    plain, _ = predict(tmp_path / "plain", scripted(script), asked, data={"eval_batch_size": 5})
    folder = tmp_path / "marks"
    folder.mkdir()
    policy = Watching(script, folder, patience_s=60 if ahead else 0.5)
    data = {"eval_batch_size": 5, "num_workers": 1, "decoder": MarkingDecoder(str(folder))}
    lines, _ = predict(tmp_path / "run", policy, asked, data=data, s2d={"decode_ahead": ahead})
    assert lines == plain
    assert by_id(lines)["f"]["status"] == "failed"
    assert policy.overlapped == [ahead, ahead]
    begun, used, cancelled = map(int, re.findall(r"\d+", caplog.messages[-1]))
    # 8 frames for a, f, u and s, then 16 for a; u's is not needed
    assert (begun, used) == ((5, 4) if ahead else (0, 0))
    assert cancelled in ((0, 1) if ahead else (0,))


@pytest.mark.parametrize("size", [1, 2])
def test_decoding_ahead_of_the_batch_changes_nothing(tmp_path, videos, size, caplog):
    caplog.set_level(logging.INFO, "vrts.callbacks.densify")
    script = random_script(12, 3, [4, 6, 8, 16], seed=size)
    kinds = ["long", "short", "fragile", "damaged"]
    asked = [ask(id, videos[kinds[i % 4]]) for i, id in enumerate(script)]
    plain, _ = predict(tmp_path / "plain", scripted(script), asked, data={"eval_batch_size": size})
    data = {"eval_batch_size": size, "num_workers": 1}
    lines, _ = predict(tmp_path / "run", scripted(script), asked, data=data)
    assert lines == plain
    begun, used, cancelled = map(int, re.findall(r"\d+", caplog.messages[-1]))
    asked_again = sum(len(line["rounds"]) - 1 for line in lines)
    assert begun >= used >= asked_again > 0
    assert used + cancelled <= begun


def test_nothing_is_decoded_ahead_without_workers(tmp_path, videos):
    marks = tmp_path / "marks"
    marks.mkdir()
    policy = scripted({"q": {4: "AAA"}})
    data = {"decoder": MarkingDecoder(str(marks))}
    predict(tmp_path / "run", policy, [ask("q", videos["long"])], data=data)
    assert [mark.name for mark in marks.iterdir()] == ["4-long"]


def test_a_run_that_is_interrupted_while_it_decodes_ahead_ends(tmp_path, videos):
    policy = scripted({"q0": {4: "ABC"}}, stop_after=1)
    with pytest.raises(SystemExit):
        run_prediction(tmp_path, policy, questions(videos["long"], 3), data={"num_workers": 1})
    lines, _ = predict(tmp_path, scripted({"q0": {4: "ABC"}}), questions(videos["long"], 3))
    assert len(lines) == 3
