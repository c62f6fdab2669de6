"""The likeliest mistakes in a command: exit status, at most three lines, the key, the remedy."""

# ruff: noqa: E501 - a row of the table is a line

import re
import time
from pathlib import Path

import jsonargparse.typing
import pytest
from huggingface_hub.errors import HFValidationError

from vrts import callbacks, data, models
from vrts.cli import usage
from vrts.cli.command import VrtsCLI, main
from vrts.cli.plugins import options_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TINY = f"--model.policy.init_args.path={ROOT / 'assets/tiny'}"
FIT = ["fit", f"--config={CONFIGS / 'grpo.yaml'}", f"--config={CONFIGS / 'tiny.yaml'}", TINY]
PREDICT = ["predict", f"--config={CONFIGS / 's2d.yaml'}", f"--config={CONFIGS / 'tiny.yaml'}", TINY]
ASK = [*PREDICT, "--data.predict=null", "--data.video=a.mp4", "--data.question=What?"]
FILES = {
    "a.mp4": "",
    "key.yaml": "model:\n  num_generatons: 8\n",
    "argument.yaml": "model:\n  policy:\n    class_path: TransformersPolicy\n    init_args:\n      paht: x\n",
    "reward.yaml": "model:\n  rewards:\n    - class_path: AccuracyReward\n    - class_path: FormatRewrd\n",
    "range.yaml": "data:\n  num_frames: 4\n  batch_size: 0\n",
    "syntax.yaml": "model:\n  num_generations: 8\n max_new_tokens: 4\n",
    "grpo.yaml": "model:\n  num_generatons: 8\n",
    "tab.yaml": "model:\n\tnum_generations: 8\n",
    "list.yaml": "- model\n- data\n",
}
MISTAKES = [
    # words; what the message has to say
    (["fit"], ["model.policy: missing", "--config grpo"]),
    (["export", *FIT[1:]], ["output_dir: missing", "give --output_dir"]),
    (["fit", f"--config={CONFIGS / 'gpro.yaml'}"], ["no file", "did you mean", "configs/grpo.yaml?"]),
    (["fit", "--config", "nowhere/grpo.yaml"], ["--config: no file nowhere/grpo.yaml; did you mean grpo?"]),
    (["fit", "--config", "gpro"], ["--config: no file gpro; did you mean grpo?"]),
    (["fit", "--config=mine"], ["--config: no file mine; vrts configs lists those of vrts"]),
    (["fit", "--config=grpo", "--config=grpo.yaml"], ["grpo.yaml:2: model.num_generatons"]),
    ([*FIT, "--config=key.yaml"], ["key.yaml:2: model.num_generatons", "did you mean model.num_generations?"]),
    (
        [*FIT, "--config=argument.yaml"],
        ["argument.yaml:5: model.policy.init_args.paht", "TransformersPolicy has no option", "did you mean path?"],
    ),
    ([*FIT, "--config=reward.yaml"], ["reward.yaml:4: model.rewards", "did you mean FormatReward?"]),
    ([*FIT, "--config=range.yaml"], ["range.yaml:3: data.batch_size", "a whole number above 0, not '0'"]),
    (["fit", "--config=syntax.yaml"], ["syntax.yaml:3, column 2"]),
    (["fit", "--config=tab.yaml"], ["tab.yaml:2, column 1"]),
    (["fit", "--config=list.yaml"], ["list.yaml:1", "it needs keys"]),
    (
        [*FIT, "--model.rewards=[{class_path: AccuracyRewrd}]"],
        ["--model.rewards", "no class 'AccuracyRewrd'", "did you mean AccuracyReward?", "--help model.rewards"],
    ),
    (
        [*FIT, "--model.rewards=[{class_path: AccuracyReward, init_args: {wieght: 2}}]"],
        ["AccuracyReward has no option 'wieght'", "did you mean weight?"],
    ),
    ([*FIT, "--model.policy.init_args.lora={rnak: 3}"], ["Lora has no option 'rnak'", "did you mean rank?"]),
    (
        [*FIT, "--trainer.callbacks+=StepCheckpoint", "--trainer.callbacks.keep=0"],
        ["--trainer.callbacks.keep", "a whole number above 0, not '0'"],
    ),
    (
        [*FIT, "--model.rewards=[{class_path: my_package.MyReward}]"],
        ["--model.rewards", "no module 'my_package'"],
    ),
    ([*FIT, "--trainer.callbacks+=EarlyStoping"], ["--trainer.callbacks", "did you mean EarlyStopping?"]),
    ([*FIT, "--model.objective=GRPPO"], ["--model.objective", "did you mean GRPO"]),
    ([*FIT, "--model.policy=TransformersPolcy"], ["--model.policy", "did you mean TransformersPolicy?"]),
    ([*FIT, "--model.nmu_generations=4"], ["model.nmu_generations", "did you mean model.num_generations?"]),
    ([*FIT, "--data.batch_size=0"], ["--data.batch_size", "a whole number above 0, not '0'"]),
    ([*FIT, "--model.num_generations=eight"], ["--model.num_generations", "a whole number above 0, not 'eight'"]),
    ([*FIT, "--model.temperature=-1"], ["--model.temperature", "a number above 0, not '-1'"]),
    ([*FIT, "--trainer.max_steps=1e3"], ["--trainer.max_steps", "a whole number, not '1e3'"]),
    (
        [*FIT, "--trainer.precision=bf16mixed"],
        ["--trainer.precision", "'bf16mixed'", "did you mean bf16-mixed?"],
    ),
    (
        [*FIT, "--model.optimizer.init_args.lr=fast"],
        ["--model.optimizer.init_args.lr", "a number, not 'fast'"],
    ),
    (
        [*FIT, "--model.policy.init_args.dtype=float8"],
        ["--model.policy.init_args.dtype", "one of auto, float32", "not 'float8'"],
    ),
    ([*FIT, "--model.objective.init_args.beta=-1"], ["--model.objective.init_args.beta", "a number from 0"]),
    ([*FIT, "--data.train.init_args.path"], ["--data.train.init_args.path", "a value is missing"]),
    (
        [*PREDICT, "--data.video=a.mp4", "--data.question=Which?", "--data.options", "a cup, a book"],
        ["--data.options", "a list, such as", "not 'a cup, a book'"],
    ),
    ([*FIT, "--trainer.strategy=fsdpp"], ["trainer", "strategy", "fsdpp", "did you mean fsdp?"]),
    ([*FIT, "--trainer.accelerator=gpuu"], ["trainer", "accelerator", "gpuu", "cpu"]),
    ([*FIT, "--trainer.logger=WandbLogger"], ["WandbLogger needs the package wandb", "pip install wandb"]),
    (
        [*ASK, "--model.policy.init_args.path=./nothing"],
        ["model.policy.init_args.path", "no folder './nothing'"],
    ),
]  # fmt: skip


def run(words: list[str]) -> int | str | None:
    try:
        return main(words)
    except SystemExit as error:  # the parser's own way out
        return error.code


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=lambda v: str(v[-1:])[:50])
def test_a_mistake_is_told_in_three_lines(words, expected, tmp_path, monkeypatch, capsys):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert run(words) in (1, 2)
    err = capsys.readouterr().err
    message = err[err.index("vrts: error: ") :]
    assert len(message.splitlines()) <= 3, message
    assert "Union subtypes" not in err
    assert "<class" not in message
    for text in expected:
        assert text in message


class TestHelp:
    def shown(self, capsys, *words: str) -> str:
        assert run(list(words)) == 0
        return capsys.readouterr().out

    def test_a_key(self, capsys):
        out = self.shown(capsys, "fit", "--help", "model.rewards")
        assert "--model.rewards REWARDS" in out
        assert "AccuracyReward" in out
        assert "--model.objective" not in out

    def test_options_of_vrts_come_without_lightnings(self, capsys):
        out = self.shown(capsys, "fit", "--help")
        assert out.startswith("usage: vrts fit --config NAME")
        assert "--model.num_generations NUM_GENERATIONS" in out
        assert "--data.batch_size BATCH_SIZE" in out
        assert "--overwrite" in out
        assert "--trainer.max_steps" not in out
        assert "vrts fit --help trainer" in out
        assert "--trainer.max_steps" in self.shown(capsys, "fit", "--help", "trainer")

    def test_a_class_says_what_it_reads_and_takes(self, capsys):
        out = self.shown(capsys, "predict", "--help", "PlainReader")
        assert "``answer``: the letter or the text of an option" in out
        assert "  path: str, required" in out
        assert "  video_root: str | None, default null" in out
        assert "  columns: dict[str, str | list[str]] | None, default null" in out
        assert "Args:" not in out

    def test_a_class_passes_options_on_to_its_bases(self):
        by_name = {option.name: option for option in options_of(models.TransformersPolicy)}
        assert by_name["path"].default is None
        assert by_name["freeze_vision"].default == "true"
        assert by_name["lora"].text.startswith("train a low-rank adapter")
        assert [o.name for o in options_of(models.Lora)] == [
            "rank", "alpha", "dropout", "target_modules"
        ]  # fmt: skip
        (optimizer,) = [o for o in options_of(models.VideoQAModule) if o.name == "optimizer"]
        assert "lr=1e-6" in optimizer.default

    def test_every_option_of_every_plug_in_is_explained(self):
        for part in (callbacks, data, models):
            for name in part.__all__:
                cls = getattr(part, name)
                missing = [option.name for option in options_of(cls) if not option.text]
                assert not missing, f"{name}: {missing}"

    def test_every_restricted_type_is_put_in_words(self):
        plug_ins = (getattr(part, n) for part in (callbacks, data, models) for n in part.__all__)
        text = " ".join(option.kind for cls in plug_ins for option in options_of(cls))
        restricted = set(re.findall(r"\w+", text)) & set(jsonargparse.typing.__all__)
        assert "PositiveInt" in restricted
        assert restricted <= usage._TYPES.keys()

    def test_what_there_is_not(self, capsys):
        assert run(["predict", "--help", "PlainReadr"]) == 2
        assert (
            "no option or class 'PlainReadr'; did you mean PlainReader?" in capsys.readouterr().err
        )


class TestModelPaths:
    """What is neither a folder nor a cached or known hub id is told within 5 s."""

    def check(self, words, capsys, *expected):
        start = time.monotonic()
        assert run(words) == 1
        assert time.monotonic() - start < 8  # 5 s, and the parsing of the command
        err = capsys.readouterr().err
        message = err[err.index("vrts: error: ") :]
        assert len(message.splitlines()) <= 3
        for text in ("model.policy.init_args.path", *expected):
            assert text in message

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        (tmp_path / "a.mp4").touch()
        monkeypatch.chdir(tmp_path)

    def ask(self, problem):
        def model_info(*args, **options):
            raise problem

        return model_info

    def test_the_hub_is_out_of_reach(self, monkeypatch, capsys):
        problem = ConnectionError("Name or service not known")
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", self.ask(problem))
        words = [*ASK, "--model.policy.init_args.path=some/tiny"]
        self.check(words, capsys, "out of reach (Name or", "no folder 'some/tiny'")

    def test_the_hub_does_not_know_it(self, monkeypatch, capsys):
        problem = HFValidationError("no such name")
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", self.ask(problem))
        words = [*ASK, "--model.policy.init_args.path=some/tiny"]
        self.check(words, capsys, "the hub has no such model", "no folder 'some/tiny'")

    def test_the_hub_does_not_answer(self, monkeypatch, capsys):
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: time.sleep(60))
        monkeypatch.setattr("vrts.models.vlm.loading.HUB_TIMEOUT_S", 0.5)
        words = [*ASK, "--model.policy.init_args.path=some/tiny"]
        self.check(words, capsys, "did not answer within 0.5 s")

    def test_it_is_offline_by_choice(self, monkeypatch, capsys):
        monkeypatch.setattr("vrts.models.vlm.loading.HF_HUB_OFFLINE", True)
        words = [*ASK, "--model.policy.init_args.path=some/tiny"]
        self.check(words, capsys, "HF_HUB_OFFLINE is set")


class TestStrategies:
    @pytest.mark.parametrize("name", ["FullySharded", "DDPStrategy"])
    def test_a_strategy_goes_by_its_class_name(self, name, monkeypatch, tmp_path):
        """In a file as on the command line; what is made of it runs elsewhere."""
        (tmp_path / "own.yaml").write_text(f"trainer: {{strategy: {name}}}\n")
        made = []
        monkeypatch.setattr(VrtsCLI, "_run_subcommand", lambda cli, _: made.append(cli.trainer))
        monkeypatch.chdir(tmp_path)
        for option in (f"--trainer.strategy={name}", "--config=own.yaml"):
            assert run([*FIT, option, "--trainer.devices=1"]) == 0
        assert [type(trainer.strategy).__name__ for trainer in made] == [name, name]
