"""Folders that training leaves behind, loaded with transformers, peft and vrts."""

import json

import pytest
import torch
from lightning import seed_everything
from peft import PeftModel
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    make_data,
    make_module,
    make_policy,
    make_trainer,
    predict,
    questions,
)
from vrts.callbacks.export import ExportPretrained
from vrts.models.objectives import GRPO
from vrts.models.qwen_loading import Lora
from vrts.types import InputError, Sampling


def fit(folder, policy, videos, callbacks=(), steps=2):
    """Train a policy; it comes back loaded."""
    module = make_module(policy, lr=0.5, objective=GRPO(beta=0))
    trainer = make_trainer(folder, callbacks, max_steps=steps)
    data = make_data(train=questions(videos["long"], 8), batch_size=2)
    trainer.fit(module, datamodule=data)
    return policy


@pytest.fixture(scope="module", params=["full", "vision", "lora"])
def exported(request, tmp_path_factory, model_folder, videos):
    """A trained policy, and the folder that the callback wrote."""
    options = {"full": {}, "vision": {"freeze_vision": False}, "lora": {"lora": Lora(rank=4)}}
    folder = tmp_path_factory.mktemp(request.param)
    seed_everything(0, verbose=False)
    policy = make_policy(model_folder, **options[request.param])
    fit(folder, policy, videos, [ExportPretrained(str(folder / "out"))])
    return policy.eval(), folder / "out", request.param


@pytest.fixture
def asked(videos):
    """Encoded questions with real clips."""
    data = make_data()
    samples = data.load([ask("a", videos["long"]), ask("bb", videos["short"])], 6)
    assert all(sample.clip is not None for sample in samples)
    return samples


def logprobs(policy, samples, rollout=None):
    prompts = policy.encode(samples, 8)
    if rollout is None:
        rollout = policy.rollout(prompts, [Sampling()] * 3, range(6), 8)
    return policy.score(prompts, rollout, 1.0).logprobs.detach(), rollout


def test_the_folder_scores_as_the_trained_policy_does(exported, asked, model_folder):
    policy, folder, _ = exported
    want, rollout = logprobs(policy, asked)
    untrained, _ = logprobs(loaded(model_folder), asked, rollout)
    assert (untrained - want).abs().max() > 1e-3, "training changed something"
    got, _ = logprobs(loaded(folder), asked, rollout)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def loaded(folder, **options):
    policy = make_policy(folder, **options)
    policy.load()
    return policy.eval()


def test_other_libraries_load_it(exported, asked, model_folder):
    """Through transformers' own classes and attention."""
    policy, folder, kind = exported
    source = folder if kind != "lora" else model_folder
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, attn_implementation="eager")
    if kind == "lora":
        model = PeftModel.from_pretrained(model, folder)
        assert json.loads((folder / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(model_folder)
        assert not list(folder.glob("model*.safetensors"))
    want, rollout = logprobs(policy, asked)
    prompt = policy.encode(asked[:1], 8).encoded[0]
    ids = rollout.completion_ids[0][rollout.completion_mask[0]]
    positions = prompt.next_position + torch.arange(len(ids))
    logits = model(
        input_ids=torch.cat([prompt.input_ids, ids])[None],
        position_ids=torch.cat([prompt.positions, positions.expand(3, -1)], 1)[:, None],
        pixel_values_videos=prompt.patches,
        video_grid_thw=torch.tensor([prompt.grid]),
        use_cache=False,
    ).logits[0, len(prompt.input_ids) - 1 : -1]
    logits = logits.index_fill(-1, policy._banned_ids, float("-inf"))
    got = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(got, want[0, : len(ids)], rtol=0, atol=1e-4)
    assert AutoProcessor.from_pretrained(folder).chat_template


def test_prediction_runs_from_it(exported, tmp_path, videos):
    _, folder, _ = exported
    lines, metrics = predict(tmp_path, make_policy(folder), questions(videos["long"], 2))
    assert len(lines) == 2
    assert metrics["num_failed"] == 0


def test_training_goes_on_from_it(exported, tmp_path, videos, asked):
    trained, folder, kind = exported
    options = {"full": {}, "vision": {"freeze_vision": False}, "lora": {"lora": Lora(rank=4)}}[kind]
    policy = make_policy(folder, **options)
    policy.load()
    names = [n for n, p in trained.named_parameters() if p.requires_grad]
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == names
    want, rollout = logprobs(trained, asked)
    torch.testing.assert_close(logprobs(policy.eval(), asked, rollout)[0], want, rtol=0, atol=1e-6)
    fit(tmp_path, policy.train(), videos, [ExportPretrained()], steps=1)
    got, _ = logprobs(loaded(tmp_path / "model"), asked, rollout)
    assert (got - want).abs().max() > 1e-5
    torch.testing.assert_close(got, logprobs(policy.eval(), asked, rollout)[0], rtol=0, atol=1e-6)


def test_an_interrupted_run_exports_nothing(tmp_path, model_folder, videos):
    class Stop(ExportPretrained):
        def on_train_batch_end(self, *_args):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(tmp_path, make_policy(model_folder), videos, [Stop(str(tmp_path / "out"))])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_an_unusable_folder_is_named_before_training(tmp_path, model_folder, videos, kind):
    (tmp_path / "file").write_text("")
    folder = tmp_path / ("file" if kind == "a file" else "file/out")
    policy = make_policy(model_folder)
    with pytest.raises(InputError, match=r"ExportPretrained\.output_dir"):
        fit(tmp_path, policy, videos, [ExportPretrained(str(folder))])
    assert not policy.loaded
