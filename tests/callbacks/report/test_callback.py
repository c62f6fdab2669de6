"""Runs that leave a report: the real Trainer, real videos, a policy that answers by a script."""

import json
import re
import signal

import pytest
from lightning.pytorch.callbacks import Callback

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    by_id,
    make_data,
    make_module,
    make_trainer,
    questions,
    read_predictions,
    scripted,
)
from vrts.callbacks.prediction.replay import Replay
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.callbacks.report.callback import ReportWriter, thumbnails_path
from vrts.data.readers.recorded import RecordedReader
from vrts.models.prediction.replay import ReplayPolicy
from vrts.types import InputError

SCRIPT = {"q0": {4: "ABC", 8: "BBB"}, "q1": {4: "BBB"}, "q2": {4: "A-C", 8: "A-C"}}
"""The others get "A" three times, but q3, whose video is damaged."""


def asked_of(videos):
    asked = questions(videos["long"], 6)
    asked[3] = ask("q3", videos["damaged"], "A")
    return asked


def predict_with_report(folder, videos, policy=None, report=None, extra=(), **options):
    """Predict two questions a batch."""
    report = report or ReportWriter()
    callbacks = [SparseToDense([4, 8], 3), PredictionWriter(str(folder)), report]
    trainer = make_trainer(folder, [*callbacks, *extra], **options)
    data = make_data(predict=asked_of(videos), eval_batch_size=2)
    module = make_module(policy or scripted(SCRIPT))
    trainer.predict(module, datamodule=data, return_predictions=False)


def embedded(folder, name):
    """JSON of a data block of the report."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = re.search(f'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def full(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("full")
    predict_with_report(folder, videos)
    return folder


def test_the_report_has_the_questions_as_they_were_decided(full):
    lines, entries = by_id(read_predictions(full)), by_id(embedded(full, "entries"))
    assert list(entries) == [f"q{i}" for i in range(6)]
    for name, line in lines.items():
        entry = entries[name]
        assert (entry["gold"], entry["answer"]) == (line["gold"], line["answer"])
        assert [r["frames"] for r in entry["rounds"]] == [r["num_frames"] for r in line["rounds"]]
        texts = [[c["text"] for c in r["completions"]] for r in entry["rounds"]]
        assert texts == [r["completions"] for r in line["rounds"]]
    assert entries["q0"]["tags"] == ["wrong", "agreed-wrong"]
    assert entries["q1"]["question"].startswith("What colour")
    assert "damaged.mp4" in entries["q3"]["error"]
    assert entries["q2"]["tags"] == ["wrong", "undecided"]


def test_the_report_has_the_metrics_and_the_settings(full):
    page = (full / "report.html").read_text(encoding="utf-8")
    accuracy = json.loads((full / "metrics.json").read_text())["accuracy"]
    assert f"{100 * accuracy:.1f} ± " in page
    assert "num_samples" in page
    assert "FragileDecoder" in page
    assert "{&#39;" not in page, "no representation of Python"
    assert re.search(r"<title>ScriptedPolicy on .*QuestionList, \d{4}-\d\d-\d\d</title>", page)
    assert page.count("data:image/svg+xml;base64,") == 2


def test_frames_are_there_except_those_of_the_damaged_video(full):
    assert set(embedded(full, "thumbnails")) == {"q0", "q1", "q2", "q4", "q5"}
    assert {path.name for path in (full / "thumbnails").iterdir()} == {
        thumbnails_path(full, f"q{i}").name for i in (0, 1, 2, 4, 5)
    }


def test_wrong_questions_come_first_where_frames_are_few(tmp_path, videos):
    predict_with_report(tmp_path, videos, report=ReportWriter(max_thumbnails=2))
    entries = by_id(embedded(tmp_path, "entries"))
    wrong = [name for name, entry in entries.items() if "wrong" in entry["tags"]]
    assert len(wrong) > 2
    assert list(embedded(tmp_path, "thumbnails")) == wrong[:2]


def test_without_thumbnails_no_frames_are_kept(tmp_path, videos):
    predict_with_report(tmp_path, videos, report=ReportWriter(max_thumbnails=0))
    assert embedded(tmp_path, "thumbnails") == {}
    assert not (tmp_path / "thumbnails").exists()


def frames_note(folder):
    """The note on frames that the report lacks; None if there is none."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = re.search('<p class="quiet" id="frames-note">(.*?)</p>', text)
    return found and found.group(1)


def test_the_report_gives_the_reason_for_missing_frames(tmp_path, videos, full):
    assert frames_note(full).startswith("Frames are shown of 5 of 6 questions: where there are")
    none = tmp_path / "none"
    predict_with_report(none, videos, report=ReportWriter(max_thumbnails=0))
    assert frames_note(none).startswith("Frames are shown of 0 of 6 questions: where there are")
    path = str(full / "predictions.jsonl")
    again = tmp_path / "again"
    callbacks = [Replay(), SparseToDense([4, 8], 3), PredictionWriter(str(again)), ReportWriter()]
    data = make_data(predict=RecordedReader(path))
    module = make_module(ReplayPolicy(path))
    make_trainer(again, callbacks).predict(module, datamodule=data, return_predictions=False)
    assert embedded(again, "thumbnails") == {}
    assert "scored recorded completions and decoded no video" in frames_note(again)
    assert embedded(again, "entries") == embedded(full, "entries")


def test_a_report_with_all_frames_has_no_note_on_them(tmp_path, videos):
    callbacks = [SparseToDense([4, 8], 3), PredictionWriter(str(tmp_path)), ReportWriter()]
    data = make_data(predict=questions(videos["long"], 2))
    module = make_module(scripted())
    make_trainer(tmp_path, callbacks).predict(module, datamodule=data, return_predictions=False)
    assert set(embedded(tmp_path, "thumbnails")) == {"q0", "q1"}
    assert frames_note(tmp_path) is None


def test_long_completions_are_shortened(tmp_path, videos, monkeypatch):
    monkeypatch.setattr("vrts.callbacks.report.callback.MOST_CHARACTERS", 20)
    predict_with_report(tmp_path, videos)
    texts = [
        c["text"]
        for i in embedded(tmp_path, "entries")
        for r in i["rounds"]
        for c in r["completions"]
    ]
    assert all("characters left out" in text for text in texts)
    assert "left out" not in (tmp_path / "predictions.jsonl").read_text()


def test_a_resumed_run_s_report_is_that_of_an_uninterrupted_one(tmp_path, videos, full):
    with pytest.raises(SystemExit):
        predict_with_report(tmp_path, videos, scripted(SCRIPT, stop_after=3, signal=signal.SIGINT))
    assert not (tmp_path / "report.html").exists()
    assert [line["id"] for line in read_predictions(tmp_path)] == ["q0", "q1", "q3"]
    predict_with_report(tmp_path, videos)
    for name in ("entries", "thumbnails"):
        assert embedded(tmp_path, name) == embedded(full, name)


def test_the_report_of_fewer_questions_does_not_outlive_the_first_further_one(tmp_path, videos):
    predict_with_report(tmp_path, videos)
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(SystemExit):
        predict_with_report(tmp_path, videos, scripted(SCRIPT, stop_after=0))
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_has_nothing_left_writes_its_report_again(tmp_path, videos):
    predict_with_report(tmp_path, videos)
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    policy = scripted(SCRIPT)
    predict_with_report(tmp_path, videos, policy)
    assert policy.asked == []
    assert (tmp_path / "report.html").read_bytes() == page


def test_a_report_that_cannot_be_written_costs_no_predictions(tmp_path, videos):
    class Block(Callback):
        """Puts a folder where the report goes, when it is too late to find out early."""

        def on_predict_end(self, *_args):
            (tmp_path / "report.html").mkdir()

    with pytest.raises(InputError, match=r"report\.html: cannot write the report") as caught:
        predict_with_report(tmp_path, videos, extra=[Block()])
    assert "predictions.jsonl and metrics.json are complete" in str(caught.value)
    assert len(read_predictions(tmp_path)) == 6
    assert json.loads((tmp_path / "metrics.json").read_text())["num_questions"] == 6
    with pytest.raises(InputError, match="is a folder"):
        predict_with_report(tmp_path, videos)
    (tmp_path / "report.html").rmdir()
    predict_with_report(tmp_path, videos)
    assert len(embedded(tmp_path, "entries")) == 6


def test_frames_that_cannot_be_kept_are_reported_and_cost_nothing_else(tmp_path, videos, caplog):
    class Block(Callback):
        def on_predict_start(self, *_args):
            (tmp_path / "thumbnails").rmdir()
            (tmp_path / "thumbnails").write_text("")

    predict_with_report(tmp_path, videos, extra=[Block()])
    told = [record for record in caplog.records if "cannot keep frames" in record.message]
    assert len(told) == 1
    assert str(tmp_path / "thumbnails") in told[0].message
    assert len(embedded(tmp_path, "entries")) == 6
    assert embedded(tmp_path, "thumbnails") == {}


def test_a_report_without_a_writer_before_it_is_refused(tmp_path, videos):
    data = make_data(predict=asked_of(videos))
    for callbacks in ([ReportWriter()], [ReportWriter(), PredictionWriter(str(tmp_path))]):
        with pytest.raises(InputError, match="put a PredictionWriter before it"):
            make_trainer(tmp_path, callbacks).predict(make_module(scripted()), datamodule=data)
