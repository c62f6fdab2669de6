"""Runs from recorded completions: what was recorded again, or what another vote makes of it."""

import dataclasses
import json
import random

import pytest

from tests.callbacks.plugins import QuestionList, ask
from tests.callbacks.runs import (
    by_id,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    predict,
    read_predictions,
    scripted,
)
from tests.callbacks.test_writer import SCRIPT, nine
from vrts.callbacks.densify import SparseToDense
from vrts.callbacks.replay import Replay
from vrts.callbacks.writer import PredictionWriter
from vrts.data.recorded import RecordedReader
from vrts.models.replay import ReplayPolicy
from vrts.types import InputError
from vrts.votes import LogProbVote, VotingRule
from vrts.voting import decide, make_round

MORE = {
    "short": {4: "ABC", 6: "CBB"},
    "fragile": {4: "AAB"},
    "exact": {4: "AB-"},
}


@pytest.fixture(scope="module")
def asked(videos, tmp_path_factory, make_video):
    """Agreeing and not, with short, damaged and fragile videos, and one of exactly 4 frames."""
    exact = make_video(tmp_path_factory.mktemp("exact") / "exact.mp4", num_frames=4, size=(56, 56))
    more = [ask("short", videos["short"]), ask("fragile", videos["fragile"]), ask("exact", exact)]
    return nine(videos) + more


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, asked):
    """Folder of a run by script, at 4, 8 and 16 frames."""
    folder = tmp_path_factory.mktemp("recorded")
    predict(folder, scripted(SCRIPT | MORE), asked)
    return folder


def replay(folder, recorded, levels=(4, 8, 16), num_samples=3, reader=None, vote=None, **options):
    """Predict from a recorded folder; the lines and metrics that come of it."""
    path = recorded / "predictions.jsonl"
    callbacks = [
        Replay(),
        SparseToDense(list(levels), num_samples, vote=vote, early_stop=vote is None),
        PredictionWriter(str(folder)),
    ]
    data = make_data(predict=reader or RecordedReader(str(path)), **options)
    trainer = make_trainer(folder, callbacks)
    module = make_module(ReplayPolicy(str(path)))
    trainer.predict(module, datamodule=data, return_predictions=False)
    return read_predictions(folder), json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_same_settings_give_the_same_files(tmp_path, recorded, batch_size):
    lines, metrics = replay(tmp_path, recorded, eval_batch_size=batch_size)
    assert len(lines) == 12
    assert metrics["num_failed"] == 3
    assert [len(line["rounds"]) for line in lines[-3:]] == [2, 1, 1]
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (recorded / name).read_bytes()


def test_neither_annotations_nor_videos_are_needed(tmp_path, videos, make_video):
    video = make_video(tmp_path / "own.mp4", size=(56, 56))
    want = predict(tmp_path / "recorded", scripted(), [ask("q", video)])
    (tmp_path / "own.mp4").unlink()
    assert replay(tmp_path / "again", tmp_path / "recorded") == want


def test_other_annotations_are_scored_with_the_recorded_completions(tmp_path, recorded, asked):
    corrected = [dataclasses.replace(question, answer="B") for question in asked]
    lines, metrics = replay(tmp_path, recorded, reader=QuestionList(corrected))
    assert metrics["accuracy"] != json.loads((recorded / "metrics.json").read_text())["accuracy"]
    assert [line["correct"] for line in lines] == [line["prediction"] == "B" for line in lines]


def test_another_vote_gives_what_the_pure_functions_say(tmp_path, recorded, asked):
    """The first two completions at 4 frames alone."""
    lines, _ = replay(tmp_path, recorded, levels=[4], num_samples=2)
    before = by_id(read_predictions(recorded))
    changed = 0
    for question, line in zip(asked, lines, strict=True):
        old = before[question.id]
        if not old["rounds"]:
            assert line["error"] == old["error"]
            continue
        texts = old["rounds"][0]["completions"][:2]
        want = decide(question, [make_round(texts, question, 4)])
        assert (line["prediction"], line["correct"]) == (want.answer, want.correct)
        assert line["rounds"][0]["completions"] == texts
        assert line["error"] is None, "it failed at a level that is not asked for here"
        changed += line["prediction"] != old["prediction"]
    assert changed >= 3


def test_a_vote_weighted_by_log_probs_gives_what_the_pure_functions_say(tmp_path, recorded, asked):
    """The same completions with other mean log-probs: one sure B against two unsure A."""
    for name in ("settings.json", "predictions.jsonl"):
        (tmp_path / name).write_bytes((recorded / name).read_bytes())
    rng = random.Random(0)
    lines = read_predictions(recorded)
    for line in lines:
        for found in line["rounds"]:
            found["mean_logprobs"] = [round(-3 * rng.random(), 4) for _ in found["completions"]]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rule = VotingRule(LogProbVote(), early_stop=False)
    replayed, _ = replay(tmp_path / "again", tmp_path, vote=rule.vote)
    changed = 0
    for line, before, question in zip(replayed, lines, asked, strict=True):
        if line["status"] == "ok":
            assert line["rounds"] == before["rounds"]
            last = line["rounds"][-1]
            decided = make_round(
                last["completions"], question, 0, mean_logprobs=last["mean_logprobs"]
            )
            assert line["prediction"] == rule.answer(decided)
            changed += line["prediction"] != before["prediction"]
    assert changed


def test_fewer_levels_need_no_new_rounds(tmp_path, recorded):
    lines, metrics = replay(tmp_path, recorded, levels=[4, 8])
    found = by_id(lines)
    assert [r["num_frames"] for r in found["q2"]["rounds"]] == [4, 8]
    assert [r["num_frames"] for r in found["short"]["rounds"]] == [4, 6]
    assert list(metrics["decided_at"]) == ["4", "8"]


def test_a_round_that_is_not_recorded_fails_its_question_by_name(tmp_path, recorded):
    lines, metrics = replay(tmp_path, recorded, levels=[8, 16])
    found = by_id(lines)
    assert found["q1"]["status"] == "failed"
    assert "question q1 is recorded at [4] frames and not at 8" in found["q1"]["error"]
    assert found["q0"]["status"] == found["q2"]["status"] == found["short"]["status"] == "ok"
    assert [r["num_frames"] for r in found["short"]["rounds"]] == [6]
    # decided at 4 frames; no video; damaged above 4 frames
    assert metrics["failed"] == ["q1", "q3", "q5", "q6", "q7", "q8", "fragile"]


def test_more_samples_than_were_recorded_end_the_run_by_name(tmp_path, recorded):
    with pytest.raises(InputError, match=r"question q0 at 4 frames has 3 completions, and 4 are"):
        replay(tmp_path, recorded, num_samples=4)


def test_a_replay_goes_on_where_it_ended_and_knows_its_recording(tmp_path, recorded, asked):
    want = replay(tmp_path / "whole", recorded)
    reader = RecordedReader(str(recorded / "predictions.jsonl"))
    replay(tmp_path / "parts", recorded, reader=QuestionList(reader.read()[:5]))
    assert replay(tmp_path / "parts", recorded, reader=QuestionList(reader.read())) == want
    other = tmp_path / "other"
    predict(other, scripted(), asked[:2])
    with pytest.raises(InputError, match="replayed '"):
        replay(tmp_path / "parts", other)


def test_another_policy_is_refused(tmp_path, videos, model_folder):
    trainer = make_trainer(tmp_path, [Replay()])
    data = make_data(predict=[ask("q", videos["long"])])
    policy = make_policy(model_folder)
    with pytest.raises(InputError, match=r"Replay, but model\.policy is QwenPolicy"):
        trainer.predict(make_module(policy), datamodule=data)
    assert not policy.loaded


def test_other_stages_decode_as_usual(tmp_path, videos):
    trainer = make_trainer(tmp_path, [Replay()])
    data = make_data(test=[ask("q", videos["long"])])
    policy = scripted()
    trainer.test(make_module(policy), datamodule=data, verbose=False)
    assert policy.asked == [[("q", 4)]]
