"""Completions that can no longer change a vote are cancelled, and votes of other kinds."""

import math
from random import Random

import pytest

from tests.callbacks.plugins import AtMostFour, ask
from tests.callbacks.prediction.test_sparse_to_dense import counted_frames, rounds, without_reuse
from tests.callbacks.runs import make_policy, predict, questions, scripted
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.data.video.frames import NestedPairSampler
from vrts.voting import LogProbVote, MajorityVote, Vote, VoteError


class LastVote(Vote):
    """All but ignores every completion that is not among the likeliest."""

    def weight(self, mean_logprob):
        return math.exp(mean_logprob) ** 100


def random_script(num_questions: int, M: int, levels, seed: int):
    """Answers that often agree, so that all kinds of ends come up."""
    random = Random(seed)
    return {
        f"q{i}": {level: "".join(random.choices("ABC-", [6, 2, 1, 1], k=M)) for level in levels}
        for i in range(num_questions)
    }


@pytest.mark.parametrize("vote", [MajorityVote(), LogProbVote()])
@pytest.mark.parametrize("consensus", [None, 3])
def test_an_early_stop_changes_no_result(tmp_path, videos, vote, consensus):
    """Random answers that end in random order: what is decided, where, and all metrics.

    What was cancelled cannot agree any more, so agreement alone is no more than a lower bound.
    """
    levels = [4, 8, 16]
    script = random_script(60, 5, levels, seed=consensus or 0)
    asked = questions(videos["long"], 60)
    written = {}
    for early_stop in (False, True):
        s2d = {"consensus": consensus, "vote": vote, "early_stop": early_stop}
        written[early_stop] = predict(
            tmp_path / str(early_stop), scripted(script, one_by_one=True), asked,
            num_samples=5, s2d=s2d, data={"eval_batch_size": 7},
        )  # fmt: skip
    (full, full_metrics), (early, early_metrics) = written.values()
    assert early_metrics.pop("num_cancelled") > full_metrics.pop("num_cancelled") == 0
    assert early_metrics.pop("agreement") < full_metrics.pop("agreement")
    assert early_metrics == full_metrics
    cancelled = 0
    for a, b in zip(full, early, strict=True):
        assert {**a, "rounds": 0} == {**b, "rounds": 0}
        for of_all, left in zip(a["rounds"], b["rounds"], strict=True):
            assert of_all["cancelled"] == [False] * 5
            cancelled += sum(left["cancelled"])
            kept = [None if gone else letter for gone, letter in
                    zip(left["cancelled"], of_all["answers"], strict=True)]  # fmt: skip
            assert left["answers"] == kept
            assert left["agreement"] <= of_all["agreement"]
    assert cancelled > 20, "hardly anything was cancelled: the test shows nothing"
    assert len({line["num_frames"] for line in full}) == 3


def test_a_consensus_of_fewer_decides_a_level(tmp_path, videos):
    script = {"a": {4: "ABAAC"}, "b": {4: "ABABC", 8: "BBB-B"}, "c": {4: "-----", 8: "AAAAA"}}
    asked = [ask(id, videos["long"]) for id in script]
    s2d = {"consensus": 3, "early_stop": False}
    lines, _ = predict(tmp_path, scripted(script), asked, num_samples=5, s2d=s2d)
    assert [(line["answer"], line["num_frames"]) for line in lines] == [
        ("A", 4), ("B", 8), ("A", 8),
    ]  # fmt: skip


def test_a_vote_of_ones_own(tmp_path, videos):
    """What is most likely on average wins, against the majority."""
    policy = scripted({"q": {4: "AAB", 8: "ABA"}})
    lines, _ = predict(tmp_path, policy, [ask("q", videos["long"])], levels=[4, 8],
                       s2d={"vote": LastVote()})  # fmt: skip
    means = lines[0]["rounds"][-1]["mean_logprobs"]
    assert lines[0]["answer"] == "ABA"[means.index(max(means))]
    assert lines[0]["rounds"][0]["times_s"] == [0.0, 0.625, 1.25, 1.875]
    assert lines[0]["rounds"][0]["num_tokens"] == [1, 1, 1]


def test_cancelled_completions_are_sampled_again_if_no_frames_are_left(tmp_path, videos):
    """That the video has no more to show is found out on its next level only."""
    policy = scripted({"q": {4: "AABBB"}}, one_by_one=True)
    asked, data = [ask("q", videos["long"], "B")], {"sampler": AtMostFour()}
    lines, _ = predict(tmp_path, policy, asked, num_samples=5, data=data)
    assert rounds(lines[0]) == [(4, "AABBB")]
    assert lines[0]["answer"] == "B"
    assert policy.asked == [("q", 4)] * 2


class NothingNew(NestedPairSampler):
    """Finds four frames of a video of six, and says nothing of it beforehand."""

    def indices(self, num_source_frames, num_frames, fps):
        most = 4 if num_source_frames == 6 else num_frames
        return super().indices(num_source_frames, min(num_frames, most), fps)


def test_those_that_need_it_are_asked_again_at_once(tmp_path, videos):
    script = {"a": {4: "AABBB"}, "b": {4: "ABC--", 8: "BBBBB"}, "c": {4: "-AACC"}}
    asked = [ask("a", videos["short"]), ask("b", videos["long"]), ask("c", videos["short"]),
             ask("u", videos["short"])]  # fmt: skip
    written = {}
    for early_stop in (True, False):
        policy = scripted(script, one_by_one=True)
        lines, _ = predict(
            tmp_path / str(early_stop), policy, asked, num_samples=5,
            data={"sampler": NothingNew(16), "eval_batch_size": 4}, s2d={"early_stop": early_stop},
        )  # fmt: skip
        times = 2 if early_stop else 1
        assert policy.asked == [
            *[("a", 4)] * times, ("b", 4), ("b", 8), *[("c", 4)] * times, ("u", 4),
        ]  # fmt: skip
        written[early_stop] = [(line["answer"], line["num_frames"]) for line in lines]
    assert written[True] == written[False] == [("B", 4), ("B", 8), ("A", 4), ("A", 4)]


def test_asking_again_leaves_the_features_that_denser_clips_build_on(
    tmp_path, videos, model_folder, monkeypatch
):
    """Neither the repeated clips nor the old pairs of denser ones are encoded once more."""
    asked = [ask("a", videos["short"]), ask("bb", videos["long"]), ask("ccc", videos["short"])]
    data = {"eval_batch_size": 3, "sampler": NothingNew(16)}
    counts = counted_frames(monkeypatch)
    lines, _ = predict(
        tmp_path / "run",
        make_policy(model_folder),
        asked,
        num_samples=5,
        max_new_tokens=64,
        data=data,
    )
    assert [[T for T, _ in rounds(line)] for line in lines] == [[4], [4, 8, 16], [4]]
    assert sum(counts) == 3 * 2 + 2 + 4, "nothing is encoded for those that are asked again"
    counts.clear()
    monkeypatch.setattr(SparseToDense, "setup", without_reuse(SparseToDense.setup))
    plain, _ = predict(tmp_path / "plain", make_policy(model_folder), asked, num_samples=5,
                       max_new_tokens=64, data=data)  # fmt: skip
    assert lines == plain
    assert sum(counts) == 3 * 2 + 2 * 2 + 4 + 8, "two are asked again"


@pytest.mark.parametrize("silent", [(4,), (8,), (16,), (4, 8), (4, 16), (8, 16), (4, 8, 16)])
def test_levels_without_any_answer(tmp_path, videos, silent):
    """What no completion answers is the same with an early stop, at each level and at all."""
    levels = [4, 8, 16]
    script = random_script(12, 5, levels, seed=sum(silent))
    script = {id: {T: "-----" if T in silent else text for T, text in by_level.items()}
              for id, by_level in script.items()}  # fmt: skip
    decided = []
    for early_stop in (False, True):
        lines, metrics = predict(
            tmp_path / str(early_stop), scripted(script, one_by_one=True),
            questions(videos["long"], 12), num_samples=5, s2d={"early_stop": early_stop},
            data={"eval_batch_size": 5},
        )  # fmt: skip
        kept = ("id", "answer", "correct", "num_frames", "status")
        decided.append([{key: line[key] for key in kept} for line in lines])
        undecided = sum(line["num_frames"] == 16 for line in lines)
        assert metrics["num_without_answer"] == (undecided if 16 in silent else 0)
    assert decided[0] == decided[1]
    assert 16 in {line["num_frames"] for line in decided[0]}


class Broken(Vote):
    """Cannot weigh what is unlikely."""

    def weight(self, mean_logprob):
        if mean_logprob < -0.5:
            raise ZeroDivisionError("too unlikely")
        return 1.0


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_vote_that_fails_ends_the_run_by_name(tmp_path, videos, early_stop):
    policy = scripted({"q1": {4: "ABC"}}, one_by_one=True)
    with pytest.raises(VoteError, match=r"^question q\d: Broken raised ZeroDivisionError"):
        predict(tmp_path, policy, questions(videos["long"], 3),
                s2d={"vote": Broken(), "early_stop": early_stop})  # fmt: skip
