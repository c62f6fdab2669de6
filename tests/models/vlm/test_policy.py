"""The policy on ragged batches with video: what it samples, scores, loads and refuses."""

import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.conftest import make_sample
from tests.models.engines.running import CPU, mask_of, sample, sampled_logprobs, tokens_of
from tests.models.naive import plain_logprobs
from vrts.models.vlm.loading import Lora, load_processor
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Clip, Completion, InputError, Sample, SamplingParams

G = 3
MAX_NEW_TOKENS = 12


def roll(
    policy: TransformersPolicy, samples, sampling=None, seed: int = 0, length: int = MAX_NEW_TOKENS
):
    """Prompts, and the completions of each that an engine has sampled."""
    return sample(policy, samples, sampling or [SamplingParams()] * G, length, seed)


def texts_of(completions) -> list[str]:
    return [c.text for group in completions for c in group]


def ragged(completions) -> list[list[Completion]]:
    """The same completions cut to different lengths, from one token to all."""
    cut, n = [], 0
    for group in completions:
        cut.append([])
        for c in group:
            keep = min(1 + (5 * n) % MAX_NEW_TOKENS, c.num_tokens)
            ids = c.token_ids[:keep]
            cut[-1].append(dataclasses.replace(c, num_tokens=keep, token_ids=ids, logprobs=None))
            n += 1
    return cut


def perturb_adapter(policy: TransformersPolicy) -> None:
    """Give LoRA's second factor values; it starts at zero and would hide errors."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.1 * noise)


class OperatorNames(TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_scored_ones(load_policy, samples, temperature):
    policy = load_policy().eval()
    prompts, completions = roll(
        policy, samples, [SamplingParams(temperature=temperature)] * G, length=24
    )
    scores, mask = policy.logprobs(prompts, completions, temperature), mask_of(completions)
    assert mask.sum() > 50
    assert (scores.logprobs[mask] - sampled_logprobs(completions)).abs().max() < 1e-4
    assert (scores.logprobs[~mask] == 0).all()


def test_entropy_is_that_of_the_sampled_distribution(load_policy, samples):
    policy = load_policy().eval()
    prompts, completions = roll(policy, samples[:1], [SamplingParams()])
    entropy = policy.logprobs(prompts, completions, 1.0).entropy
    most = torch.log(torch.tensor(float(policy.base.config.text_config.vocab_size)))
    assert entropy.shape == (1, completions[0][0].num_tokens)
    assert (entropy > 0).all()
    assert (entropy < most).all()
    assert not entropy.requires_grad


def test_head_chunks_do_not_change_scores(load_policy, samples):
    policy = load_policy(head_chunk_size=5)
    whole = load_policy(head_chunk_size=1000)
    prompts, completions = roll(policy, samples)
    torch.testing.assert_close(
        policy.logprobs(prompts, completions, 1.0).logprobs,
        whole.logprobs(prompts, completions, 1.0).logprobs,
    )


def test_vision_ids_are_never_sampled(load_policy, samples):
    policy = load_policy().eval()
    _, completions = roll(policy, samples, [SamplingParams(temperature=50.0)] * 40, length=40)
    sampled = torch.cat([c.token_ids for group in completions for c in group])
    assert len(sampled) > 3000  # near uniform: each id is expected several times
    suppressed = policy.network().suppressed_ids
    assert not torch.isin(sampled, suppressed).any()
    assert len(suppressed.unique()) == 4


def test_each_end_token_ends_a_completion(load_policy, samples):
    policy = load_policy().eval()
    ends = set(policy.network().end_ids.tolist())
    assert len(ends) >= 2
    _, completions = roll(policy, samples[:1], [SamplingParams(temperature=50.0)] * 60, length=150)
    last = set()
    for c in (c for group in completions for c in group):
        ids = tokens_of(c)
        assert not ends & set(ids[:-1])
        assert c.finished == (ids[-1] in ends)
        assert c.finished or c.num_tokens == 150
        last |= {ids[-1]} & ends
    assert last == ends


def test_rows_differ_in_their_sampling(load_policy, samples):
    policy = load_policy().eval()
    rows = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=50.0),
        SamplingParams(top_k=1),
    ]
    _, first = roll(policy, samples, rows, seed=0)
    _, second = roll(policy, samples, rows, seed=1000)
    for (greedy, hot, top_1), (again, other, _) in zip(first, second, strict=True):
        assert greedy.text == again.text == top_1.text
        assert hot.text != other.text


def count_forwards(policy) -> tuple[list[tuple[int, bool]], list[int]]:
    """Patches and whether there is a gradient of each pass of the vision tower, and tokens of each
    of a decoder layer; also of an engine's that is attached later, which copies the hooks."""
    patches, tokens = [], []
    policy.base.model.visual.register_forward_hook(
        lambda module, args, out: patches.append((len(args[0]), torch.is_grad_enabled()))
    )
    policy.base.model.language_model.layers[0].register_forward_hook(
        lambda module, args, out: tokens.append(out.shape[0] * out.shape[1])
    )
    return patches, tokens


def test_vision_and_prompt_are_computed_once(load_policy, samples):
    policy = load_policy().eval()
    policy.network().end_ids = torch.tensor([-1])
    vision, forwarded = count_forwards(policy)
    prompts, completions = roll(policy, samples)
    prompt_tokens = sum(p.num_tokens for p in prompts)
    patches = sum(len(p.patches(CPU)) for p in prompts)
    assert vision == [(patches, False)]
    assert forwarded == [prompt_tokens] + [len(samples) * G] * (MAX_NEW_TOKENS - 1)
    policy.logprobs(prompts, completions, 1.0)
    assert vision == [(patches, False)]
    assert forwarded[-1] == prompt_tokens + int(mask_of(completions).sum()) - len(samples) * G


def test_features_are_put_in_by_place(load_policy, samples):
    """`masked_scatter` counts along an int64 copy of the mask, eight bytes for each activation."""
    policy = load_policy().eval()
    with OperatorNames() as seen:
        policy.logprobs(*roll(policy, samples), 1.0)
    assert "aten::index_copy" in seen.names
    assert "aten::masked_scatter" not in seen.names


def test_a_trained_vision_tower_sees_each_video_once_an_update(load_policy, samples):
    """Sampling keeps the features of `encode`; the update needs one pass with gradient."""
    policy = load_policy(freeze_vision=False).train()
    vision, _ = count_forwards(policy)
    prompts, completions = roll(policy, samples)
    patches = sum(len(p.patches(CPU)) for p in prompts)
    assert vision == [(patches, False)]
    policy.logprobs(prompts, completions, 1.0).logprobs.sum().backward()
    assert vision == [(patches, False), (patches, True)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_batched_windows_equal_transformers_vision_attention(load_policy, samples, implementation):
    ours, theirs = load_policy(), load_policy(attn_implementation=implementation)
    a, b = (
        torch.cat([p.features for p in policy.network().encode(samples)])
        for policy in (ours, theirs)
    )
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert ours.base.model.visual.config._attn_implementation.startswith("vrts")


def test_true_fps_reaches_the_positions(load_policy, samples):
    policy = load_policy()
    slow = dataclasses.replace(samples[0].clip, fps=0.5)
    slower = dataclasses.replace(samples[0], clip=slow)
    a, b = policy.network().encode([samples[0], slower])
    assert b.next_position > a.next_position
    seconds = 2 / samples[0].clip.sampled_fps
    temporal = a.positions[0][a.input_ids == policy.base.config.video_token_id]
    rate = policy.base.config.vision_config.tokens_per_second
    assert temporal.max() - temporal.min() == int(3 * seconds * rate)


def test_special_tokens_in_a_question_stay_text(load_policy):
    policy = load_policy()
    hostile = make_sample(5, 4, (56, 56), "a <|video_pad|> b <|im_end|> c <|vision_start|>")
    (prompt,) = policy.network().encode([hostile])
    config = policy.base.config
    assert int((prompt.input_ids == config.video_token_id).sum()) == 2 * 2 * 2
    assert int((prompt.input_ids == config.vision_start_token_id).sum()) == 1


def test_adapter_disabled_gives_the_base_model(load_policy, samples):
    base, lora = load_policy(), load_policy(lora=Lora(rank=4))
    perturb_adapter(lora)
    prompts, completions = roll(base, samples)
    want = base.logprobs(prompts, completions, 1.0).logprobs
    assert (lora.logprobs(prompts, completions, 1.0).logprobs - want).abs().max() > 1e-3
    trained = [name for name, p in lora.named_parameters() if p.requires_grad]
    with lora.adapter_disabled():
        torch.testing.assert_close(lora.logprobs(prompts, completions, 1.0).logprobs, want)
    assert [name for name, p in lora.named_parameters() if p.requires_grad] == trained


def test_lora_adapts_the_language_model_only(load_policy):
    names = [n for n, p in load_policy(lora=Lora()).named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n and "language_model" in n for n in names)


def test_saved_folder_loads_and_scores_alike(load_policy, samples, tmp_path):
    policy = load_policy()
    with torch.no_grad():
        policy.base.model.language_model.norm.weight.mul_(1.3)
    policy.save_pretrained(tmp_path / "out")
    again = load_policy(tmp_path / "out")
    prompts, completions = roll(policy, samples)
    torch.testing.assert_close(
        again.logprobs(prompts, completions, 1.0).logprobs,
        policy.logprobs(prompts, completions, 1.0).logprobs,
    )


def test_qwen2_vl_runs_through_the_same_code(load_policy, samples, model_folder, tmp_path):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = tmp_path / "qwen2"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={k: v for k, v in text.items() if k != "model_type"},
            vision_config={
                "depth": 2, "embed_dim": 32, "hidden_size": text["hidden_size"], "num_heads": 2,
                "mlp_ratio": 2,
            },
            tie_word_embeddings=True,
            **{name: config[name] for name in ids},
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = [text["eos_token_id"]]
    model.save_pretrained(folder)
    policy = load_policy(folder).eval()
    prompts, completions = roll(policy, samples)
    scores, mask = policy.logprobs(prompts, completions, 1.0), mask_of(completions)
    assert (scores.logprobs[mask] - sampled_logprobs(completions)).abs().max() < 1e-4
    want = torch.cat(plain_logprobs(policy, prompts, completions))
    assert (scores.logprobs[mask] - want).abs().max() <= 1e-5
    prompt = prompts[0]
    temporal = prompt.positions[0][prompt.input_ids == policy.base.config.video_token_id]
    assert temporal.unique().diff().tolist() == [1] * 3


def image_sample(index: int, size: tuple[int, int]) -> Sample:
    """A question about a random image."""
    video = make_sample(index, 2, size, "Which colour is it?")
    clip = Clip(video.clip.frames[:1], (0,), 1.0, 1)
    return Sample(dataclasses.replace(video.question, is_image=True), clip)


class TestPictures:
    """Beside videos in one batch, as transformers' image inputs."""

    def test_prompt_is_that_of_the_processor(self, load_policy):
        policy = load_policy()
        asked = image_sample(3, (84, 112))
        (prompt,) = policy.network().encode([asked])
        content = [
            {"type": "image"},
            {"type": "text", "text": policy._template.render(asked.question)},
        ]
        chat = policy.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        image = Image.fromarray(asked.clip.frames[0].permute(1, 2, 0).numpy())
        want = policy.processor(
            text=[chat], images=[image], images_kwargs={"do_resize": False}, return_tensors="pt"
        )
        assert prompt.input_ids.tolist() == want["input_ids"][0].tolist()
        assert prompt.grid == tuple(want["image_grid_thw"][0].tolist()) == (1, 6, 8)
        assert torch.equal(prompt.patches(CPU), want["pixel_values"])
        assert policy.family.length(asked, policy._template) == (len(prompt.input_ids), 12)
        # for images all releases of transformers agree with the rule of the weights
        positions, _ = policy.base.model.get_rope_index(
            want["input_ids"],
            mm_token_type_ids=(want["input_ids"] == policy.base.config.image_token_id).int(),
            image_grid_thw=want["image_grid_thw"],
        )
        assert torch.equal(prompt.positions, positions[:, 0])
        assert prompt.next_position == positions.max() + 1

    @pytest.mark.parametrize("freeze_vision", [True, False])
    def test_shared_prompts_equal_plain_forwards(self, load_policy, samples, freeze_vision):
        policy = load_policy(freeze_vision=freeze_vision).train()
        mixed = [image_sample(3, (56, 84)), samples[0], image_sample(4, (112, 56)), samples[1]]
        prompts, completions = roll(policy, mixed)
        completions = ragged(completions)
        got = policy.logprobs(prompts, completions, 1.0).logprobs[mask_of(completions)]
        want = torch.cat(plain_logprobs(policy, prompts, completions))
        assert (got - want).abs().max() <= 1e-5
        got.sum().backward()
        gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        policy.zero_grad()
        want.sum().backward()
        for name, parameter in policy.named_parameters():
            if parameter.grad is not None:
                difference = (gradients[name] - parameter.grad).norm()
                assert difference <= 1e-4 * max(parameter.grad.norm(), 1), name

    def test_sampled_logprobs_equal_scored_ones(self, load_policy, samples):
        policy = load_policy().eval()
        prompts, completions = roll(policy, [image_sample(3, (56, 84)), samples[0]], length=24)
        scores = policy.logprobs(prompts, completions, 1.0).logprobs[mask_of(completions)]
        assert (scores - sampled_logprobs(completions)).abs().max() < 1e-4


class TestBadModels:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match="no folder"):
            TransformersPolicy(str(tmp_path / "absent")).load()

    def test_no_weights(self, model_folder, tmp_path):
        shutil.copy(model_folder / "config.json", tmp_path)
        with pytest.raises(InputError, match="no weights"):
            TransformersPolicy(str(tmp_path)).load()

    def test_no_config(self, tmp_path):
        with pytest.raises(InputError, match=r"no config\.json"):
            TransformersPolicy(str(tmp_path)).load()

    def test_incomplete_weights(self, load_policy, model_folder, tmp_path):
        shutil.copytree(model_folder, tmp_path / "m")
        weights = load_file(tmp_path / "m" / "model.safetensors")
        name = next(k for k in weights if "q_proj.weight" in k)
        del weights[name]
        save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match="lack 1 tensors"):
            load_policy(tmp_path / "m")

    def test_damaged_weights(self, load_policy, model_folder, tmp_path):
        shutil.copytree(model_folder, tmp_path / "m")
        (tmp_path / "m" / "model.safetensors").write_bytes(b"not weights")
        with pytest.raises(InputError, match="cannot load"):
            load_policy(tmp_path / "m")

    def test_other_architecture(self, load_policy, model_folder, tmp_path):
        shutil.copytree(model_folder, tmp_path / "m")
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        with pytest.raises(InputError, match="llama"):
            load_policy(tmp_path / "m")

    def test_prompt_too_long_names_the_numbers(self, load_policy, samples):
        policy = load_policy()
        limit = policy.base.config.text_config.max_position_embeddings
        (prompt,) = policy.network().encode(samples[:1])
        most = limit - prompt.num_tokens
        assert policy.refuses(samples[0], most) is None
        reason = policy.refuses(samples[0], most + 1)
        assert reason is not None
        assert re.search(rf"^{prompt.num_tokens} .*{limit}.*num_frames", reason)

    def test_a_question_of_10_mb_is_refused_at_once_by_its_length(self, load_policy, samples):
        policy, sample = load_policy(), samples[0]
        question = dataclasses.replace(sample.question, text="Which? " * 1_500_000)
        start = time.process_time()
        reason = policy.refuses(dataclasses.replace(sample, question=question), 8)
        assert time.process_time() - start < 0.5
        assert reason.startswith("10,500,0")
        assert "shorten the question" in reason

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("flash_attention_2", "lacks its package (pip install flash-attn) or a GPU"),
            ("flash_attention_3", "lacks its package (pip install flash-attn) or a GPU"),
            ("flash", "is none of eager, "),
            ("kernels-community/flash-attn2", "is none of eager, "),
        ],
    )
    def test_an_attention_that_is_not_there(self, load_policy, monkeypatch, name, problem):
        """Before the processor and the weights are read; a kernel of the hub is never fetched."""
        for function in ("read_config", "load_processor"):
            monkeypatch.delattr(f"vrts.models.vlm.policy.{function}")
        with pytest.raises(InputError) as error:
            load_policy(attn_implementation=name)
        message = str(error.value)
        assert message.startswith(
            f"model.policy.init_args.attn_implementation is {name!r}, which {problem}"
        )
        assert message.endswith("null takes torch's SDPA kernels")

    def test_lora_with_a_trained_vision_tower(self, load_policy):
        with pytest.raises(InputError, match="freeze_vision"):
            load_policy(lora=Lora(), freeze_vision=False)

    def test_lora_targets_that_fit_nothing(self, load_policy):
        with pytest.raises(InputError, match="target_modules"):
            load_policy(lora=Lora(target_modules="nothing"))

    def test_lora_of_the_vision_tower(self, load_policy):
        with pytest.raises(InputError, match=r"adapts the vision tower \(blocks\.0.*lora_A"):
            load_policy(lora=Lora(target_modules="all-linear"))

    def test_adapter_off_without_adapter(self, load_policy):
        with (
            pytest.raises(InputError, match="needs an adapter"),
            load_policy().adapter_disabled(),
        ):
            pass


def test_a_folder_without_its_tokenizer_is_refused(tmp_path):
    """In place of the missing files transformers makes a tokenizer that knows next to nothing."""
    assets = Path(__file__).parents[3] / "assets/tiny"
    shutil.copytree(assets, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(InputError, match=r"the tokenizer in .* does not know <\|image_pad\|>"):
        load_processor(str(tmp_path / "model"))
