"""Sparse-to-dense prediction: which questions are asked on more frames, and what is decided."""

import logging
import re
from dataclasses import replace

import pytest
from lightning import Callback

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    SMALL,
    by_id,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    predict,
    questions,
    scripted,
)
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.data.video.frames import NestedPairSampler, UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.models.attention.kv_cache import capacity_of
from vrts.models.engines.decode_batch import bytes_per_token
from vrts.models.engines.native import NativeEngine
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.types import InputError, Prediction, Sample, SamplingParams


def rounds(line):
    """Frames and answers of a line's rounds."""
    return [
        (r["num_frames"], "".join("-" if a is None else a for a in r["answers"]))
        for r in line["rounds"]
    ]


def sample_of(video, num_frames):
    clip = PyAVDecoder().decode(video, num_frames, UniformSampler(), SMALL)
    return Sample(questions(video, 1)[0], clip)


def test_unanimity_stops_and_disagreement_continues(tmp_path, videos):
    script = {
        "once": {4: "AAA"},
        "twice": {4: "AAB", 8: "BBB"},
        "thrice": {4: "ABC", 8: "BAB", 16: "CCA"},
    }
    policy = scripted(script)
    asked = [ask(id, videos["long"], "B") for id in script]
    lines, metrics = predict(tmp_path, policy, asked)
    found = by_id(lines)
    assert rounds(found["once"]) == [(4, "AAA")]
    assert rounds(found["twice"]) == [(4, "AAB"), (8, "BBB")]
    assert rounds(found["thrice"]) == [(4, "ABC"), (8, "BAB"), (16, "CCA")]
    assert [found[id]["answer"] for id in script] == ["A", "B", "C"]
    assert [found[id]["correct"] for id in script] == [False, True, False]
    assert [found[id]["num_frames"] for id in script] == [4, 8, 16]
    assert metrics["decided_at"] == {"4": 1 / 3, "8": 1 / 3, "16": 1 / 3}


def test_only_undecided_questions_are_asked_again_and_at_once(tmp_path, videos):
    script = {"a": {4: "AAB", 8: "AAB", 16: "AAB"}, "c": {4: "A-A", 8: "AAA"}}
    policy = scripted(script)
    asked = [ask(id, videos["long"]) for id in "abcd"]
    predict(tmp_path, policy, asked, data={"eval_batch_size": 4})
    order = [("a", 4), ("a", 8), ("a", 16), ("b", 4), ("c", 4), ("c", 8), ("d", 4)]
    assert policy.asked == order


@pytest.mark.parametrize(
    ("answers", "prediction"),
    [("ABB", "B"), ("CBA", "C"), ("-BA", "B"), ("--C", "C"), ("---", None)],
)
def test_the_majority_decides_at_the_cap(tmp_path, videos, answers, prediction):
    policy = scripted({"q": {4: "ABC", 8: answers}})
    lines, metrics = predict(tmp_path, policy, [ask("q", videos["long"], "C")], levels=[4, 8])
    assert rounds(lines[0]) == [(4, "ABC"), (8, answers)]
    assert lines[0]["answer"] == prediction
    assert lines[0]["correct"] is (prediction == "C")
    assert lines[0]["status"] == "ok"
    assert metrics["num_without_answer"] == (prediction is None)
    assert metrics["accuracy"] == (prediction == "C")


def test_a_missing_answer_breaks_unanimity(tmp_path, videos):
    policy = scripted({"q": {4: "AA-", 8: "---", 16: "BBB"}})
    lines, _ = predict(tmp_path, policy, [ask("q", videos["long"])])
    assert rounds(lines[0]) == [(4, "AA-"), (8, "---"), (16, "BBB")]
    assert lines[0]["answer"] == "B"


def test_a_video_shorter_than_a_level_stops_there(tmp_path, videos):
    policy = scripted({"s": {4: "ABC", 6: "CBB"}, "l": {4: "ABC", 8: "ABC", 16: "BAA"}})
    asked = [ask("s", videos["short"], "B"), ask("l", videos["long"], "B")]
    lines, metrics = predict(tmp_path, policy, asked, data={"eval_batch_size": 2})
    found = by_id(lines)
    assert rounds(found["s"]) == [(4, "ABC"), (6, "CBB")]
    assert found["s"]["num_frames"] == 6
    assert (found["s"]["answer"], found["s"]["correct"]) == ("B", True)
    assert rounds(found["l"])[-1] == (16, "BAA")
    assert metrics["mean_frames"] == (6 + 16) / 2
    assert metrics["mean_frames_total"] == (4 + 6 + 4 + 8 + 16) / 2


def test_a_video_shorter_than_the_first_level_is_asked_once(tmp_path, videos):
    policy = scripted({"s": {6: "ABB"}})
    lines, metrics = predict(tmp_path, policy, [ask("s", videos["short"])], levels=[8, 16])
    assert rounds(lines[0]) == [(6, "ABB")]
    assert lines[0]["answer"] == "B"
    assert metrics["mean_frames"] == 6


def test_a_video_with_just_the_frames_of_a_level_is_not_shown_them_again(tmp_path, videos):
    policy = scripted({"s": {6: "ABB"}})
    lines, _ = predict(tmp_path, policy, [ask("s", videos["short"])], levels=[6, 8, 16])
    assert rounds(lines[0]) == [(6, "ABB")]
    assert policy.asked == [("s", 6)]


def test_a_benchmarks_cap_ends_a_question_there(tmp_path, videos):
    """No more frames than its reader allows; the majority of the last level within decides."""
    script = {"capped": {4: "ABC", 8: "BAB"}, "free": {4: "ABC", 8: "BAB", 16: "CCA"}}
    policy = scripted(script)
    asked = [ask(id, videos["long"]) for id in script]
    asked[0] = replace(asked[0], metadata={"max_frames": 8})
    lines, _ = predict(tmp_path, policy, asked)
    found = by_id(lines)
    assert rounds(found["capped"]) == [(4, "ABC"), (8, "BAB")]
    assert rounds(found["free"]) == [(4, "ABC"), (8, "BAB"), (16, "CCA")]
    assert [found[id]["answer"] for id in script] == ["B", "C"]
    assert ("capped", 16) not in policy.asked


@pytest.mark.parametrize("cap", [8, 9, 7])
def test_the_level_of_a_cap_is_known_to_be_the_last_one(tmp_path, videos, cap):
    """Else its unfinished completions would be cancelled, and asked for again."""
    policy = scripted({"q": {4: "ABCAB", 8: "ABBCC"}}, one_by_one=True)
    asked = [replace(ask("q", videos["long"]), metadata={"max_frames": cap})]
    lines, _ = predict(tmp_path, policy, asked, num_samples=5, s2d={"early_stop": True})
    assert policy.asked == [("q", 4), ("q", 8)]
    assert lines[0]["answer"] == "B"


def test_a_damaged_video_is_a_wrong_answer_and_stops_nothing(tmp_path, videos):
    policy = scripted({"a": {4: "ABC", 8: "AAA"}})
    asked = [ask("x", videos["damaged"]), ask("a", videos["long"]), ask("y", "missing.mp4", None)]
    lines, metrics = predict(tmp_path, policy, asked, data={"eval_batch_size": 3})
    found = by_id(lines)
    assert found["a"]["answer"] == "A"
    for id, correct, reason in (("x", False, videos["damaged"]), ("y", None, "no such file")):
        line = found[id]
        assert (line["status"], line["correct"], line["answer"]) == ("failed", correct, None)
        assert (line["rounds"], line["num_frames"]) == ([], 0)
        assert reason in line["error"]
    assert policy.asked == [("a", 4), ("a", 8)]
    assert metrics["accuracy"] == 1 / 2
    assert metrics["failed"] == ["x", "y"]
    assert metrics["num_questions"] == 3


def test_a_batch_of_damaged_videos(tmp_path, videos):
    policy = scripted()
    lines, metrics = predict(
        tmp_path, policy, questions(videos["damaged"], 2), data={"eval_batch_size": 2}
    )
    assert [line["status"] for line in lines] == ["failed"] * 2
    assert policy.asked == []
    assert (metrics["accuracy"], metrics["mean_frames"]) == (0, None)


def test_a_video_that_fails_on_denser_frames_only(tmp_path, videos):
    policy = scripted({"f": {4: "ABC"}, "l": {4: "ABC", 8: "BBB"}})
    asked = [ask("f", videos["fragile"]), ask("l", videos["long"], "B")]
    lines, metrics = predict(tmp_path, policy, asked, data={"eval_batch_size": 2})
    found = by_id(lines)
    assert found["f"]["status"] == "failed"
    assert "fragile.mp4" in found["f"]["error"]
    assert rounds(found["f"]) == [(4, "ABC")]
    assert (found["f"]["correct"], found["f"]["answer"]) == (False, None)
    assert (found["l"]["answer"], found["l"]["correct"]) == ("B", True)
    assert policy.asked == [("f", 4), ("l", 4), ("l", 8)]
    assert metrics["accuracy"] == 0.5


def test_the_densest_level_that_the_model_takes_decides(tmp_path, videos, caplog):
    policy = scripted({"l": {4: "ABC"}, "s": {4: "ABC", 6: "BBB"}}, most_frames=6)
    asked = [ask("l", videos["long"]), ask("s", videos["short"]), ask("u", videos["long"])]
    lines, _ = predict(tmp_path, policy, asked, data={"eval_batch_size": 3})
    found = by_id(lines)
    assert not found["l"].get("error")
    assert rounds(found["l"]) == [(4, "ABC")]
    assert found["l"]["answer"] == "A"
    (warning,) = [r.message for r in caplog.records if "too many" in r.message]
    assert warning.startswith("question l: 8 frames are too many; the level before it decides")
    assert rounds(found["s"]) == [(4, "ABC"), (6, "BBB")]
    assert found["u"]["answer"] == "A"


@pytest.mark.parametrize("early_stop", [True, False])
def test_the_densest_level_that_the_engine_has_room_for_decides(
    tmp_path, videos, model_folder, caplog, early_stop
):
    """What the cache has no room for at a denser level is decided by the votes before it."""
    policy = make_policy(model_folder)
    policy.load()
    s2d, asked = {"early_stop": early_stop}, questions(videos["long"], 2)
    with_all, _ = predict(tmp_path / "all", policy, asked, s2d=s2d)
    assert [frames for frames, _ in rounds(with_all[0])] == [4, 8, 16]
    network = policy.network()
    lengths = [
        policy.family.length(sample_of(videos["long"], level), policy._template)[0]
        for level in (8, 16)
    ]
    needed = [(capacity_of(P) + 8) * bytes_per_token(network) for P in lengths]
    assert needed[0] < needed[1]
    lines, metrics = predict(
        tmp_path / "some",
        policy,
        asked,
        engine=NativeEngine(max_kv_gb=(needed[1] - 1) / 1e9),
        s2d=s2d,
    )
    for line, whole in zip(lines, with_all, strict=True):
        assert line["status"] == "ok"
        assert [frames for frames, _ in rounds(line)] == [4, 8]
        completions = line["rounds"][1]["completions"]
        assert completions == whole["rounds"][1]["completions"] or early_stop
        assert line["num_frames"] == 8
        assert not any(line["rounds"][1]["cancelled"]), "they decide"
    assert metrics["num_failed"] == 0
    (warning,) = [r.message for r in caplog.records if "GB of KV cache" in r.message]
    assert re.match(r"question q\d: \d+ prompt tokens and 8 new ones need", warning)
    assert "the level before it decides, here and from now on" in warning


def test_the_context_of_a_real_model_ends_a_question_by_name(tmp_path, videos, model_folder):
    """The tiny model holds 8192 tokens: 8190 new ones leave no room for a video."""
    asked = questions(videos["long"], 2)
    policy = make_policy(model_folder)
    lines, metrics = predict(tmp_path, policy, asked, max_new_tokens=8190)
    for i, line in enumerate(lines):
        assert re.match(r"\d+ prompt tokens \(8 of them video\) and 8190 new", line["error"])
        assert line["id"] == f"q{i}", "which whoever reports the error names"
        assert "max_new_tokens" in line["error"]
    assert metrics["num_failed"] == 2


def test_a_real_model_answers_alike_in_batches_and_one_by_one(tmp_path, videos, model_folder):
    asked = [
        ask("a", videos["long"]), ask("bb", videos["short"]), ask("x", videos["damaged"]),
        ask("ccc", videos["long"]), ask("d", videos["fragile"]),
    ]  # fmt: skip
    written = []
    for size in (1, 2, 5):
        policy = make_policy(model_folder)
        lines, _ = predict(tmp_path / str(size), policy, asked, data={"eval_batch_size": size})
        written.append(lines)
    assert written[0] == written[1] == written[2]
    texts = [tuple(r["completions"]) for line in written[0] for r in line["rounds"]]
    assert len(set(texts)) == len(texts) >= 8, "each round draws anew, M completions that differ"
    assert all(len(set(round)) == 3 for round in texts)


def test_the_seed_decides_what_is_sampled(tmp_path, videos, model_folder):
    asked = questions(videos["long"], 1)
    first, _ = predict(tmp_path / "a", make_policy(model_folder), asked)
    again, _ = predict(tmp_path / "b", make_policy(model_folder), asked)
    other, _ = predict(tmp_path / "c", make_policy(model_folder), asked, seed=1)
    assert first == again != other


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_all_rounds_are_of_one_precision(tmp_path, videos, precision):
    policy = scripted({"q0": {4: "ABC", 8: "ABC"}})
    asked = questions(videos["long"], 1)
    predict(tmp_path, policy, asked, trainer={"precision": precision})
    assert policy.autocast == [precision == "bf16-mixed"] * 3


def test_bf16_true_answers_as_bfloat16_weights_do(tmp_path, videos, model_folder):
    """Lightning's precision changes torch's default dtype, in the first round but not in others."""
    asked = [ask("a", videos["long"]), ask("bb", videos["short"])]
    options = {"eval_sampling": SamplingParams(temperature=0.9, top_p=0.9)}
    written = [
        predict(
            tmp_path / precision,
            make_policy(model_folder, dtype="bfloat16"),
            asked,
            trainer={"precision": precision},
            **options,
        )[0]
        for precision in ("32-true", "bf16-true")
    ]
    assert written[0] == written[1]


def test_greedy_answers_are_unanimous_or_none(tmp_path, videos, model_folder):
    lines, _ = predict(
        tmp_path,
        make_policy(model_folder),
        questions(videos["long"], 1),
        eval_sampling=SamplingParams(temperature=0),
    )
    assert all(len(set(r["completions"])) == 1 for r in lines[0]["rounds"])


class SeenFrames(Callback):
    """Notes what it is given: questions and numbers of frames, and the outputs of each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.outputs: list[list[str]] = []

    def on_predictions(self, trainer, pl_module, predictions):
        self.seen += [(p.question.id, p.clip.num_frames) for p in predictions]

    def on_predict_batch_end(self, trainer, pl_module, outputs, *args):
        self.outputs.append([p.question.id for p in outputs])


@pytest.mark.parametrize("first", [True, False])
def test_without_a_writer_predictions_are_returned(tmp_path, videos, first):
    policy = scripted({"q": {4: "ABC", 8: "CCC"}})
    seen, densifier = SeenFrames(), SparseToDense([4, 8], 3)
    trainer = make_trainer(tmp_path, [densifier, seen] if first else [seen, densifier])
    data = make_data(predict=[ask("q", videos["long"], "C"), ask("r", videos["long"])])
    batches = trainer.predict(make_module(policy), datamodule=data)
    predictions = [p for batch in batches for p in batch]
    assert all(isinstance(p, Prediction) for p in predictions)
    # the frames that decided go along, for callbacks that show them, and no further
    assert seen.seen == [("q", 8), ("r", 4)]
    assert [id for ids in seen.outputs for id in ids] == ["q", "r"]
    assert [p.clip for p in predictions] == [None, None]
    assert [(p.question.id, p.answer, len(p.rounds)) for p in predictions] == [
        ("q", "C", 2),
        ("r", "A", 1),
    ]


def test_predictions_come_as_they_are_decided_also_while_the_last_batch_is(tmp_path, videos):
    """A run that is killed then has lost none of them."""
    policy, seen = scripted({"q0": {4: "ABC"}}), SeenFrames()
    known: list[int] = []
    take = policy.take
    policy.take = lambda request: (known.append(len(seen.seen)), take(request))
    data = make_data(predict=questions(videos["long"], 4), eval_batch_size=4)
    make_trainer(tmp_path, [SparseToDense([4, 8], 3), seen]).predict(
        make_module(policy), datamodule=data
    )
    assert known == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "even numbers"),
        ([4, 7], "even numbers"),
        ([8, 4], "ascend"),
        ([4, 4], "ascend"),
        ([0, 2], "even numbers"),
        ([-4, 2], "even numbers"),
    ],
)
def test_bad_levels(levels, message):
    with pytest.raises(InputError, match=rf"SparseToDense\.levels is \[.*{message}"):
        SparseToDense(levels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consensus": 6}, r"consensus is 6, of 5 samples"),
        (
            {"num_samples": 3, "sampling": [SamplingParams()] * 2},
            r"sampling has 2 entries for 3 samples",
        ),
        ({"sampling": []}, r"sampling has 0 entries for 5 samples"),
    ],
)
def test_options_that_contradict(options, message):
    with pytest.raises(InputError, match=rf"SparseToDense\.{message}"):
        SparseToDense(**options)


def test_defaults_are_those_of_the_paper():
    assert SparseToDense().levels == [32, 64, 128]
    assert SparseToDense().num_samples == 5


@pytest.mark.parametrize(("stage", "run"), [("val", "validate"), ("test", "test")])
@pytest.mark.parametrize("batch", [1, 3])
def test_validation_and_test_are_asked_as_prediction_is(
    stage, run, batch, tmp_path, videos, caplog
):
    caplog.set_level(logging.WARNING)
    policy = scripted(
        {"sure": {4: "BBB"}, "denser": {4: "ABC", 8: "BBB"}, "torn": {4: "ABC", 8: "AB-"}}
    )
    asked = [
        ask("sure", videos["long"], "B"), ask("denser", videos["long"], "B"),
        ask("torn", videos["long"], "B"), ask("damaged", videos["damaged"], "B"),
        ask("fragile", videos["fragile"], "A"),
    ]  # fmt: skip
    policy.script["fragile"] = {4: "AAB"}
    trainer = make_trainer(tmp_path, [SparseToDense([4, 8], 3)])
    data = make_data(**{stage: asked}, eval_batch_size=batch)
    (result,) = getattr(trainer, run)(make_module(policy), datamodule=data, verbose=False)
    assert result == {
        f"{stage}/accuracy": pytest.approx(2 / 5),
        f"{stage}/mean_frames": pytest.approx((4 + 8 + 8) / 3),
        f"{stage}/agreement": pytest.approx((3 + 3 + 1) / 9),
        f"{stage}/num_failed": 2,
    }
    failed = [m for m in caplog.messages if m.startswith("question ") and " failed: " in m]
    assert [message.split()[1] for message in failed] == ["damaged", "fragile"]


def test_a_later_run_without_it_asks_once(tmp_path, videos):
    policy = scripted({"q": {8: "ABC", 16: "ABC"}})
    module = make_module(policy)
    data = make_data(predict=[ask("q", videos["long"])], test=[ask("q", videos["long"], "A")])
    make_trainer(tmp_path, [SparseToDense([8, 16], 3)]).predict(module, datamodule=data)
    trainer = make_trainer(tmp_path)
    ((later,),) = trainer.predict(module, datamodule=data)
    assert [(r.num_frames, r.answers) for r in later.rounds] == [(4, ("A",))]
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    assert (result["test/accuracy"], result["test/mean_frames"]) == (1, 4)
    assert [len(sampling) for sampling in policy.sampling] == [3, 3, 1, 1]


def test_each_sample_has_its_own_sampling(tmp_path, videos):
    sampling = [SamplingParams(0.8, stop=("</answer>",)), SamplingParams(0.95, 0.9, 50, 0.4, 0.2)]
    policy = scripted({"q": {4: "AB", 8: "BB"}})
    predict(tmp_path, policy, [ask("q", videos["long"])], num_samples=None,
            s2d={"sampling": sampling})  # fmt: skip
    assert policy.sampling == [tuple(sampling)] * 2


@pytest.mark.parametrize("nested", [True, False])
def test_nested_pairs_are_encoded_once(tmp_path, videos, model_folder, nested, monkeypatch):
    """Answers do not depend on it, and only denser levels' new pairs go through the tower."""
    asked = [ask("a", videos["long"]), ask("bb", videos["short"]), ask("ccc", videos["long"])]
    data = {"eval_batch_size": 3, "sampler": NestedPairSampler(16) if nested else UniformSampler()}
    counts = counted_frames(monkeypatch)
    lines, _ = predict(tmp_path / "run", make_policy(model_folder), asked, data=data)
    # 4, 8, 16 frames of the long videos, 4 and 6 of the short one
    assert sum(counts) == (6 + 2 + 2 + 1 + 4 + 4 if nested else 6 + 4 + 4 + 3 + 8 + 8)
    monkeypatch.setattr(SparseToDense, "setup", without_reuse(SparseToDense.setup))
    counts.clear()
    plain, _ = predict(tmp_path / "plain", make_policy(model_folder), asked, data=data)
    assert lines == plain
    assert sum(counts) == 6 + 11 + 16


def counted_frames(monkeypatch):
    """Pairs of frames in each pass of the vision tower, in a list that grows."""
    counts: list[int] = []
    features = Qwen2_5VL.features

    def counting(family, model, patches, grids):
        counts.append(len(patches) // 16)  # frames of 56x56 pixels, a pair is 16 patches
        return features(family, model, patches, grids)

    monkeypatch.setattr(Qwen2_5VL, "features", counting)
    return counts


def without_reuse(setup):
    """Set up as usual, but encode all frames of each level."""

    def plain_setup(densifier, trainer, pl_module, stage):
        setup(densifier, trainer, pl_module, stage)
        pl_module.plan = replace(pl_module.plan, reuse_features=False)

    return plain_setup
