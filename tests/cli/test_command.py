"""The ``vrts`` command as users call it, on real video files and a small random model."""

import html
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2MLP

from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.cli.command import VrtsCLI, main, run
from vrts.data.readers.video_rts import VideoR1Reader
from vrts.models.checkpoints.contents import FORMAT, FORMAT_KEY
from vrts.models.grpo.guards import DivergenceError
from vrts.models.module import VideoQAModule

CONFIGS = Path(__file__).parents[2] / "configs"


def fit_args(model: Path, root: Path, *more: str) -> list[str]:
    return [
        "fit",
        f"--config={CONFIGS / 'grpo.yaml'}",
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={model}",
        f"--trainer.default_root_dir={root}",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_steps=2",
        "--data.batch_size=1",
        "--model.num_generations=2",
        "--model.max_new_tokens=8",
        "--data.num_frames=4",
        "--data.num_workers=0",
        *more,
    ]


def own_train(annotations: Path) -> list[str]:
    return [
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={annotations}",
        "--data.train.init_args.video_root=null",
    ]


def predict_args(model: Path, root: Path, annotations: Path, *more: str) -> list[str]:
    return [
        "predict",
        f"--config={CONFIGS / 's2d.yaml'}",
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={model}",
        f"--trainer.default_root_dir={root}",
        "--trainer.enable_progress_bar=false",
        "--model.max_new_tokens=8",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.video_root=null",
        "--data.num_workers=0",
        *more,
    ]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def broken(value: str, calls: list[int]) -> list[str]:
    objective = f"{{class_path: tests.own_plugins.Broken, init_args: {{value: {value}, calls: "
    return [
        f"--model.objective={objective}{calls}}}}}",
        "--model.reference=null",
        # random weights never earn a reward; this one tells completions apart
        "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        "--model.optimizer.init_args.lr=0.01",
        "--trainer.max_steps=3",
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def card_warning(path: Path) -> str:
    """The warning of a model card as it reads."""
    (found,) = [line for line in path.read_text().splitlines() if line.startswith("> **Warning")]
    return html.unescape(found.replace("\\", ""))


class TestCommands:
    def test_every_logger_gets_the_configuration(self, model, annotations, tmp_path):
        loggers = ", ".join(
            f"{{class_path: {name}, init_args: {{save_dir: {tmp_path / name}}}}}"
            for name in ("CSVLogger", "TensorBoardLogger")
        )
        more = [f"--trainer.logger=[{loggers}]", "--trainer.max_steps=1"]
        assert main(fit_args(model, tmp_path, *own_train(annotations), *more)) == 0
        for name in ("CSVLogger", "TensorBoardLogger"):
            (path,) = (tmp_path / name).rglob("hparams.yaml")
            options = yaml.safe_load(path.read_text())
            assert options["model"]["num_generations"] == 2
            assert options["model"]["policy"]["init_args"]["path"] == str(model)
            assert options["data"]["train"]["init_args"]["path"] == str(annotations)
            assert options["trainer"]["max_steps"] == 1
            assert "overwrite" not in options
            (config,) = tmp_path.rglob("config.yaml")
            assert yaml.safe_load(config.read_text()) == options

    @pytest.mark.fast
    def test_fit_trains_saves_logs_exports_and_tells(self, model, annotations, tmp_path, capsys):
        cli = run(fit_args(model, tmp_path, *own_train(annotations)))
        # Lightning adds a callback of its own where it finds none
        assert [type(c) for c in cli.trainer.checkpoint_callbacks] == [StepCheckpoint]
        checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 2
        assert {line["step"] for line in lines_of(tmp_path / "completions.jsonl")} == {1}
        assert list((tmp_path / "lightning_logs").rglob("events*"))
        assert (tmp_path / "model/model.safetensors").is_file()
        out = capsys.readouterr().out
        assert re.search(r"^step 1 of 2: loss .*, reward .* s a step, 0:00:\d\d left$", out, re.M)
        assert re.search(r"^step 2 of 2: loss .*, reward .* s a step$", out, re.M)
        *_, last, warning = out.splitlines()
        assert warning.startswith("warning: in 2 steps no completion had the format")
        assert warning.removeprefix("warning: ") in card_warning(tmp_path / "model/README.md")
        assert last.startswith("results: ")
        paths = [Path(name) for name in last.removeprefix("results: ").split(", ")]
        assert all(path.exists() for path in paths)
        assert {str(path.relative_to(tmp_path)).split("/")[0] for path in paths} == {
            "completions.jsonl", "curves.png", "model", "checkpoints", "lightning_logs",
        }  # fmt: skip

        assert main(predict_args(tmp_path / "model", tmp_path / "s2d", annotations)) == 0
        lines = lines_of(tmp_path / "s2d/predictions.jsonl")
        assert {line["id"] for line in lines} == {str(i) for i in range(8)}
        assert all(len(line["rounds"][0]["completions"]) == 5 for line in lines)
        assert json.loads((tmp_path / "s2d/metrics.json").read_text())["num_questions"] == 8

    def test_lora_overlay_trains_and_its_adapter_predicts(self, model, annotations, tmp_path):
        lora = f"--config={CONFIGS / 'lora.yaml'}"
        args = fit_args(model, tmp_path / "fit", *own_train(annotations))
        assert main([*args[:3], lora, *args[3:]]) == 0
        assert (tmp_path / "fit/model/adapter_model.safetensors").is_file()
        args = predict_args(tmp_path / "fit/model", tmp_path / "s2d", annotations)
        assert main(args) == 0

    @pytest.mark.parametrize(("command", "reader"), [("validate", "val"), ("test", "test")])
    def test_validate_and_test_report_accuracy(
        self, command, reader, model, annotations, tmp_path, capsys
    ):
        args = fit_args(model, tmp_path)[1:]
        unknown = ("--trainer.max_steps", "--trainer.accumulate")
        args = [arg for arg in args if not arg.startswith(unknown)]
        args += [f"--data.{reader}=VideoR1Reader", f"--data.{reader}.init_args.path={annotations}"]
        assert main([command, *args]) == 0
        assert f"{reader}/accuracy" in capsys.readouterr().out

    def test_a_run_that_max_steps_ended_goes_on_where_it_was(
        self, model, annotations, tmp_path, monkeypatch
    ):
        seen: list[str] = []
        training_step = VideoQAModule.training_step

        def recording_step(module, batch, batch_idx):
            seen.extend(sample.question.id for sample in batch)
            return training_step(module, batch, batch_idx)

        monkeypatch.setattr(VideoQAModule, "training_step", recording_step)

        def fit(folder: str, steps: int, *more: str) -> list[str]:
            args = fit_args(model, tmp_path / folder, *own_train(annotations), *more)
            args += ["--model.max_new_tokens=1", "--trainer.callbacks=[StepCheckpoint]"]
            run([*args, f"--trainer.max_steps={steps}", "--trainer.max_epochs=9"])
            return [seen.pop(0) for _ in range(len(seen))]

        whole = fit("whole", 12)
        assert sorted(whole[:8]) == [str(i) for i in range(8)]
        parts = fit("parts", 3) + fit("parts", 10, "--ckpt_path=last")
        assert parts + fit("parts", 12, "--ckpt_path=last") == whole

    def test_print_config_can_be_read_again(self, model, annotations, tmp_path, capsys):
        with pytest.raises(SystemExit) as exit_info:
            main([*fit_args(model, tmp_path, *own_train(annotations)), "--print_config"])
        assert exit_info.value.code == 0
        printed = capsys.readouterr().out
        assert yaml.safe_load(printed)["model"]["num_generations"] == 2
        config = tmp_path / "printed.yaml"
        config.write_text(printed)
        assert main(["fit", f"--config={config}"]) == 0

    def test_help_lists_the_plug_ins(self, capsys):
        with pytest.raises(SystemExit):
            main(["fit", "--help"])
        text = "".join(capsys.readouterr().out.split())
        for name in (
            "vrts.models.TransformersPolicy",
            "vrts.models.AccuracyReward",
            "vrts.models.DrGRPO",
            "vrts.models.AdapterOff",
            "vrts.data.VideoRTSReader",
            "vrts.data.UniformSampler",
            "vrts.data.PyAVDecoder",
        ):
            assert name in text

    def test_python_m_vrts_is_the_command(self):
        out = subprocess.run(
            [sys.executable, "-m", "vrts", "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert "predict" in out


def test_sigterm_while_questions_are_read_ends_the_run_at_once(
    model, annotations, tmp_path, monkeypatch, caplog
):
    def read(_reader):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(VideoR1Reader, "read", read)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(fit_args(model, tmp_path, *own_train(annotations))) == 130
    assert "Received SIGTERM before the first training step" in caplog.text
    assert "Detected KeyboardInterrupt" not in caplog.text, "Lightning's word on it"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not list(tmp_path.rglob("*.ckpt"))


class TestSwapping:
    """Every plug-in is replaced by a class of the user's own through its class path."""

    def test_a_reward_reader_sampler_and_decoder_of_ones_own(self, model, tmp_path, capsys):
        own = "tests.own_plugins"
        args = fit_args(
            model,
            tmp_path,
            f"--data.train={own}.OneQuestionReader",
            f"--data.sampler={own}.FirstFrames",
            f"--data.decoder={own}.GreyDecoder",
            f"--model.rewards=[{{class_path: {own}.CharactersReward, init_args: {{weight: 0.5}}}}, "
            f"{{class_path: FunctionReward, init_args: {{function: {own}.brevity}}}}]",
            f"--model.objective={own}.NoKL",
            "--model.reference=null",
            "--data.batch_size=2",
        )
        cli = run(args)
        assert cli.trainer.global_step == 1
        names = set(cli.trainer.callback_metrics)
        assert {"train/reward/length", "train/reward/brevity"} <= names
        assert "train/reward/accuracy" not in names
        assert type(cli.model.objective).__name__ == "NoKL"


class TestObjectives:
    def test_objectives_and_their_advantages_are_chosen_by_short_names(
        self, model, annotations, tmp_path, monkeypatch
    ):
        def fit(name: str) -> VrtsCLI:
            objective = f"{{class_path: {name}, init_args: {{advantages: BatchScaled, beta: 0.1}}}}"
            args = fit_args(model, tmp_path, *own_train(annotations), "--trainer.max_steps=1")
            cli = run([*args, f"--model.objective={objective}"])
            assert type(cli.model.objective).__name__ == name
            assert type(cli.model.objective.advantages).__name__ == "BatchScaled"
            return cli

        assert fit("GSPO").trainer.callback_metrics["train/loss"].isfinite()
        monkeypatch.setattr(VrtsCLI, "_run_subcommand", lambda self, subcommand: None)
        for name in ("CISPO", "RLOO"):
            fit(name)


class TestStabilisers:
    def test_bad_steps_leave_the_weights_and_the_run_goes_on(self, model, annotations, tmp_path):
        base = load_file(model / "model.safetensors")
        args = [*fit_args(model, tmp_path, *own_train(annotations)), *broken(".nan", [0, 1, 2])]
        with pytest.raises(DivergenceError, match="all 3 optimizer steps"):
            run(args)
        for name, weight in weights(tmp_path).items():
            assert torch.equal(weight, base[name]), name

        again = tmp_path / "again"
        args = [*fit_args(model, again, *own_train(annotations)), *broken(".inf", [1])]
        cli = run(args)
        assert cli.trainer.callback_metrics["train/nonfinite_steps"] == 1
        moved = weights(again)
        assert all(weight.isfinite().all() for weight in moved.values())
        assert any(not torch.equal(weight, base[name]) for name, weight in moved.items())

    def test_the_run_stops_with_one_message(self, model, annotations, tmp_path, capsys):
        args = [*fit_args(model, tmp_path, *own_train(annotations)), *broken(".nan", [0, 1, 2])]
        assert main([*args, "--model.max_nonfinite_steps=2"]) == 1
        error = capsys.readouterr().err
        assert "vrts: error: 2 optimizer steps in a row" in error
        assert "Traceback" not in error

    def test_a_resumed_run_has_the_reference_that_followed(self, model, annotations, tmp_path):
        reference = "{class_path: FrozenCopy, init_args: {sync_every_n_steps: 1, mixup: 0.5}}"

        def fit(folder: str, steps: int, *more: str) -> dict[str, torch.Tensor]:
            args = fit_args(model, tmp_path / folder, *own_train(annotations), *broken("1", []))
            objective = "{class_path: GRPO, init_args: {beta: 5.0}}"
            args += [f"--model.objective={objective}", f"--model.reference={reference}"]
            args.append("--data.train.init_args.limit=2")
            run([*args, f"--trainer.max_steps={steps}", "--trainer.max_epochs=9", *more])
            return load_file(tmp_path / folder / "model/model.safetensors")

        whole = fit("whole", 4)
        fit("parts", 2)
        parts = fit("parts", 4, "--ckpt_path=last")
        for name, weight in parts.items():
            torch.testing.assert_close(weight, whole[name], rtol=1e-4, atol=1e-5)
        fixed = f"--model.reference={reference.replace('1, mixup', '9, mixup')}"
        other = fit("other", 4, fixed)
        assert any((other[name] - weight).abs().max() > 1e-4 for name, weight in whole.items())

    def test_dynamic_sampling_and_the_temporal_reward_are_options(
        self, model, annotations, tmp_path, capsys
    ):
        # lengths differ among four completions, so that one question of the two is enough
        args = [*fit_args(model, tmp_path, *own_train(annotations)), *broken("1", [])]
        args += ["--model.num_generations=4", "--overwrite=true"]
        args += ["--model.num_groups=1", "--data.batch_size=2", "--model.temporal.alpha=0.5"]
        metrics = run(args).trainer.callback_metrics
        assert metrics["train/sampled_groups"] == 1
        assert metrics["train/reward/temporal"] == 0
        # random weights are never right: every group agrees, all candidates are tried
        metrics = run([*args, "--model.rewards=[AccuracyReward]"]).trainer.callback_metrics
        assert metrics["train/sampled_groups"] == 2
        assert metrics["train/frac_reward_zero_std"] == 1
        own = "--model.rewards=[{class_path: tests.own_plugins.OwnTemporalReward}]"
        assert main([*args, own]) == 1
        assert "name 'temporal', which is that of model.temporal" in capsys.readouterr().err
        assert main([*args, "--model.num_groups=3"]) == 1
        assert "model.num_groups is 3, but a batch has 2 questions" in capsys.readouterr().err

    def test_truncated_completions_can_be_left_out_of_the_loss(self, model, annotations, tmp_path):
        args = [*fit_args(model, tmp_path, *own_train(annotations)), *broken("1", [])]
        args += ["--model.optimizer.init_args.weight_decay=0", "--overwrite=true"]
        seen = {}
        for masked in ("false", "true"):
            more = [f"--model.mask_truncated={masked}", "--trainer.max_steps=1"]
            metrics = run([*args, *more, "--model.max_new_tokens=2"]).trainer.callback_metrics
            assert metrics["train/truncated"] == 1
            seen[masked] = load_file(tmp_path / "model/model.safetensors")
        base = load_file(model / "model.safetensors")
        moved = {
            masked: any(not torch.equal(w, base[name]) for name, w in weights.items())
            for masked, weights in seen.items()
        }
        assert moved == {"false": True, "true": False}


class TestPictures:
    """Image questions beside videos in one run, as Video-R1 has them."""

    @pytest.fixture
    def mixed(self, annotations, tmp_path) -> Path:
        rows = lines_of(annotations)[:2]
        for row in rows:
            row["path"] = str(annotations.parent / row["path"])
        image = tmp_path / "a.png"
        Image.new("RGB", (56, 84), "red").save(image)
        more = {"problem_id": "p", "data_type": "image", "path": str(image)}
        path = tmp_path / "mixed.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in [*rows, rows[0] | more]))
        return path

    def test_they_are_trained_on_and_predicted(self, model, mixed, tmp_path):
        args = fit_args(model, tmp_path / "fit", *own_train(mixed), "--data.batch_size=3")
        metrics = run([*args, "--model.temporal={}", "--trainer.max_steps=1"]).trainer
        assert metrics.callback_metrics["train/skipped"] == 0
        assert metrics.callback_metrics["train/sampled_groups"] == 3
        assert main(predict_args(tmp_path / "fit/model", tmp_path / "s2d", mixed)) == 0
        lines = {line["id"]: line for line in lines_of(tmp_path / "s2d/predictions.jsonl")}
        assert lines["p"]["status"] == "ok"
        assert lines["p"]["num_frames"] == 1
        assert len(lines["p"]["rounds"]) == 1


class TestRealFiles:
    def test_paper_recipe_on_cgbench_annotations(self, shared, model, tmp_path):
        args = fit_args(
            model,
            tmp_path,
            f"--data.train.init_args.path={shared}/annotations/"
            "cgbench_selected_training_samples.jsonl",
            f"--data.train.init_args.video_root={shared}/videos",
            '--data.train.init_args.video_map={"*": "nasa_13013.mp4"}',
        )
        cli = run(args)
        assert cli.trainer.global_step == 2
        assert len(cli.datamodule.questions("train")) == 8136
        assert cli.trainer.callback_metrics["train/skipped"] == 0

    def test_both_recipes_on_real_videos(self, shared, model, tmp_path):
        real = shared / "annotations/real_videos.jsonl"
        root = f"--data.train.init_args.video_root={shared}/videos"
        train = own_train(real)[:2]
        assert main(fit_args(model, tmp_path / "fit", *train, root)) == 0
        args = predict_args(tmp_path / "fit/model", tmp_path / "s2d", real)
        args.append(f"--data.predict.init_args.video_root={shared}/videos")
        assert main(args) == 0
        lines = lines_of(tmp_path / "s2d/predictions.jsonl")
        assert len(lines) == 6
        assert {line["status"] for line in lines} == {"ok"}


class TestBadInput:
    """Each mistake gives one message that names the place and the remedy, and no traceback."""

    def check(self, args: list[str], capsys, *expected: str) -> None:
        try:
            status = main(args)
        except SystemExit as error:  # the parser's own way out
            status = error.code
        err = capsys.readouterr().err
        assert status in (1, 2)
        assert "Traceback" not in err
        for text in expected:
            assert text in err

    def test_missing_model_folder(self, annotations, tmp_path, capsys):
        args = fit_args(tmp_path / "nothing", tmp_path, *own_train(annotations))
        self.check(args, capsys, "model.policy.init_args.path", "nothing")

    def test_a_learning_rate_that_the_optimizer_refuses(self, model, annotations, tmp_path, capsys):
        rate = "--model.optimizer.init_args.lr=-1"
        args = fit_args(model, tmp_path, *own_train(annotations), rate)
        self.check(args, capsys, "model.optimizer: Invalid learning rate: -1", "init_args")

    def test_model_folder_without_weights(self, model, annotations, tmp_path, capsys):
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "config.json").write_text((model / "config.json").read_text())
        self.check(
            fit_args(folder, tmp_path, *own_train(annotations)),
            capsys,
            "has no weights",
            str(folder),
        )

    def test_missing_annotation_file(self, model, tmp_path, capsys):
        args = fit_args(model, tmp_path, *own_train(tmp_path / "none.jsonl"))
        self.check(args, capsys, "none.jsonl: no such file")

    def test_malformed_line(self, model, annotations, tmp_path, capsys):
        bad = annotations.parent / "bad.jsonl"
        bad.write_text(annotations.read_text().splitlines()[0] + "\n{oops\n")
        args = fit_args(model, tmp_path, *own_train(bad))
        self.check(args, capsys, "bad.jsonl:2", "not valid JSON")

    @pytest.mark.parametrize(
        ("option", "expected"),
        [
            ("--model.policy=NoSuchPolicy", "NoSuchPolicy"),
            ("--model.num_generatoins=4", "num_generatoins"),
            ("--model.temperature=-1", "model.temperature"),
            ("--data.num_frames=0", "data.num_frames"),
            ("--model.num_generations=1", "model.num_generations is 1"),
            ("--model.reference=null", "model.reference is null"),
            ("--trainer.precision=12", "precision"),
        ],
    )
    def test_bad_option(self, option, expected, model, annotations, tmp_path, capsys):
        args = fit_args(model, tmp_path, *own_train(annotations), option)
        self.check(args, capsys, expected)

    def test_missing_config_file(self, capsys):
        self.check(["fit", "--config=nowhere.yaml"], capsys, "nowhere.yaml")

    def test_missing_checkpoint(self, model, annotations, tmp_path, capsys):
        args = fit_args(model, tmp_path, *own_train(annotations), "--ckpt_path=none.ckpt")
        self.check(args, capsys, "none.ckpt")

    def test_no_reader(self, model, tmp_path, capsys):
        args = fit_args(model, tmp_path, "--data.train=null")
        self.check(args, capsys, "fit needs data.train")

    def test_a_damaged_video_among_others_is_skipped_and_counted(
        self, model, annotations, tmp_path, caplog
    ):
        rows = [json.loads(line) for line in annotations.read_text().splitlines()]
        broken = annotations.parent / "videos/broken.mp4"
        broken.write_bytes(b"no video at all")
        rows[0]["path"] = "videos/broken.mp4"
        path = annotations.parent / "one-damaged.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        args = fit_args(model, tmp_path / "fit", *own_train(path), "--data.batch_size=8")
        cli = run(args)
        assert cli.trainer.callback_metrics["train/skipped"] == 1
        assert "broken.mp4" in caplog.text
        assert main(predict_args(model, tmp_path / "s2d", path)) == 0
        failed = [
            r for r in lines_of(tmp_path / "s2d/predictions.jsonl") if r["status"] == "failed"
        ]
        assert [(line["id"], line["correct"]) for line in failed] == [("0", False)]
        assert "broken.mp4" in failed[0]["error"]
        metrics = json.loads((tmp_path / "s2d/metrics.json").read_text())
        assert (metrics["num_questions"], metrics["num_failed"]) == (8, 1)


class TestFoundByAttack:
    """Input that once led to a traceback, a silent success or a wrong number."""

    def broken(self, annotations: Path) -> Path:
        rows = [json.loads(line) for line in annotations.read_text().splitlines()]
        (annotations.parent / "videos/all-broken.mp4").write_bytes(b"no video at all")
        path = annotations.parent / "all-broken.jsonl"
        lines = [json.dumps(row | {"path": "videos/all-broken.mp4"}) + "\n" for row in rows]
        path.write_text("".join(lines))
        return path

    def fails(self, args: list[str], capsys, *expected: str) -> None:
        assert main(args) == 1
        err = capsys.readouterr().err
        assert "Traceback" not in err
        for text in expected:
            assert text in err

    def test_a_run_without_any_usable_video_is_no_success(
        self, model, annotations, tmp_path, capsys
    ):
        args = fit_args(model, tmp_path, *own_train(self.broken(annotations)))
        self.fails(args, capsys, "none of the first 2 training batches", "all-broken.mp4")
        assert not (tmp_path / "model/model.safetensors").exists()

    def test_a_question_without_an_answer_is_refused_before_training(
        self, model, annotations, tmp_path, capsys
    ):
        rows = [json.loads(line) for line in annotations.read_text().splitlines()]
        rows[3]["solution"] = None
        path = annotations.parent / "no-answer.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        args = fit_args(model, tmp_path, *own_train(path))
        self.fails(args, capsys, "1 of 8 training questions", "no-answer.jsonl:4", "no gold answer")

    def test_errors_of_constructors_are_one_message(self, model, annotations, tmp_path, capsys):
        args = predict_args(model, tmp_path, annotations, "--model.eval_sampling.top_p=7")
        self.fails(args, capsys, "top_p must be above 0")
        levels = "{class_path: SparseToDense, init_args: {levels: [8, 4]}}"
        args = predict_args(model, tmp_path, annotations, f"--trainer.callbacks=[{levels}]")
        self.fails(args, capsys, "SparseToDense.levels is [8, 4]; give even numbers")

    def test_no_last_checkpoint_to_predict_with(self, model, annotations, tmp_path, capsys):
        callbacks = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint}"
        args = predict_args(
            model, tmp_path, annotations, f"--trainer.callbacks=[{callbacks}]", "--ckpt_path=last"
        )
        self.fails(args, capsys, "no checkpoint in", "checkpoints")

    def test_a_file_that_is_no_checkpoint(self, model, annotations, tmp_path, capsys):
        args = fit_args(model, tmp_path, *own_train(annotations), f"--ckpt_path={annotations}")
        self.fails(args, capsys, "is not a checkpoint, or a damaged one", "--ckpt_path")

    def test_a_folder_of_sharded_training(self, model, annotations, tmp_path, capsys):
        folder = tmp_path / "sharded.ckpt"
        folder.mkdir()
        args = fit_args(model, tmp_path, *own_train(annotations), f"--ckpt_path={folder}")
        self.fails(args, capsys, "sharded.ckpt is not a checkpoint, or a damaged one")
        parts = {"state_dict": {"weight": torch.ones(2)}, "optimizer_0": {"step": 1}}
        dcp.save(parts, checkpoint_id=folder, no_dist=True)
        rest = {"pytorch-lightning_version": "2.6", "loops": {"fit_loop": {}}, FORMAT_KEY: FORMAT}
        torch.save(rest, folder / "meta.pt")
        self.fails(args, capsys, "sharded.ckpt is a folder", "configs/fsdp.yaml")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_a_device_that_is_not_there(self, model, annotations, tmp_path, capsys):
        args = fit_args(model, tmp_path, *own_train(annotations), "--trainer.accelerator=cuda")
        self.fails(args, capsys, "configs/cpu.yaml")

    def test_two_predictions_into_one_folder(self, model, annotations, tmp_path, capsys):
        with FileLock(tmp_path / ".lock"):
            args = predict_args(model, tmp_path, annotations)
            self.fails(args, capsys, "another run writes here")
        assert main(args) == 0
        path = tmp_path / "predictions.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines, lines[0]]) + "\n")
        assert main(args) == 0
        assert json.loads((tmp_path / "metrics.json").read_text())["num_questions"] == 8

    def test_a_line_with_fields_of_other_types(self, model, annotations, tmp_path, capsys):
        args = predict_args(model, tmp_path, annotations)
        assert main(args) == 0
        with (tmp_path / "predictions.jsonl").open("a") as file:
            file.write('{"id": 3, "rounds": 5, "status": []}\n')
        self.fails(args, capsys, "predictions.jsonl:9", "not a line that vrts predict wrote")
        (tmp_path / "settings.json").unlink()
        self.fails(args, capsys, "no settings.json")


class TestPrecision:
    """What trains stays in float32, whatever it computes in."""

    def test_mixed_precision_moves_weights_by_small_steps(self, model, annotations, tmp_path):
        before = load_file(model / "model.safetensors")
        args = fit_args(
            model,
            tmp_path,
            *own_train(annotations),
            "--trainer.precision=bf16-mixed",
            "--model.optimizer.init_args.lr=1.0e-6",
            "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        )
        assert main(args) == 0
        after = load_file(tmp_path / "model/model.safetensors")
        moved = [(after[key] - before[key]).abs().max() for key in before if "layers" in key]
        assert {value.dtype for value in after.values()} == {torch.float32}
        assert 0 < max(moved) < 1e-5

    def test_an_adapter_is_float32_on_a_bfloat16_model(self, model, annotations, tmp_path):
        args = fit_args(
            model,
            tmp_path,
            *own_train(annotations),
            "--trainer.precision=bf16-mixed",
            "--model.policy.init_args.dtype=bfloat16",
            "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        )
        cli = run([*args[:3], f"--config={CONFIGS / 'lora.yaml'}", *args[3:]])
        base = cli.model.policy.base.model.language_model.layers[0].self_attn.q_proj
        assert base.base_layer.weight.dtype == torch.bfloat16
        adapter = load_file(tmp_path / "model/adapter_model.safetensors")
        assert {value.dtype for value in adapter.values()} == {torch.float32}
        assert any(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)

    def test_every_round_of_a_prediction_is_computed_alike(
        self, model, annotations, tmp_path, monkeypatch
    ):
        args = predict_args(model, tmp_path, annotations, "--trainer.precision=bf16-mixed")
        levels = "init_args: {levels: [4, 8], num_samples: 2}"
        args.append(
            f"--trainer.callbacks=[{{class_path: SparseToDense, {levels}}}, "
            "{class_path: PredictionWriter}]"
        )
        dtypes = set()

        original = Qwen2MLP.forward

        def forward(module, inputs):
            output = original(module, inputs)
            dtypes.add(output.dtype)
            return output

        monkeypatch.setattr(Qwen2MLP, "forward", forward)
        assert main(args) == 0
        assert {len(line["rounds"]) for line in lines_of(tmp_path / "predictions.jsonl")} == {2}
        assert dtypes == {torch.bfloat16}
