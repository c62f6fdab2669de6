"""What SmolVLM2 has otherwise than Qwen's families: its parts' names, and squares."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch

from tests.callbacks.runs import make_data, make_module, make_trainer
from tests.models.conftest import make_sample
from tests.models.engines.running import CPU
from tests.models.families.conftest import Case, FamilyModel
from tests.models.families.test_flops import KINDS, computed_pairs, counted, make_completions
from tests.models.families.tiny import SQUARE, build_smolvlm
from vrts.data.video.resolution import Resolution
from vrts.models.families.known import find_family
from vrts.models.vlm.loading import Lora, load_processor
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory) -> FamilyModel:
    folder = tmp_path_factory.mktemp("smolvlm")
    build_smolvlm(folder)
    return FamilyModel(Case("smolvlm", build_smolvlm, SQUARE, squares=True), folder)


def trained(policy: TransformersPolicy) -> set[str]:
    return {name.removeprefix("model.") for name, p in policy.named_parameters() if p.requires_grad}


def decoder_matrices(policy: TransformersPolicy) -> set[str]:
    return {
        name
        for name, p in policy.base.named_parameters()
        if name.startswith("model.text_model.layers.") and p.ndim == 2
    }


class TestParts:
    """Found by their names, which are not Qwen's."""

    def test_what_sees_is_frozen_or_trained_with_its_connector(self, smolvlm):
        frozen, whole = trained(smolvlm.policy()), trained(smolvlm.policy(freeze_vision=False))
        vision = whole - frozen
        assert {name.split(".")[1] for name in vision} == {"vision_model", "connector"}
        assert {name.split(".")[0] for name in frozen} == {"model", "lm_head"}
        assert all(".text_model." in name for name in frozen - {"lm_head.weight"})

    def test_adapters_are_on_all_matrices_of_the_decoder(self, smolvlm):
        policy = smolvlm.policy(lora=Lora(rank=4))
        names = {name.split(".lora_")[0].split("base_model.model.")[1] for name in trained(policy)}
        want = decoder_matrices(smolvlm.policy())
        assert {f"{name}.weight" for name in names} == want
        assert len(want) == 7 * 3

    def test_the_decoders_matrices_take_four_bits(self, smolvlm):
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
        policy = smolvlm.policy(lora=Lora(rank=4), quantize="nf4")
        packed = {n for n, p in policy.base.named_parameters() if p.dtype == torch.uint8}
        want = {
            n.removesuffix("weight") + "base_layer.weight"
            for n in decoder_matrices(smolvlm.policy())
        }
        assert packed == want

    def test_layers_to_shard(self, smolvlm):
        policy = smolvlm.policy()
        vision, language = policy.layers()
        assert [type(layer).__name__ for layer in vision] == ["SmolVLMEncoderLayer"] * 3
        assert [type(layer).__name__ for layer in language] == ["LlamaDecoderLayer"] * 3

    def test_read_into_an_empty_model(self, smolvlm):
        empty, whole = TransformersPolicy(str(smolvlm.folder), dtype="float32"), smolvlm.policy()
        empty.load_empty()
        assert all(p.is_meta for p in empty.parameters())
        empty.fill(CPU)
        got, want = empty.state_dict(), whole.state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind, smolvlm, monkeypatch):
    monkeypatch.setattr("vrts.models.attention.shared_prefix.has_flash", lambda *_: False)
    monkeypatch.setattr("vrts.models.vlm.flops.visible_pairs", computed_pairs)
    policy = smolvlm.policy(**KINDS[kind])
    samples = smolvlm.samples(torch.Generator().manual_seed(1), 3)
    encode = policy.network().encode
    prompts, completions = encode(samples), make_completions()
    work = policy.workload(prompts, completions)
    head = 2 * policy.base.lm_head.weight.numel() * work.num_completion_tokens
    assert counted(lambda: encode(samples)) == pytest.approx(work.vision_flops, rel=0.01)
    with torch.no_grad():
        scored = counted(lambda: policy.logprobs(prompts, completions, 1.0))
    assert scored == pytest.approx(work.scoring_flops, rel=0.01)
    updated = counted(lambda: policy.logprobs(prompts, completions, 1.0).logprobs.sum().backward())
    assert updated - head == pytest.approx(work.update_flops, rel=0.01)


class TestSquares:
    @pytest.mark.parametrize(
        ("image_size", "patch_size", "scale_factor", "tokens"),
        [(512, 16, 4, 64), (384, 14, 3, 81)],
        ids=["256M and 500M", "2.2B"],
    )
    def test_of_the_published_models(self, image_size, patch_size, scale_factor, tokens):
        """As many tokens as their processors' ``image_seq_len``."""
        vision = SimpleNamespace(image_size=image_size, patch_size=patch_size)
        config = SimpleNamespace(vision_config=vision, scale_factor=scale_factor)
        sizes = find_family("smolvlm", "here").frame_sizes(config)
        resolution = Resolution().for_model(sizes)
        assert resolution.size(720, 1280, 32) == (image_size, image_size)
        assert resolution.fewest_tokens(32) == 32 * tokens

    def test_of_a_real_video(self, smolvlm, shared, tmp_path):
        """Through the data module, which asks the model; 16:9 becomes a square."""
        video = str(shared / "videos/nasa_13013.mp4")
        policy = smolvlm.policy()
        data = make_data(
            video=video, question="What is shown?", resolution=Resolution(), num_frames=6
        )
        data.trainer = make_trainer(tmp_path)
        data.trainer.strategy._lightning_module = make_module(policy)
        data.setup("predict")
        ((sample,),) = data.predict_dataloader()
        (prompt,) = policy.network().encode([sample])
        assert sample.clip.frames.shape == (6, 3, SQUARE, SQUARE)
        assert prompt.grid == (6, 4, 4)
        text = policy.processor.tokenizer.decode(prompt.input_ids)
        last_s = int(sample.clip.times_s[-1])
        assert f"Frame from {last_s // 60:02d}:{last_s % 60:02d}:<fake_token_around_image>" in text
        assert text.count("<image>") == 6 * 4

    def test_other_frames_are_refused_before_anything_is_decoded(self, smolvlm, tmp_path):
        data = make_data(video="none.mp4", question="?", resolution=Resolution(rule="frame"))
        data.trainer = make_trainer(tmp_path)
        data.trainer.strategy._lightning_module = make_module(smolvlm.policy())
        with pytest.raises(InputError, match=r"rule is frame, but the model takes squares alone"):
            data.setup("predict")


def test_a_time_window_is_as_long_as_its_last_frame_is_late(smolvlm):
    """Frames of minute 5 are not of a video of half a minute."""
    sample = make_sample(0, 2, (SQUARE, SQUARE), "What?")
    clip = dataclasses.replace(
        sample.clip, frame_indices=(3000, 3299), fps=10.0, num_source_frames=300
    )
    policy = smolvlm.policy()
    prompt = policy.family.encode(dataclasses.replace(sample, clip=clip), policy._template)
    text = policy.processor.tokenizer.decode(prompt.input_ids)
    assert "series of two frames from a 0:05:29 [H:MM:SS] video" in text
    assert "Frame from 05:00:" in text
    assert "Frame from 05:29:" in text


def test_a_template_of_images_is_tried_too(smolvlm, tmp_path):
    """transformers' processor has its own one for videos, and would hide that it breaks."""
    folder = tmp_path / "model"
    shutil.copytree(smolvlm.folder, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no pictures') }}")
    with pytest.raises(InputError, match=r"chat template in .* breaks .*no pictures"):
        load_processor(str(folder))


def test_ends_and_what_is_never_sampled(smolvlm):
    policy = smolvlm.policy()
    network, tokenizer = policy.network(), policy.processor.tokenizer
    ends = tokenizer.convert_ids_to_tokens(network.end_ids.tolist())
    assert set(ends) == {"<end_of_utterance>", "<|endoftext|>"}
    suppressed = tokenizer.convert_ids_to_tokens(network.suppressed_ids.tolist())
    assert set(suppressed) == {"<image>", "<fake_token_around_image>", "<global-img>"}
    answer = "<think>a</think><answer>B</answer>"
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert network.tokenizer.decode([*ids, tokenizer.eos_token_id], True) == answer
