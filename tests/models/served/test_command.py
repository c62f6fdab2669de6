"""The ``vrts`` command and `vrts.ask` with a served model, on real video files."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.models.served.server import completion, num_images, refusal
from vrts.api import ask
from vrts.cli.command import main
from vrts.models.served import engine
from vrts.models.served.policy import ServedPolicy

CONFIGS = Path(__file__).parents[3] / "configs"
KEY = "sk-not-to-be-written"
CALLBACKS = (
    "[{class_path: SparseToDense, init_args: {levels: [4, 8, 16], num_samples: 3}}, "
    "{class_path: PredictionWriter}, {class_path: ReportWriter}]"
)


@pytest.fixture
def keyed(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.key = KEY
    return server


def args_of(command: str, url: str, root: Path, annotations: Path, *more: str) -> list[str]:
    reader = {"predict": "predict", "validate": "val", "fit": "train"}[command]
    return [
        command,
        f"--config={CONFIGS / ('grpo.yaml' if command == 'fit' else 's2d.yaml')}",
        f"--config={CONFIGS / 'served.yaml'}",
        f"--model.policy.init_args.base_url={url}",
        "--model.policy.init_args.model=tiny",
        f"--trainer.default_root_dir={root}",
        f"--trainer.callbacks={CALLBACKS}",
        f"--data.{reader}=VideoR1Reader",
        f"--data.{reader}.init_args.path={annotations}",
        f"--data.{reader}.init_args.video_root=null",
        "--data.num_workers=0",
        *more,
    ]


def lines_of(root: Path) -> dict[str, dict]:
    lines = (root / "predictions.jsonl").read_text().splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


def decisions(root: Path) -> dict[str, tuple]:
    """What early stop leaves the same: levels and answers."""
    return {
        id: (line["answer"], line["error"], [r["num_frames"] for r in line["rounds"]])
        for id, line in sorted(lines_of(root).items())
    }


@pytest.fixture
def whole(keyed, annotations, tmp_path):
    """An undisturbed run."""
    assert main(args_of("predict", keyed.url, tmp_path / "whole", annotations)) == 0
    return tmp_path / "whole"


def test_levels_are_asked_as_votes_disagree(keyed, whole):
    lines = lines_of(whole)
    assert len(lines) == 8
    levels = Counter(r["num_frames"] for line in lines.values() for r in line["rounds"])
    assert levels[4] == 8
    assert 0 < levels[16] <= levels[8] < 8, "some agree at once, others never"
    assert {num_images(body) for body in keyed.bodies} == {4, 8, 16}
    for line in lines.values():
        *before, last = line["rounds"]
        assert all(len(set(r["answers"])) > 1 for r in before)
        assert line["answer"] in "AB"
        assert last["mean_logprobs"] == []
        assert last["num_tokens"] == [0 if gone else 5 for gone in last["cancelled"]]
    settings = json.loads((whole / "settings.json").read_text())
    assert (settings["model"], settings["frames"]) == ("tiny", "images jpeg 90")
    assert json.loads((whole / "metrics.json").read_text())["num_failed"] == 0


def test_the_key_is_in_no_file_and_no_output(whole, caplog, capfd):
    paths = [path for path in whole.rglob("*") if path.is_file()]
    assert len(paths) >= 4
    assert not [path for path in paths if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text + "".join(capfd.readouterr())


def test_an_interrupted_run_resumes(keyed, annotations, whole, tmp_path):
    keyed.bodies.clear()

    def interrupt(body, index):
        if index == 20:
            os.kill(os.getpid(), signal.SIGINT)

    args = args_of("predict", keyed.url, tmp_path / "parts", annotations)
    args.append("--model.policy.init_args.max_concurrency=2")
    keyed.rule = interrupt
    assert main(args) == 130
    first = lines_of(tmp_path / "parts")
    assert 0 < len(first) < 8
    assert main(args) == 0
    assert decisions(tmp_path / "parts") == decisions(whole)
    kept = lines_of(tmp_path / "parts")
    assert all(kept[id] == line for id, line in first.items())


def test_a_run_that_lost_its_server_resumes(
    keyed, annotations, whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(engine, "MOST_UNAVAILABLE", 2)
    first = len(keyed.bodies) + 12
    keyed.rule = lambda body, index: refusal(503, "no workers left") if index >= first else None
    args = args_of("predict", keyed.url, tmp_path / "parts", annotations)
    args += [f"--model.policy.init_args.{o}" for o in ("max_retries=0", "max_concurrency=2")]
    assert main(args) == 1
    error = capsys.readouterr().err.partition("vrts: error: ")[2]
    assert "2 questions in a row got no answer" in error
    assert "503 no workers left" in error
    kept = lines_of(tmp_path / "parts")
    assert 0 < len(kept) < 8
    assert all(line["error"] is None for line in kept.values())
    keyed.rule = lambda body, index: None
    assert main(args) == 0
    assert decisions(tmp_path / "parts") == decisions(whole)


def test_failed_questions_are_counted_by_the_server_s_words(keyed, annotations, tmp_path):
    message = "maximum context length is 4096 tokens for "
    keyed.rule = lambda body, index: refusal(400, message + KEY) if num_images(body) > 4 else None
    assert main(args_of("predict", keyed.url, tmp_path, annotations)) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < metrics["num_failed"] < 8
    (failure,) = metrics["failures"]
    assert failure["num_questions"] == metrics["num_failed"]
    assert failure["reason"].endswith(f"400 {message}***")
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"4096 tokens for ***" in content for content in files)
    assert not any(KEY.encode() in content for content in files)


def test_what_is_recorded_is_replayed(whole, tmp_path):
    root = tmp_path / "replayed"
    args = ["predict", f"--config={CONFIGS / 'replay.yaml'}", f"--trainer.callbacks={CALLBACKS}"]
    args[2] = args[2].replace("[{class_path: Sparse", "[{class_path: Replay}, {class_path: Sparse")
    args.append(f"--model.policy.init_args.path={whole / 'predictions.jsonl'}")
    assert main([*args, f"--trainer.default_root_dir={root}"]) == 0
    assert decisions(root) == decisions(whole)


def test_validation_counts(keyed, annotations, tmp_path, capsys):
    callbacks = "[{class_path: SparseToDense, init_args: {levels: [4, 8], num_samples: 3}}]"
    args = args_of("validate", keyed.url, tmp_path, annotations)
    assert main([*args, f"--trainer.callbacks={callbacks}"]) == 0
    assert "val/accuracy" in capsys.readouterr().out
    assert keyed.bodies


def test_one_question_from_python(server, annotations):
    server.rule = lambda body, index: completion(body, ["<answer>B</answer>"])
    video = str(annotations.parent / "videos/00000.mp4")
    found = ask(
        ServedPolicy(server.url, "tiny"),
        video,
        "Which?",
        ["red", "blue"],
        (4, 8),
        accelerator="cpu",
    )
    assert (found.answer, found.num_frames, found.error) == ("B", 4, None)


def test_training_is_refused_before_anything_is_asked(server, annotations, tmp_path, capsys):
    args = args_of("fit", server.url, tmp_path, annotations)
    assert main([arg for arg in args if "callbacks" not in arg]) == 1
    error = capsys.readouterr().err
    assert "ServedPolicy has no weights here" in error
    assert not server.bodies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.policy.init_args.base_url=http://127.0.0.1:9/v1", "127.0.0.1:9/v1 is not there"),
        ("--model.policy.init_args.model=tinny", "the nearest of its models is 'tiny'"),
        ("--model.policy.init_args.api_key_variable=NO_KEY", "NO_KEY holds no key"),
    ],
)
def test_what_is_wrong_is_told_before_questions_are_read(keyed, change, message, tmp_path, capsys):
    # nor is the annotation file there
    args = args_of("predict", keyed.url, tmp_path, tmp_path / "missing.json", change)
    assert main(args) == 1
    error = capsys.readouterr().err.partition("vrts: error: ")[2]
    assert message in error
    assert "missing.json" not in error
    assert len(error.splitlines()) <= 3
