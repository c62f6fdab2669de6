"""The ``vrts`` command as users call it, on real video files and a small random model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from vrts.cli import main, run
from vrts.demo.model import build_model_folder
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset
from vrts.models.module import VideoQAModule

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    build_model_folder(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def annotations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli-data")
    return make_dataset(folder, num_videos=4, seed=5, kinds=(OBJECT, FLASH))


def fit_args(model: Path, root: Path, *more: str) -> list[str]:
    return [
        "fit",
        f"--config={CONFIGS / 'grpo.yaml'}",
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={model}",
        f"--trainer.default_root_dir={root}",
        f"--trainer.logger.init_args.save_dir={root}",
        "--trainer.enable_progress_bar=false",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.max_steps=2",
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


class TestCommands:
    def test_fit_trains_saves_logs_and_exports(self, model, annotations, tmp_path):
        assert main(fit_args(model, tmp_path, *own_train(annotations))) == 0
        checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 2
        assert {line["step"] for line in lines_of(tmp_path / "completions.jsonl")} == {1}
        assert list((tmp_path / "logs").rglob("events*"))
        assert (tmp_path / "model/model.safetensors").is_file()

    def test_the_exported_model_predicts(self, model, annotations, tmp_path):
        main(fit_args(model, tmp_path / "fit", *own_train(annotations)))
        args = predict_args(tmp_path / "fit/model", tmp_path / "s2d", annotations)
        assert main(args) == 0
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
            "vrts.models.qwen.QwenPolicy",
            "vrts.models.rewards.AccuracyReward",
            "vrts.models.objectives.DrGRPO",
            "vrts.models.reference.AdapterOff",
            "vrts.data.readers.VideoRTSReader",
            "vrts.data.sampling.UniformSampler",
            "vrts.data.pyav_decoder.PyAVDecoder",
        ):
            assert name in text

    def test_python_m_vrts_is_the_command(self):
        out = subprocess.run(
            [sys.executable, "-m", "vrts", "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert "predict" in out


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
            f"--model.rewards=[{{class_path: {own}.LengthReward, init_args: {{weight: 0.5}}}}]",
            f"--model.objective={own}.NoKL",
            "--model.reference=null",
            "--data.batch_size=2",
        )
        cli = run(args)
        assert cli.trainer.global_step == 1
        names = set(cli.trainer.callback_metrics)
        assert "train/reward/length" in names
        assert "train/reward/accuracy" not in names
        assert type(cli.model.objective).__name__ == "NoKL"


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
        self.check(args, capsys, "model.policy.path", "nothing")

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
        ("field", "value", "message"),
        [
            ("solution", "<answer>Z</answer>", "'Z' is none of the letters ABCD"),
            ("options", None, "a multiple choice needs 2 to 26 options"),
            ("problem_type", "riddle", "unknown problem_type 'riddle'"),
        ],
    )
    def test_bad_record(self, field, value, message, model, annotations, tmp_path, capsys):
        row = json.loads(annotations.read_text().splitlines()[0]) | {field: value}
        bad = annotations.parent / "bad.jsonl"
        bad.write_text(json.dumps(row) + "\n")
        args = fit_args(model, tmp_path, *own_train(bad))
        self.check(args, capsys, "bad.jsonl:1", message)

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


def test_checkpoint_callback_is_lightnings_own(model, annotations, tmp_path):
    cli = run(fit_args(model, tmp_path, *own_train(annotations)))
    assert type(cli.trainer.checkpoint_callback) is ModelCheckpoint


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
            "--model.rewards=[{class_path: tests.own_plugins.LengthReward}]",
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
            "--model.rewards=[{class_path: tests.own_plugins.LengthReward}]",
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

        def record(module, inputs, output):
            dtypes.add(output.dtype)

        original = VideoQAModule.configure_model

        def configure(module):
            original(module)
            module.policy.base.model.language_model.layers[0].mlp.register_forward_hook(record)

        monkeypatch.setattr(VideoQAModule, "configure_model", configure)
        assert main(args) == 0
        assert {len(line["rounds"]) for line in lines_of(tmp_path / "predictions.jsonl")} == {2}
        assert dtypes == {torch.bfloat16}
