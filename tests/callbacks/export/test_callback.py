"""Exported folders, loaded with transformers, peft and vrts."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    make_data,
    make_module,
    make_policy,
    make_trainer,
    predict,
    questions,
)
from tests.models.engines.running import CPU, sample
from vrts.callbacks.export.callback import ExportPretrained
from vrts.models.grpo.objectives import GRPO
from vrts.models.vlm.loading import Lora
from vrts.models.vlm.shards import _current_name
from vrts.types import InputError, SamplingParams


def fit(folder, policy, videos, callbacks=(), steps=2):
    """Train a policy; it comes back loaded."""
    module = make_module(policy, lr=0.5, objective=GRPO(beta=0))
    trainer = make_trainer(folder, callbacks, max_steps=steps)
    data = make_data(train=questions(videos["long"], 8), batch_size=2)
    trainer.fit(module, datamodule=data)
    return policy


OPTIONS = {
    "full": {},
    "vision": {"freeze_vision": False},
    "lora": {"lora": Lora(rank=4)},
    "merged": {"lora": Lora(rank=4)},
}


@pytest.fixture(scope="module", params=OPTIONS)
def exported(request, tmp_path_factory, model_folder, videos):
    """A trained policy, and the folder that the callback wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    seed_everything(0, verbose=False)
    policy = make_policy(model_folder, **OPTIONS[request.param])
    export = ExportPretrained(str(folder / "out"), merge=request.param == "merged")
    fit(folder, policy, videos, [export])
    return policy.eval(), folder / "out", request.param


@pytest.fixture
def asked(videos):
    """Encoded questions with real clips."""
    data = make_data()
    samples = data.load([ask("a", videos["long"]), ask("bb", videos["short"])], 6)
    assert all(s.clip is not None for s in samples)
    return samples


def logprobs(policy, samples, completions=None):
    """Log-probs of completions, which are sampled where none are given, and these."""
    if completions is None:
        prompts, completions = sample(policy, samples, [SamplingParams()] * 3, 8)
    else:
        prompts = policy.network().encode(samples)
    return policy.logprobs(prompts, completions, 1.0).logprobs.detach(), completions


def test_the_folder_scores_as_the_trained_policy_does(exported, asked, model_folder):
    policy, folder, _ = exported
    want, completions = logprobs(policy, asked)
    untrained, _ = logprobs(loaded(model_folder), asked, completions)
    assert (untrained - want).abs().max() > 1e-3, "training changed something"
    got, _ = logprobs(loaded(folder), asked, completions)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def loaded(folder, **options):
    policy = make_policy(folder, **options)
    policy.load()
    return policy.eval()


def test_other_libraries_load_it(exported, asked, model_folder):
    """Through transformers' own classes and attention, on prompts of different lengths."""
    policy, folder, kind = exported
    source = folder if kind != "lora" else model_folder
    model = AutoModelForImageTextToText.from_pretrained(
        source, attn_implementation="eager", trust_remote_code=False
    )
    if kind == "lora":
        model = PeftModel.from_pretrained(model, folder)
        assert json.loads((folder / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(model_folder)
        assert not list(folder.glob("model*.safetensors"))
    want, completions = logprobs(policy, asked)
    prompts = policy.network().encode(asked)
    assert len({prompt.num_tokens for prompt in prompts}) == 2
    rows = iter(want)
    for prompt, group in zip(prompts, completions, strict=True):
        for c in group:
            got = reference_logprobs(model, prompt, c.token_ids, policy.network().suppressed_ids)
            torch.testing.assert_close(got, next(rows)[: len(got)], rtol=0, atol=1e-4)
    assert AutoProcessor.from_pretrained(folder, trust_remote_code=False).chat_template
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == policy.base.generation_config.eos_token_id


@torch.no_grad()
def reference_logprobs(model, prompt, ids, suppressed):
    """By a model of transformers, with vrts's positions."""
    positions = prompt.next_position + torch.arange(len(ids))
    logits = model(
        input_ids=torch.cat([prompt.input_ids, ids])[None],
        position_ids=torch.cat([prompt.positions, positions.expand(3, -1)], 1)[:, None],
        pixel_values_videos=prompt.patches(CPU),
        video_grid_thw=torch.tensor([prompt.grid]),
        use_cache=False,
    ).logits[0, len(prompt.input_ids) - 1 : -1]
    logits = logits.index_fill(-1, suppressed, float("-inf"))
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def test_it_holds_nothing_that_is_unpickled_or_run(exported):
    _, folder, kind = exported
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".jinja", ".md"}
    assert not [p for p in folder.glob("*.json") if '"auto_map"' in p.read_text()]
    assert (folder / "adapter_config.json").exists() == (kind == "lora")
    names = {path.name for path in folder.iterdir()}
    assert set(json.loads((folder / "vrts.json").read_text())["files"]) == names


def test_it_names_no_folder_of_this_machine(exported, model_folder, videos):
    """But for the base model of an adapter, which could not be loaded otherwise."""
    _, folder, _ = exported
    for path in folder.iterdir():
        if path.suffix in (".json", ".md") and path.name != "adapter_config.json":
            text = path.read_text()
            assert str(model_folder.parent) not in text, path.name
            assert str(folder.parent) not in text, path.name


def test_prediction_runs_from_it(exported, tmp_path, videos):
    _, folder, _ = exported
    lines, metrics = predict(tmp_path, make_policy(folder), questions(videos["long"], 2))
    assert len(lines) == 2
    assert metrics["num_failed"] == 0


def test_training_starts_from_it(exported, tmp_path, videos, asked):
    trained, folder, kind = exported
    if kind == "merged":
        pytest.skip("has no adapter to train")
    policy = make_policy(folder, **OPTIONS[kind])
    policy.load()
    names = [n for n, p in trained.named_parameters() if p.requires_grad]
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == names
    want, completions = logprobs(trained, asked)
    torch.testing.assert_close(
        logprobs(policy.eval(), asked, completions)[0], want, rtol=0, atol=1e-6
    )
    fit(tmp_path, policy.train(), videos, [ExportPretrained()], steps=1)
    got, _ = logprobs(loaded(tmp_path / "model"), asked, completions)
    assert (got - want).abs().max() > 1e-5
    torch.testing.assert_close(
        got, logprobs(policy.eval(), asked, completions)[0], rtol=0, atol=1e-6
    )


def test_an_interrupted_run_exports_nothing(tmp_path, model_folder, videos):
    class Stop(ExportPretrained):
        def on_train_batch_end(self, *_args):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(tmp_path, make_policy(model_folder), videos, [Stop(str(tmp_path / "out"))])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_records_what_it_was_trained_with(tmp_path, model_folder, videos):
    """So that the command writes the card of the callback; also in a resumed run."""
    module = make_module(make_policy(model_folder), objective=GRPO(beta=0))
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)

    def run(steps, **options):
        data = make_data(
            train=questions(videos["long"], 8), val=questions(videos["long"], 2), batch_size=2
        )
        callbacks = [keep, ExportPretrained(str(tmp_path / "out"))]
        trainer = make_trainer(
            tmp_path,
            callbacks,
            max_steps=steps,
            val_check_interval=1,
            check_val_every_n_epoch=None,
        )
        trainer.fit(module, datamodule=data, **options)
        return torch.load(tmp_path / "last.ckpt", weights_only=True)["training"]

    first = run(2)
    facts = run(4, ckpt_path=tmp_path / "last.ckpt")
    assert (first["steps"], facts["steps"]) == (2, 4)
    best = facts["metrics"]["validation"]["val/accuracy"]
    assert best["best"] >= best["last"]
    assert best["best"] >= first["metrics"]["validation"]["val/accuracy"]["best"]
    assert {"train/loss", "train/reward/text"} <= facts["metrics"]["training"].keys()
    assert facts["data"]["train"] == {
        "reader": "tests.callbacks.plugins.QuestionList",
        "file": None,
        "num_questions": 8,
    }
    written = json.loads((tmp_path / "out/vrts.json").read_text())
    assert written.keys() - {"files"} == facts.keys()
    assert written["recipe"] == facts["recipe"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"| `val/accuracy` | `{best['best']:.4g}` | {best['step']} |" in card


def with_keeper(folder, model, videos, export, steps=2, interval=1):
    """A run with a callback that keeps the best checkpoint, and the same batches every time."""
    keep = ModelCheckpoint(
        folder / "kept", "best", monitor="val/accuracy", mode="max", save_on_train_epoch_end=False
    )
    seed_everything(0, verbose=False)
    module = make_module(make_policy(model), lr=0.5, objective=GRPO(beta=0))
    trainer = make_trainer(
        folder, [keep, export], max_steps=steps, max_epochs=9, val_check_interval=interval,
        check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    data = make_data(
        train=questions(videos["long"], 4), val=questions(videos["long"], 3), batch_size=2
    )
    trainer.fit(module, datamodule=data)
    trained = {n: p.detach().clone() for n, p in module.policy.model.named_parameters()}
    return trained, keep


@pytest.mark.parametrize("best", [True, False])
def test_the_best_weights_are_written_and_the_last_ones_stay(best, tmp_path, model_folder, videos):
    """Nobody answers right, so that the first validation stays the best."""
    export = ExportPretrained(str(tmp_path / "out"), best=best)
    last, keep = with_keeper(tmp_path, model_folder, videos, export, steps=3)
    kept = torch.load(keep.best_model_path, weights_only=True)
    assert kept["global_step"] < 3
    first = {n.removeprefix("policy.model."): w for n, w in kept["state_dict"].items()}
    stored = load_file(tmp_path / "out/model.safetensors")
    exported = {_current_name(name): weight for name, weight in stored.items()}
    names = exported.keys() & first.keys() & last.keys()
    assert any(not torch.equal(first[n], last[n]) for n in names)
    want = last if best is False else first
    assert len(names) > 10
    assert all(torch.equal(exported[n], want[n]) for n in names)
    facts = json.loads((tmp_path / "out/vrts.json").read_text())
    assert facts["steps"] == (3 if best is False else kept["global_step"])
    assert ("selected" in facts) == (best is not False)


class NoValidation(ModelCheckpoint):
    """Has found nothing at the end."""

    def on_validation_end(self, *_args):
        pass

    def on_train_epoch_end(self, *_args):
        pass


def test_without_a_validation_the_last_weights_are_written(
    tmp_path, model_folder, videos, monkeypatch
):
    monkeypatch.setattr("tests.callbacks.export.test_callback.ModelCheckpoint", NoValidation)
    export = ExportPretrained(str(tmp_path / "out"))
    with pytest.warns(UserWarning, match="weights of the last step: no validation has logged"):
        with_keeper(tmp_path, model_folder, videos, export)
    assert json.loads((tmp_path / "out/vrts.json").read_text())["steps"] == 2


def test_a_best_checkpoint_that_is_gone_is_named(tmp_path, model_folder, videos):
    class Losing(ExportPretrained):
        def on_train_end(self, trainer, pl_module):
            (tmp_path / "kept/best.ckpt").unlink()
            super().on_train_end(trainer, pl_module)

    with pytest.raises(InputError, match=r"best checkpoint cannot be loaded .*best\.ckpt"):
        with_keeper(tmp_path, model_folder, videos, Losing(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_another_folder_is_refused_before_training(tmp_path, model_folder, videos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("")
    policy = make_policy(model_folder)
    with pytest.raises(InputError, match=r"ExportPretrained\.output_dir: .* holds something else"):
        fit(tmp_path, policy, videos, [ExportPretrained(str(tmp_path / "out"))])
    assert not policy.loaded


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_an_unusable_folder_is_named_before_training(tmp_path, model_folder, videos, kind):
    (tmp_path / "file").write_text("")
    folder = tmp_path / ("file" if kind == "a file" else "file/out")
    policy = make_policy(model_folder)
    with pytest.raises(InputError, match=r"ExportPretrained\.output_dir"):
        fit(tmp_path, policy, videos, [ExportPretrained(str(folder))])
    assert not policy.loaded


@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_gathers_weights_for_a_folder_that_cannot_be_made(tmp_path, rank):
    """The first process finds it out, and all raise it."""
    (tmp_path / "run").write_text("")
    told = []

    def broadcast(problem):
        told.append(problem)
        return problem if rank == 0 else "cannot write the model: told by the first"

    def save_pretrained(folder, merge):
        pytest.fail("weights are gathered")

    trainer = SimpleNamespace(
        is_global_zero=rank == 0,
        default_root_dir=str(tmp_path / "run"),
        strategy=SimpleNamespace(broadcast=broadcast),
    )
    policy = SimpleNamespace(save_pretrained=save_pretrained)
    module = SimpleNamespace(is_sharded=True, policy=policy)
    with pytest.raises(InputError, match="cannot write the model"):
        ExportPretrained()._write(trainer, module, {})
    assert len(told) == 1
    assert (told[0] is not None) == (rank == 0)
