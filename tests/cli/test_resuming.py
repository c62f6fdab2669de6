"""Runs that go on, through the command: with other ranks, after a full disk, at their end."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.kills import Spread, finish, forked
from tests.callbacks import runs
from tests.cli.test_command import broken, fit_args, own_train, predict_args
from tools.tiny.model import build_model_folder
from vrts.cli.command import main, run

KEEPER = "{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 1, save_top_k: %d, save_last: true, enable_version_counter: false}}"  # noqa: E501
KEEP_LAST = f"--trainer.callbacks=[{KEEPER % 0}]"
KEEP_ALL = f"--trainer.callbacks=[{KEEPER % -1}]"

SHARDED = "{class_path: FullySharded, init_args: {timeout_s: 300}}"


@pytest.fixture
def fit(model, annotations, tmp_path):
    def args(*more: str, root: Path = tmp_path) -> list[str]:
        return fit_args(model, root, *own_train(annotations), *more)

    return args


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on(fit, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        assert main(fit(KEEP_LAST, "--trainer.max_steps=1", root=disk)) == 0
        path = disk / "checkpoints/last.ckpt"
        size = path.stat().st_size
        filler = disk / "filler"
        free = shutil.disk_usage(disk).free
        filler.write_bytes(bytes(free - size // 2))
        assert main(fit(KEEP_LAST, "--ckpt_path=last", root=disk)) == 1
        err = capsys.readouterr().err
        assert f"cannot write the checkpoint {path} (No space left on device)" in err
        assert "Traceback" not in err
        assert step_of(path) == 1
        assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
        filler.unlink()
        assert main(fit(KEEP_LAST, "--ckpt_path=last", root=disk)) == 0
        assert step_of(path) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_torn_last_checkpoint_is_passed_over(fit, tmp_path):
    assert main(fit(KEEP_ALL)) == 0
    folder = tmp_path / "checkpoints"
    torn = folder / "last.ckpt"
    torn.write_bytes(torn.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"skipped .*last\.ckpt, which is damaged or incompl"):
        cli = run(fit(KEEP_ALL, "--ckpt_path=last", "--trainer.max_steps=4"))
    assert cli.model.num_steps_trained == 2
    assert step_of(torn) == 4


def test_a_torn_checkpoint_that_is_named_is_refused(fit, tmp_path, capsys):
    assert main(fit(KEEP_LAST, "--trainer.max_steps=1")) == 0
    torn = tmp_path / "checkpoints/last.ckpt"
    torn.write_bytes(torn.read_bytes()[:-1000])
    assert main(fit(f"--ckpt_path={torn}")) == 1
    assert "last.ckpt is not a checkpoint, or a damaged one" in capsys.readouterr().err
    assert main(fit(KEEP_LAST, "--ckpt_path=last")) == 1
    assert "is complete; give the path of another one" in capsys.readouterr().err


def test_a_run_with_nothing_left_to_do_says_so(fit):
    assert main(fit(KEEP_LAST)) == 0
    with pytest.warns(UserWarning, match=r"nothing was trained: .* of step 2, where .*max_steps 2"):
        assert main(fit(KEEP_LAST, "--ckpt_path=last")) == 0


THREE_EPOCHS = (
    "--trainer.max_epochs=3",
    "--data.batch_size=4",
)
"""Of two steps each."""


def kept(keeper: str) -> str:
    return f"--trainer.callbacks=[{keeper}, CurveWriter]"


def keep_steps(number: int) -> str:
    return kept(f"{{class_path: StepCheckpoint, init_args: {{every_n_steps: {number}, keep: 9}}}}")


@pytest.fixture(scope="module")
def whole(model, annotations, made_once) -> Path:
    """The folder of a run of three epochs that was not interrupted; it is read only."""

    def train(folder: Path) -> None:
        args = [*own_train(annotations), *THREE_EPOCHS, keep_steps(1), "--trainer.max_steps=99"]
        assert main(fit_args(model, folder, *args)) == 0

    folder = made_once("three_epochs", train)
    assert [point["step"] for point in curves(folder)] == [1, 2, 3, 4, 5, 6]
    return folder


@pytest.mark.slow
def test_a_run_interrupted_at_ends_of_epochs_trains_as_long(fit, whole, tmp_path):
    """Checkpoints of runs that were gone on with are gone on from too."""
    want = curves(whole)
    for steps in ((2, 3, 6), (4, 6)):
        cut = tmp_path / "-".join(map(str, steps))
        shutil.copytree(whole, cut, symlinks=True)
        for step in steps:
            for path in (cut / "checkpoints").glob("step*.ckpt"):
                if step_of(path) > step:
                    path.unlink()
            more = (*THREE_EPOCHS, keep_steps(1), "--trainer.max_steps=99", "--ckpt_path=last")
            assert main(fit(*more, root=cut)) == 0
            assert curves(cut) == want, (steps, step)


@pytest.mark.slow
def test_a_run_that_max_steps_ended_with_an_epoch_goes_on(fit, whole, tmp_path):
    for step in (2, 4):
        root = tmp_path / str(step)
        more = (*THREE_EPOCHS, keep_steps(50))
        assert main(fit(*more, f"--trainer.max_steps={step}", root=root)) == 0
        assert main(fit(*more, "--trainer.max_steps=99", "--ckpt_path=last", root=root)) == 0
        assert curves(root) == curves(whole), step


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [99, -1])
def test_checkpoints_that_lightning_writes_after_an_epoch_go_on(fit, whole, tmp_path, max_steps):
    keeper = kept("{class_path: ModelCheckpoint, init_args: {save_top_k: -1}}")
    more = (*THREE_EPOCHS, keeper, f"--trainer.max_steps={max_steps}")
    assert main(fit(*more, root=tmp_path)) == 0
    for step in (2, 4):
        path = tmp_path / f"checkpoints/epoch={step // 2 - 1}-step={step}.ckpt"
        assert main(fit(*more, f"--ckpt_path={path}", root=tmp_path)) == 0
        assert curves(tmp_path) == curves(whole), step


def curves(folder: Path) -> list[dict]:
    """What a run logged, without times."""
    points = runs.curves(folder)
    return [{k: v for k, v in point.items() if not k.endswith("_s")} for point in points]


@pytest.mark.parametrize("plugin", ["AtomicCheckpointIO", "BackgroundCheckpointIO"])
def test_checkpoints_are_written_whole_by_whichever_plugin(fit, tmp_path, plugin):
    cli = run(fit(KEEP_ALL, f"--trainer.plugins={plugin}"))
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == plugin
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"]
    assert [step_of(tmp_path / "checkpoints" / name) for name in names] == [1, 2, 2]


def test_without_a_word_checkpoints_are_written_whole(fit):
    cli = run(fit(KEEP_LAST, "--trainer.max_steps=1"))
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == "AtomicCheckpointIO"


def test_a_run_whose_steps_were_all_skipped_is_no_success(fit, capsys):
    assert main(fit(*broken(".nan", [0, 1, 2]))) == 1
    assert "all 3 optimizer steps had a loss or gradient that is not" in capsys.readouterr().err


class TestAnotherModel:
    @pytest.fixture
    def full(self, fit, tmp_path) -> Path:
        assert main(fit(KEEP_LAST, "--trainer.max_steps=1")) == 0
        return tmp_path / "checkpoints/last.ckpt"

    def check(self, args, capsys, *words):
        assert main(args) == 1
        err = capsys.readouterr().err
        assert "--ckpt_path: the checkpoint is of another model or LoRA setting" in err
        assert all(word in err for word in words), err

    def test_lora(self, fit, full, capsys):
        lora = "--model.policy.init_args.lora={rank: 2}"
        reference = "--model.reference=AdapterOff"
        self.check(fit(lora, reference, f"--ckpt_path={full}"), capsys, "lora_A", "None in the che")

    def test_lora_rank(self, fit, tmp_path, capsys):
        reference = "--model.reference=AdapterOff"
        rank = "--model.policy.init_args.lora={rank: %d}"
        assert main(fit(KEEP_LAST, rank % 4, reference, "--trainer.max_steps=1")) == 0
        args = fit(rank % 2, reference, f"--ckpt_path={tmp_path / 'checkpoints/last.ckpt'}")
        self.check(args, capsys, "lora_A", "(4, ", "(2, ")

    def test_lora_alpha(self, fit, tmp_path, capsys):
        """It is in no shape, but another alpha is another model."""
        reference = "--model.reference=AdapterOff"
        lora = "--model.policy.init_args.lora={rank: 4, alpha: %d}"
        assert main(fit(KEEP_LAST, lora % 8, reference, "--trainer.max_steps=1")) == 0
        path = tmp_path / "checkpoints/last.ckpt"
        capsys.readouterr()
        assert main(fit(lora % 16, reference, f"--ckpt_path={path}")) == 1
        err = capsys.readouterr().err
        assert "trained with lora.alpha 8, but model.policy has 16; give" in err
        assert "--model.policy.init_args.lora.alpha=8" in err
        export = ["export", *fit(lora % 16)[1:], f"--ckpt_path={path}"]
        assert main([*export, f"--output_dir={tmp_path / 'exported'}"]) == 1
        assert "trained with lora.alpha 8" in capsys.readouterr().err
        assert not (tmp_path / "exported").exists()

    @pytest.mark.parametrize("lora", [True, False])
    def test_another_base_of_the_same_shape(self, fit, annotations, model, tmp_path, capsys, lora):
        """By every subcommand that would put the trained weights on it; a copy is the same base."""
        tuning = (
            ("--model.policy.init_args.lora={rank: 4}", "--model.reference=AdapterOff")
            if lora
            else ()
        )
        assert main(fit(KEEP_LAST, *tuning, "--trainer.max_steps=1")) == 0
        path = f"--ckpt_path={tmp_path / 'checkpoints/last.ckpt'}"
        other, copy = tmp_path / "other", tmp_path / "copy"
        build_model_folder(other, seed=1)
        shutil.copytree(model, copy)
        root = tmp_path / "run"
        asked = ["--data.val=VideoR1Reader", f"--data.val.init_args.path={annotations}"]
        subcommands = {
            "fit": fit(*tuning, path, "--trainer.max_steps=2", root=root),
            "validate": ["validate", *fit(*tuning, path, *asked, root=root)[1:]],
            "predict": predict_args(
                model, root, annotations, path, "--data.predict.init_args.limit=1", *tuning[:1]
            ),
            "export": [
                "export", *fit(*tuning, path)[1:], "--merge=true", f"--output_dir={root / 'out'}"
            ],
        }  # fmt: skip
        for name, args in subcommands.items():
            capsys.readouterr()
            assert main([*args, f"--model.policy.init_args.path={other}"]) == 1, name
            err = capsys.readouterr().err
            assert "--ckpt_path: the checkpoint was trained from model (content " in err
            assert "but model.policy is other (content " in err
            assert not (root / "out").exists()
            shutil.rmtree(root, ignore_errors=True)
            if (name in ("fit", "predict")) == lora:  # each of them once
                assert main([*args, f"--model.policy.init_args.path={copy}"]) == 0, name

    def test_vocabulary(self, fit, full, model, tmp_path, capsys):
        other = tmp_path / "other"
        shutil.copytree(model, other)
        larger = Qwen2_5_VLForConditionalGeneration.from_pretrained(model)
        before = larger.get_input_embeddings().num_embeddings
        larger.resize_token_embeddings(before + 8)
        larger.save_pretrained(other)
        args = fit(f"--model.policy.init_args.path={other}", f"--ckpt_path={full}")
        self.check(args, capsys, f"({before}, ", f"({before + 8}, ")


def seen(folder: Path) -> dict[int, list[str]]:
    """Questions of each step, of all ranks in order."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.glob("seen-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            found.setdefault(line["step"], []).extend(line["ids"])
    return found


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "seen-0.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", SHARDED])
def test_other_numbers_of_ranks_go_on_with_what_is_left(tmp_path, strategy):
    """1, 2 and 1 ranks, two questions a step: as one rank that was not interrupted."""
    callbacks = f"[{KEEPER % 0}, tests.seen_questions.SeenQuestions]"
    common = [
        f"--trainer.callbacks={callbacks}",
        "--model.policy.init_args.lora={rank: 4, alpha: 8, dropout: 0}",
    ]
    with forked(tmp_path) as job:

        def train(folder, num_ranks, max_steps):
            shared = strategy == SHARDED and folder.name == "changing"
            plan = strategy if shared or num_ranks > 1 else "auto"
            more = [
                *common,
                f"--data.batch_size={2 // num_ranks}",
                f"--trainer.max_steps={max_steps}",
                "--model.num_generations=2",
                "--model.max_new_tokens=8",
            ]
            finish(job.start(folder, Spread(num_ranks, plan), *more), folder)

        train(tmp_path / "whole", 1, 9)
        for num_ranks, max_steps in ((1, 2), (2, 5), (1, 6), (2, 9)):
            train(tmp_path / "changing", num_ranks, max_steps)
    whole, changing = seen(tmp_path / "whole"), seen(tmp_path / "changing")
    assert whole == changing
    assert len(whole) > 8
    want, got = losses(tmp_path / "whole"), losses(tmp_path / "changing")
    assert got == pytest.approx(want, rel=1e-3, abs=1e-6)
