"""``vrts export`` on runs of ``vrts fit``: the same folders as the callback's, and bad input."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli.test_command import CONFIGS, fit_args, own_train
from tests.models.conftest import make_sample
from tests.models.engines.running import sample, tokens_of
from tests.ranks.test_sharded import SHARDED
from tests.ranks.test_two_processes import fit
from vrts.cli.command import main, run
from vrts.data.video.frames import UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Question, Sample, SamplingParams

PLAIN = PromptTemplate(*[""] * 7)


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, model, annotations, tmp_path_factory):
    """A run: its module, its folder, and whether it trained an adapter."""
    root = tmp_path_factory.mktemp(request.param)
    args = fit_args(
        model,
        root,
        *own_train(annotations),
        # random weights never earn a reward; this one tells completions apart
        "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        "--model.optimizer.init_args.lr=0.01",
    )
    if request.param == "lora":
        tiny = f"--config={CONFIGS / 'tiny.yaml'}"
        args.insert(args.index(tiny), f"--config={CONFIGS / 'lora.yaml'}")
    module = run(args).model
    return module.eval(), root, request.param


def saved_config(root: Path) -> str:
    (path,) = root.rglob("config.yaml")
    return f"--config={path}"


def files(folder: Path) -> list[Path]:
    """All that is in a folder."""
    return sorted(folder.rglob("*"))


def loaded(folder: Path) -> TransformersPolicy:
    policy = TransformersPolicy(str(folder), prompt=PLAIN)
    policy.load()
    return policy.eval()


def samples() -> list[Sample]:
    """Of different lengths, with video."""
    return [make_sample(0, 8, (56, 56), "What?"), make_sample(1, 4, (56, 112), "Which one is it?")]


@torch.no_grad()
def distance(policy, other) -> float:
    """The largest difference of two policies' log-probs of the same completions."""
    _, completions = sample(policy, samples(), [SamplingParams()] * 2, 8)
    one, two = (
        p.logprobs(p.network().encode(samples()), completions, 1.0).logprobs
        for p in (policy, other)
    )
    return float((one - two).abs().max())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def assert_same(one: Path, two: Path) -> None:
    assert weights(one).keys() == weights(two).keys()
    assert all(torch.equal(weights(two)[key], value) for key, value in weights(one).items())


@pytest.mark.parametrize("ckpt_path", [None, "last", "file"])
def test_it_writes_what_the_callback_writes(trained, model, tmp_path, capsys, ckpt_path):
    module, root, kind = trained
    more = []
    if ckpt_path:
        path = str(root / "checkpoints/last.ckpt") if ckpt_path == "file" else ckpt_path
        more = [f"--ckpt_path={path}"]
    out = tmp_path / "model"
    assert main(["export", saved_config(root), *more, f"--output_dir={out}"]) == 0
    assert_same(root / "model", out)
    assert {p.name for p in out.iterdir()} == {p.name for p in (root / "model").iterdir()}
    for name in ("README.md", "vrts.json", "generation_config.json", "tokenizer_config.json"):
        assert (out / name).read_text() == (root / "model" / name).read_text(), name
    assert (out / "adapter_config.json").exists() == (kind == "lora")
    if ckpt_path is None:  # the weights are the same otherwise
        assert distance(module.policy, loaded(out)) < 1e-5
        assert distance(module.policy, loaded(model)) > 1e-3


def test_merged_it_answers_the_same(trained, tmp_path):
    module, root, _ = trained
    out = tmp_path / "model"
    assert main(["export", saved_config(root), "--merge=true", f"--output_dir={out}"]) == 0
    assert distance(module.policy, loaded(out)) < 2e-5
    assert not (out / "adapter_config.json").exists()


def test_neither_the_runs_devices_nor_its_data_are_needed(trained, tmp_path):
    """On a laptop, from the overlays of a run on many GPUs."""
    _, root, kind = trained
    out = tmp_path / "model"
    args = [
        "export",
        f"--config={CONFIGS / 'grpo.yaml'}",
        *([f"--config={CONFIGS / 'lora.yaml'}"] if kind == "lora" else []),
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--config={CONFIGS / 'fsdp.yaml'}",
        "--trainer.num_nodes=4",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={tmp_path / 'logs'}",
        f"--trainer.default_root_dir={root}",
        f"--model.policy.init_args.path={Path(yaml_of(root)['model']['policy']['init_args']['path'])}",
        f"--output_dir={out}",
    ]
    assert main(args) == 0
    assert_same(root / "model", out)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith("-lock")) == ["model"]


def yaml_of(root: Path) -> dict:
    return yaml.safe_load(Path(saved_config(root).removeprefix("--config=")).read_text())


def test_a_run_without_the_callback_gets_a_card_too(trained, tmp_path):
    _, root, _ = trained
    checkpoint = torch.load(root / "checkpoints/last.ckpt", weights_only=True)
    recorded = checkpoint.pop("training")
    torch.save(checkpoint, tmp_path / "old.ckpt")
    out = tmp_path / "model"
    args = ["export", saved_config(root), f"--ckpt_path={tmp_path / 'old.ckpt'}"]
    assert main([*args, f"--output_dir={out}"]) == 0
    facts = json.loads((out / "vrts.json").read_text())
    assert facts["steps"] == recorded["steps"] == 2
    same = ("objective", "rewards", "optimizer", "num_frames", "lora", "prompt")
    assert {k: facts["recipe"].get(k) for k in same} == {k: recorded["recipe"].get(k) for k in same}
    card = (out / "README.md").read_text()
    assert "None were recorded" in card
    assert "| `train` | `VideoR1Reader` | `questions.jsonl` | not known |" in card


def test_the_snippet_of_the_card_answers_as_the_policy_does(trained, model, annotations, tmp_path):
    """Greedily, on a real video, through transformers alone but for prompt and positions."""
    module, root, kind = trained
    card = (root / "model/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    video = str(annotations.parent / "videos/00000.mp4")
    replaced = {
        '"FOLDER"': repr(str(root / "model")),
        '"VIDEO"': repr(video),
        "'BASE'": repr(str(model)),
        f"len(new_tokens) < {module.max_new_tokens} ": "len(new_tokens) < 12 ",
    }
    assert ("'BASE'" in code) == (kind == "lora")
    for old, new in replaced.items():
        code = code.replace(old, new)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    clip = PyAVDecoder().decode(video, 4, UniformSampler(), Resolution(3136, 3136))
    question = Question("1", "What happens first?", video, options=("It rains.", "It snows."))
    policy = module.policy
    asked = [Sample(question, clip)]
    prompts, completions = sample(policy, asked, [SamplingParams(temperature=0)], 12)
    assert names["new_tokens"] == tokens_of(completions[0][0])
    suppressed = policy.network().suppressed_ids
    last = names["output"].logits[0, -1].index_fill(-1, suppressed, float("-inf"))
    want = policy.logprobs(prompts, completions, 1.0).logprobs[0, -1]
    got = last.log_softmax(-1)[names["new_tokens"][-1]]
    torch.testing.assert_close(got, want.detach(), rtol=0, atol=1e-4)


def test_predict_takes_it(trained, annotations, tmp_path):
    _, root, _ = trained
    args = [
        "predict",
        f"--config={CONFIGS / 's2d.yaml'}",
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={root / 'model'}",
        f"--trainer.default_root_dir={tmp_path}",
        "--model.max_new_tokens=8",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.limit=2",
        "--data.predict.init_args.video_root=null",
        "--data.num_workers=0",
    ]
    assert main(args) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["num_failed"] == 0


def test_predictions_of_a_checkpoint_are_not_mixed_with_those_of_the_model(
    trained,
    model,
    annotations,
    tmp_path,
    capsys,
):
    _, root, kind = trained
    args = [
        "predict",
        f"--config={CONFIGS / 's2d.yaml'}",
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--model.policy.init_args.path={root / 'model' if kind == 'lora' else model}",
        f"--trainer.default_root_dir={tmp_path}",
        "--model.max_new_tokens=8",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.limit=2",
        "--data.predict.init_args.video_root=null",
        "--data.num_workers=0",
    ]
    other = f"--ckpt_path={root / 'checkpoints/last.ckpt'}"
    if kind == "full":
        assert main([*args, other]) == 0
        assert main([*args, other]) == 0
        assert main(args) == 1
    else:  # an adapter that is answered with is not trained, so the checkpoint has other weights
        assert main(args) == 0
        assert main([*args, other]) == 1
    assert "holds predictions of other settings (checkpoint " in capsys.readouterr().err


class TestBadInput:
    """Each ends with one line that names what is wrong, and leaves nothing behind."""

    @pytest.fixture
    def refused(self, trained, tmp_path, capsys):
        def refused(*more: str, out: Path = tmp_path / "model") -> str:
            args = ["export", saved_config(trained[1]), f"--output_dir={out}", *more]
            before = files(tmp_path)
            assert main(args) == 1
            assert files(tmp_path) == before
            (line,) = [
                line for line in capsys.readouterr().err.splitlines() if "vrts: error" in line
            ]
            return line

        return refused

    def test_no_such_checkpoint(self, refused, tmp_path):
        assert "no checkpoint nowhere.ckpt; give a file" in refused("--ckpt_path=nowhere.ckpt")
        (tmp_path / "checkpoints").mkdir()
        root = f"--trainer.default_root_dir={tmp_path}"
        keep = "--trainer.callbacks=[ModelCheckpoint]"
        assert f"no checkpoint in {tmp_path}/checkpoints" in refused(root, keep)

    def test_a_damaged_checkpoint(self, refused, tmp_path):
        (tmp_path / "damaged.ckpt").write_bytes(b"no checkpoint")
        found = refused(f"--ckpt_path={tmp_path / 'damaged.ckpt'}")
        assert "damaged.ckpt is not a checkpoint, or a damaged one" in found

    def test_another_lora_rank(self, refused, trained):
        found = refused("--model.policy.init_args.lora={rank: 8, alpha: 8}")
        assert "tensors differ" in found
        if trained[2] == "lora":
            assert re.search(r"lora_A.*: \(64, \d+\) in the checkpoint, \(8, \d+\) in ", found)

    def test_another_vocabulary(self, refused, trained, model, tmp_path_factory):
        if trained[2] == "lora":
            pytest.skip("an adapter of the linear layers does not depend on the vocabulary")
        folder = tmp_path_factory.mktemp("other") / "model"
        policy = loaded(model)
        policy.model.resize_token_embeddings(640)
        policy.save_pretrained(folder)
        found = refused(f"--model.policy.init_args.path={folder}")
        assert re.search(r"embed_tokens|lm_head", found)
        assert "(640, 96) in model.policy" in found

    def test_no_base_model(self, refused):
        found = refused("--model.policy.init_args.path=/nowhere/base")
        assert "no folder '/nowhere/base'" in found

    def test_a_folder_with_something_else(self, refused, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/thesis.tex").write_text("")
        found = refused(out=tmp_path / "mine")
        assert "--output_dir: " in found
        assert "holds something else than an earlier export" in found

    def test_no_room(self, refused, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Full", (), {"free": 10}))
        assert "are free" in refused()

    def test_the_model_that_training_starts_from_is_not_replaced(self, refused, tmp_path_factory):
        base = tmp_path_factory.mktemp("base") / "model"
        shutil.copytree(CONFIGS.parent / "assets/tiny", base)
        found = refused(f"--model.policy.init_args.path={base}", out=base)
        assert f"--output_dir: {base} holds the model that training starts from" in found
        assert (base / "model.safetensors").is_file()

    def test_weights_that_are_not_finite(self, refused, trained, tmp_path_factory):
        path = tmp_path_factory.mktemp("nan") / "nan.ckpt"
        checkpoint = torch.load(trained[1] / "checkpoints/last.ckpt", weights_only=True)
        name, weight = next(iter(checkpoint["state_dict"].items()))
        weight[0, 0] = torch.nan
        torch.save(checkpoint, path)
        found = refused(f"--ckpt_path={path}")
        assert f"nan.ckpt has weights that are not finite, {name} first" in found

    def test_a_wish_to_unpickle(self, refused):
        assert "code in a checkpoint is never run" in refused("--weights_only=false")


def test_the_newest_complete_one_is_taken(trained, tmp_path):
    _, root, _ = trained
    kept = tmp_path / "run/checkpoints"
    kept.mkdir(parents=True)
    for age, name in ((30, "last.ckpt"), (20, "last-v1.ckpt"), (10, "epoch=0-step=1.ckpt")):
        shutil.copy(root / "checkpoints/last.ckpt", kept / name)
        os.utime(kept / name, (time.time() - age,) * 2)
    checkpoint = torch.load(kept / "last-v1.ckpt", weights_only=True)
    checkpoint["training"]["steps"] = 77
    torch.save(checkpoint, kept / "last-v1.ckpt")
    (kept / "last-v2.ckpt").mkdir()  # a sharded one that was never finished
    args = ["export", saved_config(root), f"--trainer.default_root_dir={tmp_path / 'run'}"]
    args += ["--trainer.callbacks=[ModelCheckpoint]", f"--output_dir={tmp_path / 'model'}"]
    assert main(args) == 0
    assert json.loads((tmp_path / "model/vrts.json").read_text())["steps"] == 77


@pytest.mark.slow
def test_sharded_checkpoints_are_exported_by_one_process(model, annotations, tmp_path):
    """Two gloo ranks under the overlay; the merged model of their callback is the command's too."""
    root = tmp_path / "run"
    more = (
        *SHARDED,
        "--trainer.max_steps=2",
        "--trainer.callbacks.merge=true",  # of the last one, ExportPretrained
    )
    fit(model, annotations, root, 2, f"--config={CONFIGS / 'lora.yaml'}", more_last=more)
    assert (root / "checkpoints/last.ckpt/.metadata").is_file()
    out = tmp_path / "merged"
    assert main(["export", saved_config(root), "--merge=true", f"--output_dir={out}"]) == 0
    assert_same(root / "model", out)
    assert main(["export", saved_config(root), f"--output_dir={tmp_path / 'adapter'}"]) == 0
    adapter, merged = loaded(tmp_path / "adapter"), loaded(out)
    assert distance(adapter, merged) < 2e-5
    assert distance(adapter, loaded(model)) > 1e-3
    assert json.loads((out / "vrts.json").read_text())["recipe"]["processes"] == 2
