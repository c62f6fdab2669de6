"""Runs from recorded completions: what was recorded again, or what another vote makes of it."""

import dataclasses
import json
import random

import pytest

from tests.callbacks.plugins import AtMostFour, QuestionList, ask
from tests.callbacks.prediction.test_writer import SCRIPT, nine
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
from vrts.callbacks.prediction.replay import Replay
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.data.readers.recorded import RecordedReader
from vrts.models.prediction.replay import ReplayPolicy
from vrts.types import InputError
from vrts.voting import LogProbVote, VotingRule, decide, make_round

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
    corrected = [dataclasses.replace(question, gold="B") for question in asked]
    lines, metrics = replay(tmp_path, recorded, reader=QuestionList(corrected))
    assert metrics["accuracy"] != json.loads((recorded / "metrics.json").read_text())["accuracy"]
    assert [line["correct"] for line in lines] == [line["answer"] == "B" for line in lines]


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
        assert (line["answer"], line["correct"]) == (want.answer, want.correct)
        assert line["rounds"][0]["completions"] == texts
        assert line["error"] is None, "it failed at a level that is not asked for here"
        changed += line["answer"] != old["answer"]
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
            assert line["answer"] == rule.answer(decided)
            changed += line["answer"] != before["answer"]
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
    assert "the question is recorded at [4] frames and not at 8" in found["q1"]["error"]
    assert found["q0"]["status"] == found["q2"]["status"] == found["short"]["status"] == "ok"
    assert [r["num_frames"] for r in found["short"]["rounds"]] == [6]
    # decided at 4 frames; no video; damaged above 4 frames
    assert metrics["failed"] == ["q1", "q3", "q5", "q6", "q7", "q8", "fragile"]


def test_more_samples_than_were_recorded_fail_the_questions_by_name(tmp_path, recorded):
    lines, metrics = replay(tmp_path, recorded, num_samples=4)
    found = by_id(lines)
    assert "the round at 4 frames has 3 completions, and 4 are" in found["q0"]["error"]
    assert "no such" not in found["q3"]["error"]
    assert found["q3"]["error"] == by_id(read_predictions(recorded))["q3"]["error"]
    assert metrics["num_failed"] == len(lines) == 12


def copy_with(folder, recorded, change):
    """A copy of a recorded folder whose lines are changed, by a function of each."""
    folder.mkdir()
    (folder / "settings.json").write_bytes((recorded / "settings.json").read_bytes())
    lines = [change(line) for line in read_predictions(recorded)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(("place", "rounds"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("batch_size", [1, 12])
def test_what_is_needed_and_lacks_fails_alone_at_any_level(
    tmp_path, recorded, place, rounds, batch_size
):
    """q2 lacks a completion or has one cancelled; its neighbours are as they were."""

    def spoil(line):
        if line["id"] == "q2":
            line["rounds"][place]["cancelled"][1] = True
        if line["id"] == "q4":
            for name in ("completions", "answers", "num_tokens", "mean_logprobs", "cancelled"):
                line["rounds"][place][name].pop()
        return line

    spoilt = copy_with(tmp_path / "spoilt", recorded, spoil)
    # a vote by log-probs without early stop needs all completions
    vote = LogProbVote()
    want, before = replay(tmp_path / "whole", recorded, vote=vote)
    lines, metrics = replay(tmp_path / "again", spoilt, vote=vote, eval_batch_size=batch_size)
    found = by_id(lines)
    assert {id: line for id, line in found.items() if id not in ("q2", "q4")} == {
        line["id"]: line for line in want if line["id"] not in ("q2", "q4")
    }
    frames = [4, 8][place]
    assert f"the round at {frames} frames lacks 1 of 3 completions" in found["q2"]["error"]
    assert f"the round at {frames} frames has 2 completions, and 3" in found["q4"]["error"]
    assert [len(found[id]["rounds"]) for id in ("q2", "q4")] == [rounds, rounds]
    assert metrics["num_failed"] == before["num_failed"] + 2


def test_a_replay_resumes_where_it_ended_and_knows_its_recording(tmp_path, recorded, asked):
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
    with pytest.raises(InputError, match=r"Replay, but model\.policy is TransformersPolicy"):
        trainer.predict(make_module(policy), datamodule=data)
    assert not policy.loaded


def test_other_stages_decode_as_usual(tmp_path, videos):
    trainer = make_trainer(tmp_path, [Replay()])
    data = make_data(test=[ask("q", videos["long"])])
    policy = scripted()
    trainer.test(make_module(policy), datamodule=data, verbose=False)
    assert policy.asked == [("q", 4)]


LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 40)
"""Frames of the videos, several of which end within the levels or exactly at one."""


@pytest.fixture(scope="module")
def ragged(videos, tmp_path_factory, make_video):
    """Questions about videos of different lengths, an image and videos that fail, and a script
    of 5 answers for each number of frames."""
    folder, rng = tmp_path_factory.mktemp("ragged"), random.Random(7)
    asked = [ask("fragile", videos["fragile"]), ask("damaged", videos["damaged"])]
    for T in LENGTHS:
        video = make_video(folder / f"{T}.mp4", num_frames=T, size=(56, 56))
        asked += [ask(f"{T}-{i}", video, rng.choice("ABC")) for i in range(4)]
    script = {
        question.id: {
            T: "".join(rng.choice(rng.choice(["AAAA", "AAAB", "ABC-"])) for _ in range(5))
            for T in range(2, 17, 2)
        }
        for question in asked
    }
    for T in (2, 4, 6, 8):  # agreed on all that the video has
        script[f"{T}-0"][T] = "AAAAB"
    capped = dataclasses.replace(asked[-1], id="capped", metadata={"max_frames": 8})
    script["capped"] = dict.fromkeys(range(2, 17, 2), "ABCAB")
    return [*asked, capped], script


@pytest.fixture(scope="module")
def fresh(ragged, tmp_path_factory):
    """Predict by itself, with none of it cancelled, and once with each settings."""
    asked, script = ragged
    made = {}

    def predicted(levels, num_samples, consensus=None, vote=None):
        """Its folder and lines, which are read only."""
        key = (tuple(levels), num_samples, consensus, type(vote))
        if key not in made:
            said = {
                id: {T: own[:num_samples] for T, own in answers.items()}
                for id, answers in script.items()
            }
            folder = tmp_path_factory.mktemp("fresh")
            s2d = {"consensus": consensus, "vote": vote, "early_stop": False}
            options = {"levels": levels, "num_samples": num_samples, "s2d": s2d}
            made[key] = folder, predict(folder, scripted(said), asked, **options)[0]
        return made[key]

    return predicted


@pytest.mark.parametrize("recorded_consensus", [None, 4])
@pytest.mark.parametrize(
    ("levels", "num_samples", "consensus", "vote"),
    [
        ([4, 8, 16], 5, None, LogProbVote()),
        ([4, 8, 16], 5, 3, None),
        ([4, 8, 16], 4, 2, LogProbVote()),
        ([4, 16], 5, None, None),
        ([8, 16], 3, None, None),
        ([6, 8], 5, 4, LogProbVote()),
        ([16], 5, None, None),
    ],
)
def test_a_replay_is_what_the_model_says_by_itself(
    tmp_path, fresh, recorded_consensus, levels, num_samples, consensus, vote
):
    recorded, seen = fresh([4, 8, 16], 5, recorded_consensus)
    _, want = fresh(levels, num_samples, consensus, vote)
    path = recorded / "predictions.jsonl"
    callbacks = [
        Replay(),
        SparseToDense(levels, num_samples, consensus=consensus, vote=vote, early_stop=False),
        PredictionWriter(str(tmp_path / "replayed")),
    ]
    module = make_module(ReplayPolicy(str(path)))
    data = make_data(predict=RecordedReader(str(path)), eval_batch_size=7)
    trainer = make_trainer(tmp_path / "replayed", callbacks)
    trainer.predict(module, datamodule=data, return_predictions=False)
    replayed = read_predictions(tmp_path / "replayed")

    def frames(line):
        return [found["num_frames"] for found in line["rounds"]]

    known = {line["id"]: set(frames(line)) for line in seen}
    same = 0
    for line, expected in zip(replayed, want, strict=True):
        if expected["status"] == "ok" and set(frames(expected)) <= known[line["id"]]:
            assert line == expected
            same += 1
        elif line["error"] != expected["error"]:
            assert "the question is recorded at" in line["error"]
            assert line["rounds"] == expected["rounds"][: len(line["rounds"])]
        else:
            assert expected["status"] == "failed"
    assert same >= len(LENGTHS)


def test_the_end_of_a_video_is_recorded(fresh):
    _, lines = fresh([4, 8, 16], 5, consensus=4)
    checked = 0
    for line in lines:
        length, _, rest = line["id"].partition("-")
        if rest:
            available = -(-int(length) // 2) * 2  # the last one of an odd number twice
            flags = [found["num_frames"] == available for found in line["rounds"]]
            assert [found["is_last"] for found in line["rounds"]] == flags
            checked += any(flags)
        if line["id"] == "capped":
            assert [found["is_last"] for found in line["rounds"]] == [False, True]
    assert checked > len(LENGTHS)
    (agreed,) = by_id(lines)["4-0"]["rounds"]
    assert agreed["is_last"], "of one that ended by agreement too"


def test_an_end_that_only_the_sampler_knows_is_recorded(tmp_path, videos):
    asked, script = [ask("q", videos["long"])], {"q": {4: "ABA"}}
    lines, _ = predict(tmp_path, scripted(script), asked, data={"sampler": AtMostFour()})
    assert [(found["num_frames"], found["is_last"]) for found in lines[0]["rounds"]] == [(4, True)]
    replayed, _ = replay(tmp_path / "again", tmp_path)
    assert replayed == lines
