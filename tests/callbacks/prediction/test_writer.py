"""predictions.jsonl and metrics.json: complete lines, and runs that resume others."""

import dataclasses
import json
import re
import signal

import pytest
from lightning.pytorch import Callback

from tests.callbacks.plugins import OPTIONS, ask, completion
from tests.callbacks.runs import (
    by_id,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    predict,
    questions,
    read_predictions,
    scripted,
)
from tests.forked import forked
from vrts.callbacks.prediction.printer import AnswerPrinter
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.callbacks.progress import PredictionProgress
from vrts.files.predictions import prediction_to_json
from vrts.types import InputError, Prediction

SCRIPT = {
    "q0": {4: "ABC", 8: "BBB"},
    "q1": {4: "BBB"},
    "q2": {4: "A-C", 8: "A-C", 16: "ACC"},
    "q4": {4: "---", 8: "---", 16: "---"},
}
"""q3 is about a damaged video, the others get "A" three times."""


def seven(videos):
    asked = questions(videos["long"], 7)
    asked[3] = ask("q3", videos["damaged"], "A")
    asked[5] = ask("q5", videos["long"], None)
    return [categorised(question) for question in asked]


def categorised(question):
    """With a category by the question's number."""
    kind = "odd" if int(question.id[1:]) % 2 else "even"
    return dataclasses.replace(question, metadata={"breakdown": {"kind": kind}})


def nine(videos):
    """An odd number, and one more video that fails, of the other process where there are two."""
    more = [ask("q7", videos["short"]), ask("q8", videos["damaged"])]
    return seven(videos) + [categorised(question) for question in more]


@pytest.fixture(scope="module")
def full(tmp_path_factory, videos):
    """What an uninterrupted run writes: lines and metrics."""
    return predict(tmp_path_factory.mktemp("full"), scripted(SCRIPT), seven(videos))


def test_each_question_has_one_line_of_the_schema(full, videos):
    lines, metrics = full
    assert [line["id"] for line in lines] == [f"q{i}" for i in range(7)]
    means = [r["mean_logprobs"] for r in lines[0]["rounds"]]
    assert all(-1 < mean <= 0 and round(mean, 4) == mean for r in means for mean in r)
    assert list(map(len, means)) == [3, 3]
    assert lines[0] == {
        "id": "q0",
        "gold": "A",
        "answer": "B",
        "correct": False,
        "num_frames": 8,
        "damaged": 0,
        "rounds": [
            {
                "num_frames": 4,
                "times_s": [0.0, 0.625, 1.25, 1.875],
                "completions": [completion(c) for c in "ABC"],
                "answers": ["A", "B", "C"],
                "agreement": 0.3333,
                "num_tokens": [1, 1, 1],
                "mean_logprobs": means[0],
                "cancelled": [False] * 3,
                "is_last": False,
                "damaged": 0,
            },
            {
                "num_frames": 8,
                "times_s": [0.0, 0.25, 0.5, 0.75, 1.125, 1.375, 1.625, 1.875],
                "completions": [completion("B")] * 3,
                "answers": ["B"] * 3,
                "agreement": 1,
                "num_tokens": [1, 1, 1],
                "mean_logprobs": means[1],
                "cancelled": [False] * 3,
                "is_last": False,
                "damaged": 0,
            },
        ],
        "status": "ok",
        "error": None,
        "question": "What colour very very q0?",
        "options": list(OPTIONS),
        "problem_type": "multiple choice",
        "video": videos["long"],
        "breakdown": {"kind": "even"},
    }
    assert [line["correct"] for line in lines] == [False, True, True, False, False, None, True]
    assert [line["answer"] for line in lines] == ["B", "B", "C", None, None, "A", "A"]
    assert lines[3]["status"] == "failed"
    assert "damaged.mp4" in lines[3]["error"]
    assert metrics["accuracy"] == 3 / 6
    assert metrics["decided_at"] == {"4": 3 / 7, "8": 1 / 7, "16": 2 / 7}
    assert metrics["failed"] == ["q3"]


def test_the_table_comes_to_the_terminal(tmp_path, videos, capsys):
    predict(tmp_path, scripted(SCRIPT), seven(videos))
    out = capsys.readouterr().out
    assert "50.0 ± 16.7 %" in out
    assert "decided at 16 frames" in out


def test_lines_are_written_as_soon_as_questions_are_decided(tmp_path, videos):
    written = []

    class Look(Callback):
        def on_predict_batch_end(self, *_args):
            written.append(len(read_predictions(tmp_path)))

    callbacks = [SparseToDense([4, 8], 3), PredictionWriter(str(tmp_path)), Look()]
    data = make_data(predict=seven(videos), eval_batch_size=3)
    trainer = make_trainer(tmp_path, callbacks)
    trainer.predict(make_module(scripted()), datamodule=data, return_predictions=False)
    assert written == [3, 6, 7]


def test_predictions_are_returned_too_where_they_are_asked_for(tmp_path, videos):
    trainer = make_trainer(tmp_path, [SparseToDense([4, 8], 3), PredictionWriter(str(tmp_path))])
    data = make_data(predict=seven(videos), eval_batch_size=2)
    batches = trainer.predict(make_module(scripted(SCRIPT)), datamodule=data)
    predictions = [p for batch in batches for p in batch]
    assert all(isinstance(p, Prediction) for p in predictions)
    lines = json.loads(json.dumps([prediction_to_json(p) for p in predictions]))
    assert by_id(lines) == by_id(read_predictions(tmp_path))


def test_without_a_folder_the_trainers_own_is_taken(tmp_path, videos):
    trainer = make_trainer(tmp_path / "own", [PredictionWriter()])
    data = make_data(predict=questions(videos["long"], 1))
    trainer.predict(make_module(scripted()), datamodule=data, return_predictions=False)
    assert len(read_predictions(tmp_path / "own")) == 1


def test_without_a_densifier_each_question_is_asked_once(tmp_path, videos):
    policy = scripted({"q0": {6: "B"}})
    lines, metrics = predict(
        tmp_path, policy, questions(videos["long"], 2), levels=None, data={"num_frames": 6}
    )
    assert policy.asked == [("q0", 6), ("q1", 6)]
    assert [line["answer"] for line in lines] == ["B", "A"]
    assert metrics["decided_at"] == {"6": 1}
    assert metrics["mean_frames"] == 6


def test_metrics_of_a_part_say_so(tmp_path, videos, capsys):
    first = {"limit_predict_batches": 2}
    _, metrics = predict(tmp_path, scripted(SCRIPT), seven(videos), trainer=first)
    assert (metrics["num_questions"], metrics["num_left_out"]) == (2, 5)
    assert re.search(r"left out\W+5\b", capsys.readouterr().out)
    _, metrics = predict(tmp_path, scripted(SCRIPT), seven(videos))
    assert metrics["num_questions"] == 7
    assert "num_left_out" not in metrics
    assert "left out" not in capsys.readouterr().out


def test_no_questions(tmp_path):
    lines, metrics = predict(tmp_path, scripted(), [])
    assert lines == []
    assert metrics["num_questions"] == 0
    assert metrics["accuracy"] is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 2, 4, 6])
def test_an_interrupted_run_resumes_and_ends_alike(tmp_path, videos, full, after, batch, capsys):
    """A real SIGINT in the middle of a batch, at the first or at a denser level."""
    data = {"eval_batch_size": batch}
    with pytest.raises(SystemExit) as stopped:
        predict(tmp_path, scripted(SCRIPT, stop_after=after), seven(videos), data=data)
    assert stopped.value.code != 0
    assert not (tmp_path / "metrics.json").exists()
    written = read_predictions(tmp_path) if (tmp_path / "predictions.jsonl").exists() else []
    done = len(written)
    assert done < 7
    out = capsys.readouterr().out
    assert f"Interrupted: {done} of 7 questions are decided and kept in {tmp_path}/pred" in out
    policy = scripted(SCRIPT)
    lines, metrics = predict(tmp_path, policy, seven(videos), data=data)
    assert (lines, metrics) == full
    asked = {id for id, _ in policy.asked}
    assert asked == {f"q{i}" for i in range(7)} - {"q3"} - {line["id"] for line in written}


def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path, videos, full, capsys):
    before = signal.getsignal(signal.SIGTERM)
    policy = scripted(SCRIPT, stop_after=2, signal=signal.SIGTERM)
    with pytest.raises(SystemExit):
        predict(tmp_path, policy, seven(videos))
    assert "Interrupted: 1 of 7 questions are decided" in capsys.readouterr().out
    assert len(policy.asked) == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert predict(tmp_path, scripted(SCRIPT), seven(videos)) == full
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_real_model_resumes_and_ends_alike(tmp_path, videos, model_folder):
    asked = [*questions(videos["long"], 2), ask("s", videos["short"])]
    full = predict(tmp_path / "full", make_policy(model_folder), asked)
    lines, _ = predict(tmp_path / "cut", make_policy(model_folder), asked)
    assert lines == full[0]
    path = tmp_path / "cut" / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "cut" / "metrics.json").unlink()
    assert predict(tmp_path / "cut", make_policy(model_folder), asked) == full


def test_a_finished_run_samples_nothing_and_writes_its_metrics_again(tmp_path, videos, full):
    predict(tmp_path, scripted(SCRIPT), seven(videos))
    (tmp_path / "metrics.json").unlink()
    policy = scripted(SCRIPT)
    assert predict(tmp_path, policy, seven(videos)) == full
    assert policy.asked == []


def test_metrics_of_fewer_questions_do_not_outlive_the_first_further_one(tmp_path, videos):
    predict(tmp_path, scripted(SCRIPT), seven(videos)[:4])
    metrics = tmp_path / "metrics.json"
    predict(tmp_path, scripted(SCRIPT), seven(videos)[:4])
    assert metrics.exists(), "a finished run stays finished"
    with pytest.raises(SystemExit):
        predict(tmp_path, scripted(SCRIPT, stop_after=0), seven(videos))
    assert not metrics.exists()


def test_further_questions_are_added(tmp_path, videos, full):
    predict(tmp_path, scripted(SCRIPT), seven(videos)[:4])
    assert predict(tmp_path, scripted(SCRIPT), seven(videos)) == full


def test_the_place_of_the_densifier_does_not_matter(tmp_path, videos, full):
    """It may come after all callbacks that take predictions: same answers, settings and metrics."""
    last = SparseToDense([4, 8, 16], 3)
    taking = [AnswerPrinter(), PredictionProgress(), PredictionWriter(str(tmp_path / "last"))]
    data = make_data(predict=seven(videos))
    trainer = make_trainer(tmp_path, [*taking, last])
    trainer.predict(make_module(scripted(SCRIPT)), datamodule=data, return_predictions=False)
    metrics = json.loads((tmp_path / "last/metrics.json").read_text())
    assert (read_predictions(tmp_path / "last"), metrics) == full
    assert predict(tmp_path / "last", scripted(SCRIPT), seven(videos)) == full, "same settings"


def test_lines_come_as_they_are_decided_and_end_in_order(tmp_path, videos):
    """A failure is decided before the questions in front of it; the finished file is sorted."""
    asked = seven(videos)
    with pytest.raises(SystemExit):
        predict(tmp_path, scripted(SCRIPT, stop_after=0), asked, data={"eval_batch_size": 7})
    assert [line["id"] for line in read_predictions(tmp_path)] == ["q3"]
    lines, _ = predict(tmp_path, scripted(SCRIPT), asked)
    assert [line["id"] for line in lines] == [question.id for question in asked]


def test_other_stages_write_nothing(tmp_path, videos):
    trainer = make_trainer(tmp_path, [PredictionWriter(str(tmp_path / "out"))])
    data = make_data(test=questions(videos["long"], 2))
    trainer.test(make_module(scripted()), datamodule=data, verbose=False)
    assert not (tmp_path / "out").exists()


def predict_until_killed(folder, videos):
    policy = scripted(SCRIPT, stop_after=4, signal=signal.SIGKILL)
    predict(folder, policy, seven(videos))


@pytest.mark.slow
def test_a_killed_run_leaves_complete_lines_and_resumes(tmp_path, videos, full):
    """SIGKILL between rollouts of a process of its own."""
    with forked(tmp_path / "log", predict_until_killed, tmp_path, videos) as processes:
        assert processes.wait() == [-signal.SIGKILL], processes.text()
    lines = read_predictions(tmp_path)
    assert lines == full[0][: len(lines)]
    assert len(lines) == 2
    assert not (tmp_path / "metrics.json").exists()
    assert predict(tmp_path, scripted(SCRIPT), seven(videos)) == full


def test_metrics_are_the_same_to_the_byte_however_often_a_run_was_interrupted(tmp_path, videos):
    asked = nine(videos)
    predict(tmp_path / "full", scripted(SCRIPT), asked)
    for count in (2, 5, 6):
        predict(tmp_path / "parts", scripted(SCRIPT), asked[:count])
    predict(tmp_path / "parts", scripted(SCRIPT), asked)
    for name in ("metrics.json", "predictions.jsonl", "settings.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()
    metrics = json.loads((tmp_path / "full/metrics.json").read_text())
    assert metrics["breakdown"]["kind"]["odd"]["num_questions"] == 4
    assert metrics["breakdown"]["kind"]["even"]["num_failed"] == 1
    assert metrics["num_videos"] == 3
    (failure,) = metrics["failures"]
    assert failure["num_questions"] == 2
    assert "damaged.mp4" not in failure["reason"]


def predict_after(folder, baseline, asked):
    """Predict with a run to compare with; the gain in its metrics."""
    callbacks = [SparseToDense([4, 8, 16], 3), PredictionWriter(str(folder), str(baseline))]
    trainer = make_trainer(folder, callbacks)
    data = make_data(predict=asked)
    trainer.predict(make_module(scripted(SCRIPT)), datamodule=data, return_predictions=False)
    return json.loads((folder / "metrics.json").read_text())["gain"]


def test_the_gain_over_a_baseline_is_among_the_metrics(tmp_path, videos, full):
    everything_wrong = {f"q{i}": {4: "---", 8: "---", 16: "---"} for i in range(9)}
    predict(tmp_path / "before", scripted(everything_wrong), seven(videos)[:3])
    before = tmp_path / "before/predictions.jsonl"
    assert predict_after(tmp_path / "after", before, seven(videos)) == {
        "num_scored": 3, "accuracy_before": 0, "accuracy_after": 2 / 3, "gain": 2 / 3,
    }  # fmt: skip
    other = questions(videos["long"], 2, prefix="other")
    with pytest.raises(InputError, match=r"PredictionWriter\.baseline: .*has no answer to any"):
        predict_after(tmp_path / "other", before, other)
    with pytest.raises(InputError, match=r"PredictionWriter\.baseline: no file .*none\.jsonl"):
        predict_after(tmp_path / "none", tmp_path / "none.jsonl", seven(videos))
