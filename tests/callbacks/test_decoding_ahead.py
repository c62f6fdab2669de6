"""Denser frames are decoded while questions are answered, which changes no answer."""

import time
from pathlib import Path

import pytest

from tests.callbacks.plugins import MarkingDecoder, ScriptedPolicy, ask
from tests.callbacks.runs import by_id, predict, questions, run_prediction, scripted
from tests.callbacks.test_early_stop import random_script


class Watching(ScriptedPolicy):
    """Waits at each request for the next level's clip, whose decoder leaves a file behind."""

    def __init__(self, script, folder, asked, patience_s: float) -> None:
        super().__init__(script)
        self.folder, self.patience_s = folder, patience_s
        self.stems = {question.id: Path(question.video).stem for question in asked}
        self.overlapped: list[bool] = []

    def text(self, id, num_frames, m):
        # a video of 6 frames has no next level, and 16 is the last one
        if m == 0 and num_frames in (4, 8):
            mark = self.folder / f"{2 * num_frames}-{self.stems[id]}"
            end_s = time.monotonic() + self.patience_s
            while time.monotonic() < end_s and not mark.exists():
                time.sleep(0.01)
            self.overlapped.append(mark.exists())
        return super().text(id, num_frames, m)


@pytest.mark.parametrize("ahead", [True, False])
def test_denser_frames_are_decoded_while_a_question_is_asked(tmp_path, videos, ahead):
    script = {
        "u": {4: "AAA"},
        "a": {4: "ABC", 8: "ABC", 16: "CCA"},
        "f": {4: "ABB"},
        "s": {4: "-AA", 6: "BBA"},
    }
    asked = [ask("u", videos["long"]), ask("a", videos["long"]), ask("f", videos["fragile"]),
             ask("s", videos["short"]), ask("x", videos["damaged"])]  # fmt: skip
    plain, _ = predict(tmp_path / "plain", scripted(script), asked, data={"eval_batch_size": 5})
    folder = tmp_path / "marks"
    folder.mkdir()
    policy = Watching(script, folder, asked, patience_s=60 if ahead else 0.5)
    data = {"eval_batch_size": 5, "num_workers": 1, "decoder": MarkingDecoder(str(folder))}
    lines, _ = predict(tmp_path / "run", policy, asked, data=data, s2d={"decode_ahead": ahead})
    assert lines == plain
    assert by_id(lines)["f"]["status"] == "failed"
    assert policy.overlapped == [ahead] * 5


@pytest.mark.parametrize("size", [1, 2])
def test_decoding_ahead_changes_nothing(tmp_path, videos, size):
    script = random_script(12, 3, [4, 6, 8, 16], seed=size)
    kinds = ["long", "short", "fragile", "damaged"]
    asked = [ask(id, videos[kinds[i % 4]]) for i, id in enumerate(script)]
    plain, _ = predict(tmp_path / "plain", scripted(script), asked, data={"eval_batch_size": size})
    data = {"eval_batch_size": size, "num_workers": 1}
    lines, _ = predict(tmp_path / "run", scripted(script), asked, data=data)
    assert lines == plain
    assert sum(len(line["rounds"]) - 1 for line in lines) > 0


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
