"""Asking and replaying as users call them."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest

from vrts.cli import main, run
from vrts.demo.model import build_model_folder
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset
from vrts.models.qwen import QwenPolicy

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    build_model_folder(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli-data")
    return make_dataset(folder, num_videos=4, seed=5, kinds=(OBJECT, FLASH))


@pytest.fixture
def never_loads(monkeypatch):
    """A model that must not be loaded: mistakes are found before."""

    def load(policy):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(QwenPolicy, "load", load)


def ask_args(model: Path, root: Path, *more: str) -> list[str]:
    return [
        "predict",
        f"--config={CONFIGS / 'ask.yaml'}",
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={model}",
        f"--trainer.default_root_dir={root}",
        "--model.max_new_tokens=8",
        "--data.num_workers=0",
        *more,
    ]


class TestAsk:
    def test_lightnings_adverts_are_left_out(self, annotations, model, tmp_path):
        logged, handler = [], logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())
        logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        logger.addHandler(handler)
        video = str(next(annotations.parent.rglob("*.mp4")))
        more = ["--data.video", video, "--data.question", "What is shown?"]
        assert main(ask_args(model, tmp_path, *more)) == 0
        logger.removeHandler(handler)
        assert any("GPU available" in message for message in logged)
        assert not any("seamless cloud" in message for message in logged)

    def test_one_question_about_a_real_video(self, shared, model, tmp_path, capsys):
        video = str(shared / "videos/nasa_13013.mp4")
        more = ["--data.video", video, "--data.question", "What is shown?"]
        more += ["--data.options", '["a rocket", "a cat"]']
        assert main(ask_args(model, tmp_path, *more)) == 0
        out = capsys.readouterr().out
        assert "What is shown?" in out
        assert "round 1: 32 frames; " in out
        assert not list(tmp_path.rglob("*.jsonl"))

    @pytest.mark.parametrize(
        "question",
        [
            "Is it [red]a: b[/red]?",
            "true",
            "{a: 1}",
            "12",
            "[x]",
            "- a",
            'What\'s "this"?',
            "视频?",
        ],
    )
    def test_any_text_is_a_question(self, question, annotations, monkeypatch):
        monkeypatch.setattr("vrts.cli.VrtsCLI._run_subcommand", lambda self, subcommand: None)
        video = str(next(annotations.parent.rglob("*.mp4")))
        args = ask_args(Path("none"), Path("none"), "--data.video", video)
        cli = run([*args, "--data.question", question])
        cli.datamodule.setup("predict")
        assert cli.datamodule.questions("predict")[0].text == question

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--data.video=nowhere.mp4", "--data.question=?"], "data.video: nowhere.mp4: no such"),
            ([f"--data.video={__file__}"], "data.video and data.question ask one question"),
            (
                [f"--data.video={__file__}", "--data.question=?", '--data.options=["one"]'],
                "data.options: a multiple choice needs",
            ),
            ([], "predict needs data.predict"),
        ],
    )
    def test_mistakes_are_named_before_the_model_is_loaded(
        self, more, message, model, tmp_path, capsys, never_loads
    ):
        assert main(ask_args(model, tmp_path, *more)) == 1
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err

    def test_a_video_that_cannot_be_decoded_is_a_failure(self, model, tmp_path, capsys):
        assert main(ask_args(model, tmp_path, f"--data.video={__file__}", "--data.question=?")) == 1
        assert f"vrts: error: {__file__}" in capsys.readouterr().err


class TestReplay:
    @pytest.fixture(scope="class")
    def recorded(self, model, annotations, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("recorded")
        args = [
            "predict",
            f"--config={CONFIGS / 's2d.yaml'}",
            f"--config={CONFIGS / 'tiny.yaml'}",
            f"--model.policy.init_args.path={model}",
            f"--trainer.default_root_dir={folder}",
            "--model.max_new_tokens=8",
            f"--data.predict.init_args.path={annotations}",
            "--data.predict.init_args.video_root=null",
            "--data.num_workers=0",
        ]
        assert main(args) == 0
        return folder

    def replay(self, recorded: Path, root: Path, *more: str) -> int:
        return main([
            "predict",
            f"--config={CONFIGS / 'replay.yaml'}",
            f"--model.policy.init_args.path={recorded / 'predictions.jsonl'}",
            f"--trainer.default_root_dir={root}",
            *more,
        ])  # fmt: skip

    def test_the_path_alone_gives_the_same_predictions(self, recorded, tmp_path, never_loads):
        assert self.replay(recorded, tmp_path) == 0
        for name in ("predictions.jsonl", "metrics.json"):
            assert (tmp_path / name).read_bytes() == (recorded / name).read_bytes()

    def test_annotations_may_be_given(self, recorded, annotations, tmp_path):
        reader = f"{{class_path: VideoR1Reader, init_args: {{path: {annotations}, limit: 3}}}}"
        assert self.replay(recorded, tmp_path, f"--data.predict={reader}") == 0
        assert json.loads((tmp_path / "metrics.json").read_text())["num_questions"] == 3

    def test_a_missing_recording_is_named(self, tmp_path, capsys):
        assert self.replay(tmp_path / "none", tmp_path) == 1
        assert "predictions.jsonl: no such file" in capsys.readouterr().err

    def test_it_does_not_train(self, recorded, annotations, tmp_path, capsys):
        args = [
            "fit",
            f"--config={CONFIGS / 'grpo.yaml'}",
            f"--config={CONFIGS / 'tiny.yaml'}",
            "--model.policy=ReplayPolicy",
            f"--model.policy.init_args.path={recorded / 'predictions.jsonl'}",
            f"--trainer.default_root_dir={tmp_path}",
            "--data.train=VideoR1Reader",
            f"--data.train.init_args.path={annotations}",
            "--data.train.init_args.video_root=null",
            "--data.num_workers=0",
        ]
        assert main(args) == 1
        assert "ReplayPolicy holds recorded completions" in capsys.readouterr().err


class TestFailures:
    def predict_args(self, model: Path, root: Path, path: Path) -> list[str]:
        return [
            "predict",
            f"--config={CONFIGS / 's2d.yaml'}",
            f"--config={CONFIGS / 'tiny.yaml'}",
            f"--model.policy.init_args.path={model}",
            f"--trainer.default_root_dir={root}",
            "--model.max_new_tokens=8",
            f"--data.predict.init_args.path={path}",
            "--data.predict.init_args.video_root=null",
            "--data.num_workers=0",
        ]

    def with_damaged(self, annotations: Path, name: str, count: int) -> Path:
        """The annotations, of which so many are about a file that is no video."""
        rows = [json.loads(line) for line in annotations.read_text().splitlines()]
        (annotations.parent / "no video.mp4").write_bytes(b"no video at all")
        rows[:count] = [row | {"path": "no video.mp4"} for row in rows[:count]]
        path = annotations.with_name(name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_a_run_without_any_answer_is_no_success(self, model, annotations, tmp_path, capsys):
        path = self.with_damaged(annotations, "all.jsonl", 8)
        args = self.predict_args(model, tmp_path, path)
        for _ in range(2):  # nor is the same command again, which has nothing left to ask
            assert main(args) == 1
            out, err = capsys.readouterr()
            assert "no question was answered: all 8 failed, because: " in err
            assert f"delete {tmp_path}/predictions.jsonl" in err
            assert "Traceback" not in err
            assert "why questions failed" in out
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        (failure,) = metrics["failures"]
        assert failure["num_questions"] == metrics["num_failed"] == 8
        assert "no video.mp4" not in failure["reason"]
        assert failure["reason"] in (tmp_path / "report.html").read_text()
        assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 8

    def test_a_run_with_an_answer_is_one(self, model, annotations, tmp_path, capsys):
        path = self.with_damaged(annotations, "most.jsonl", 7)
        assert main(self.predict_args(model, tmp_path, path)) == 0
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert [f["num_questions"] for f in metrics["failures"]] == [7]
        assert "why questions failed" in capsys.readouterr().out

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
    def test_what_the_disk_refuses_is_named_with_its_file(self, number, monkeypatch, capsys):
        def run(args):
            raise OSError(number, os.strerror(number), "runs/mine/x.jsonl")

        monkeypatch.setattr("vrts.cli.run", run)
        assert main(["predict"]) == 1
        expected = f"vrts: error: runs/mine/x.jsonl: {os.strerror(number)}; put that right"
        assert expected in capsys.readouterr().err

    def test_names_that_a_terminal_would_act_on_are_escaped(
        self, model, annotations, tmp_path, capsys
    ):
        row = json.loads(annotations.read_text().splitlines()[0])
        row |= {"problem_id": "\x1b]0;title\x07" + "x" * 100_000}
        path = tmp_path / "\x1b[2Jrows.jsonl"
        path.write_text(f"{json.dumps(row)}\n" * 2)
        assert main(self.predict_args(model, tmp_path, path)) == 1
        err = capsys.readouterr().err
        assert f"{tmp_path}/\\x1b[2Jrows.jsonl: 1 bad row" in err
        assert "already taken by" in err
        assert "\x1b" not in err
        assert len(err) < 4000
