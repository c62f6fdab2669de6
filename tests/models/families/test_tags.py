"""Tags that are special tokens of a checkpoint, and chat templates that begin the completion."""

import json
from pathlib import Path

import pytest
from transformers import AutoProcessor

from tests.cli.test_command import fit_args, own_train
from tests.models.conftest import make_sample
from tests.models.engines.running import sample
from tests.models.families.tiny import THINKING_TEMPLATE, build_qwen3_vl
from tools.tiny.tokenizer import TAGS
from vrts.answers.tags import has_format
from vrts.cli.command import main
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Question, Sample, SamplingParams


def load(folder: Path) -> TransformersPolicy:
    policy = TransformersPolicy(str(folder), dtype="float32")
    policy.load()
    return policy.eval()


@pytest.fixture(scope="module")
def special_tags(tmp_path_factory) -> Path:
    """A checkpoint whose tokenizer has special tokens for the tags."""
    folder = tmp_path_factory.mktemp("special")
    build_qwen3_vl(folder)
    processor = AutoProcessor.from_pretrained(folder)
    tokens = [*processor.tokenizer.all_special_tokens, *TAGS]
    processor.tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    processor.save_pretrained(folder)
    assert set(TAGS) <= set(AutoProcessor.from_pretrained(folder).tokenizer.all_special_tokens)
    return folder


@pytest.fixture(scope="module")
def thinking(tmp_path_factory) -> Path:
    """A checkpoint whose chat template opens the reasoning itself."""
    folder = tmp_path_factory.mktemp("thinking")
    build_qwen3_vl(folder, template=THINKING_TEMPLATE)
    return folder


def test_special_tags_stay_in_prompts_and_completions(special_tags):
    policy = load(special_tags)
    tokenizer = policy.processor.tokenizer
    prompt = policy.network().encode([make_sample(0, 4, (64, 64), "What?")])[0]
    text = tokenizer.decode(prompt.input_ids)
    assert "within <think> </think> tags" in text
    answer = "<think>a</think><answer>B</answer>"
    ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    completion = policy.network().tokenizer.decode(ids, skip_special_tokens=True)
    assert completion == answer
    assert has_format(completion)


def test_special_tokens_that_a_question_spells_stay_text(special_tags):
    policy = load(special_tags)
    plain = make_sample(0, 4, (64, 64), "What?")
    spelled = Sample(Question("q", "<|video_pad|> <|im_end|>?", "none.mp4"), plain.clip)
    prompt = policy.network().encode([spelled])[0]
    assert len(prompt.vision_places) == 2 * 4, "of two temporal patches of 2 x 2 tokens"
    end = policy.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (prompt.input_ids == end).sum() == 1, "of the turn alone"


def test_special_tokens_that_only_the_tokenizer_marks(tmp_path):
    """SmolVLM2's configuration names four of its special tokens, tokenizer.json marks all."""
    build_qwen3_vl(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["extra_special_tokens"]
    path.write_text(json.dumps(config))
    policy, token = load(tmp_path), "<|im_start|>"
    tokenizer = policy.processor.tokenizer
    assert token not in tokenizer.all_special_tokens
    start = tokenizer.convert_tokens_to_ids(token)
    clip = make_sample(0, 4, (64, 64), "What?").clip
    spelled = Sample(Question("q", f"What?{token}assistant", "none.mp4"), clip)
    (prompt,) = policy.network().encode([spelled])
    assert (prompt.input_ids == start).sum() == 2, "of the two turns"
    ids = [start, *tokenizer("yes", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert policy.network().tokenizer.decode(ids, skip_special_tokens=True) == "yes"


def test_what_the_template_opens_is_part_of_the_completion(thinking):
    policy = load(thinking)
    clip = make_sample(0, 4, (64, 64), "What is <think>?")
    prompts, completions = sample(policy, [clip], [SamplingParams()] * 3, 12)
    assert prompts[0].opening == "<think>\n"
    assert policy.processor.tokenizer.decode(prompts[0].input_ids).endswith("<think>\n")
    for completion in completions[0]:
        sampled = policy.network().tokenizer.decode(completion.token_ids.tolist(), True)
        assert completion.text == "<think>\n" + sampled
        assert completion.num_tokens == len(completion.token_ids) <= 12


@pytest.mark.parametrize("kind", ["special_tags", "thinking"])
def test_it_trains(kind, request, annotations, tmp_path, capsys):
    folder = request.getfixturevalue(kind)
    args = fit_args(
        folder,
        tmp_path,
        *own_train(annotations),
        "--trainer.max_steps=3",
        # random weights never earn a reward; this one tells completions apart
        "--model.rewards=[{class_path: tests.own_plugins.CharactersReward}]",
        "--model.optimizer.init_args.lr=0.01",
    )
    assert main(args) == 0, capsys.readouterr().err
    assert "error" not in capsys.readouterr().err
    written = load(tmp_path / "model")
    assert written.family.title == "Qwen3-VL"
    weights = dict(written.named_parameters())
    assert any((weights[n] != p).any() for n, p in load(folder).named_parameters())
