"""Asking and replaying as users call them."""

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest

from vrts.cli.command import main, run
from vrts.files.predictions import prediction_to_json
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError, Prediction, Question, Round

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def never_loads(monkeypatch):
    """A model that must not be loaded: mistakes are found before."""

    def load(policy):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(TransformersPolicy, "load", load)


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
        video = str(annotations.parent / "videos/00000.mp4")
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
        monkeypatch.setattr(
            "vrts.cli.command.VrtsCLI._run_subcommand", lambda self, subcommand: None
        )
        video = str(annotations.parent / "videos/00000.mp4")
        args = ask_args(Path("none"), Path("none"), "--data.video", video)
        cli = run([*args, "--data.question", question])
        cli.datamodule.setup("predict")
        assert cli.datamodule.questions("predict")[0].text == question

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--data.video=nowhere.mp4", "--data.question=?"], "data.video: nowhere.mp4: no such"),
            ([f"--data.video={__file__}"], "data.video and data.question are one question"),
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

    def test_more_frames_than_the_model_has_room_for_are_told_before_it_is_loaded(
        self, annotations, model, tmp_path, monkeypatch
    ):
        def load(policy):
            raise InputError("loaded")

        monkeypatch.setattr(TransformersPolicy, "load", load)
        video = str(annotations.parent / "videos/00000.mp4")
        levels = "--trainer.callbacks=[{class_path: SparseToDense, init_args: {levels: [4, 300]}}]"
        args = ask_args(model, tmp_path, f"--data.video={video}", "--data.question=?", levels)
        with pytest.warns(
            UserWarning,
            match=r"a prompt with 300 frames has 19\d\d\d tokens or more, .* 8192.* level before",
        ):
            assert (
                main(
                    [
                        *args,
                        "--data.resolution.min_pixels=100352",
                        "--data.resolution.max_pixels=200704",
                    ]
                )
                == 1
            )

    def test_a_video_that_cannot_be_decoded_is_a_failure(self, model, tmp_path, capsys):
        assert main(ask_args(model, tmp_path, f"--data.video={__file__}", "--data.question=?")) == 1
        assert f"vrts: error: {__file__}" in capsys.readouterr().err


def recorded_line(id: str, rounds: list[tuple[int, str]], error: str | None = None) -> dict:
    """A line of predictions.jsonl; a dot is a completion that was cancelled."""
    asked = Question(id, "Which?", f"{id}.mp4", options=("red", "green", "blue"), gold="A")
    seen = tuple(
        Round(
            num_frames=num_frames,
            completions=tuple(f"<answer>{letter}</answer>" for letter in letters),
            answers=tuple(None if letter == "." else letter for letter in letters),
            agreement=0.0,
            num_tokens=(1,) * len(letters),
            mean_logprobs=(0.0,) * len(letters),
            cancelled=tuple(letter == "." for letter in letters),
            is_last=num_frames == 40,
        )
        for num_frames, letters in rounds
    )
    return prediction_to_json(Prediction(asked, seen, error=error))


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

    def test_what_is_not_recorded_fails_by_name_and_the_others_are_right(
        self, tmp_path, never_loads, capsys
    ):
        """A recording of several early stops, levels and numbers of samples in one file."""
        recorded = tmp_path / "recorded"
        recorded.mkdir()
        (recorded / "settings.json").write_text('{"levels": [32, 64, 128]}')
        with (recorded / "predictions.jsonl").open("w") as file:
            for id, *rounds in (
                ("agreed", (32, "AAAAA")),
                ("few", (32, "AAA")),
                ("given-up", (32, "AAAA.")),
                ("denser", (32, "AABAA"), (64, "BBBB.")),
                ("few-denser", (32, "AABAA"), (64, "ABBA")),
                ("none-denser", (32, "AABAA")),
                ("stopped", (32, "AB..."), (64, "AC..."), (128, "BBBA.")),
                ("sure", (32, "BBBBA"), (40, "AAABB")),
                ("right", (32, "ABABA"), (64, "AAAAA")),
            ):
                file.write(json.dumps(recorded_line(id, rounds)) + "\n")
            file.write(json.dumps(recorded_line("no-video", [], error="no such file")) + "\n")
        options = ["--data.eval_batch_size=4"]
        assert self.replay(recorded, tmp_path / "out", *options) == 0
        text = (tmp_path / "out/predictions.jsonl").read_text()
        lines = {line["id"]: line for line in map(json.loads, text.splitlines())}
        errors = {
            id: line["error"].replace(f"{recorded}/predictions.jsonl: ", "")
            for id, line in lines.items()
            if line["status"] == "failed"
        }
        assert errors == {
            "few": "the round at 32 frames has 3 completions, and 5 are asked for; give "
            "SparseToDense.num_samples no more than were recorded",
            "given-up": "the round at 32 frames lacks 1 of 5 completions, which an early "
            "stop cancelled and this vote needs; record the run with configs/record.yaml "
            "for any vote",
            "denser": "the round at 64 frames lacks 1 of 5 completions, which an early "
            "stop cancelled and this vote needs; record the run with configs/record.yaml "
            "for any vote",
            "few-denser": "the round at 64 frames has 4 completions, and 5 are asked "
            "for; give SparseToDense.num_samples no more than were recorded",
            "none-denser": "the question is recorded at [32] frames and not at 64; "
            "predict it at that level with the model first",
            "no-video": "no such file",
        }
        answers = {id: lines[id]["answer"] for id in lines.keys() - errors.keys()}
        assert answers == {"agreed": "A", "stopped": "B", "sure": "A", "right": "A"}
        metrics = json.loads((tmp_path / "out/metrics.json").read_text())
        assert (metrics["num_questions"], metrics["num_failed"]) == (10, 6)
        assert metrics["failed"] == [id for id in lines if id in errors]
        assert metrics["accuracy"] == 0.3
        report = (tmp_path / "out/report.html").read_text()
        assert report.rstrip().endswith("</html>")
        assert all(f'"id":"{id}"' in report for id in lines)
        assert "│ failed" in capsys.readouterr().out

    def test_a_vote_that_fails_is_named_with_its_line(self, tmp_path, capsys):
        line = recorded_line("q1", [(32, "AAB")])
        line["rounds"][0]["mean_logprobs"] = [-1.0, -2.0, -0.1]
        (tmp_path / "settings.json").write_text('{"levels": [32]}')
        (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
        vote = "{class_path: tests.own_plugins.SteepVote, init_args: {steepness: -1e9}}"
        options = {"SparseToDense": f"{{levels: [32], num_samples: 3, vote: {vote}}}"}
        callbacks = ", ".join(
            f"{{class_path: {name}, init_args: {options.get(name, {})}}}"
            for name in ("Replay", "SparseToDense", "PredictionWriter")
        )
        again = f"--trainer.callbacks=[{callbacks}]"
        assert self.replay(tmp_path, tmp_path / "again", again) == 1
        message = capsys.readouterr().err.partition("vrts: error: ")[2].splitlines()
        assert message[0].startswith("question q1: SteepVote raised OverflowError")
        assert re.search(r"own_plugins\.py:\d+: .", message[1])

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
            assert "no question was answered: all 8 failed, 8 of them because: " in err
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

        monkeypatch.setattr("vrts.cli.command.run", run)
        assert main(["predict"]) == 1
        expected = f"vrts: error: runs/mine/x.jsonl: {os.strerror(number)}; fix this"
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
