"""What a lesson shows, and which tokens of it are learnt."""

import json

import numpy as np
import pytest
import torch

from tools.tiny.lessons import Lesson, as_completions, draw_batch, learnt_tokens, teach
from tools.tiny.model import PIXELS, build_model_folder
from tools.tiny.targets import seen_target
from tools.tiny.tokenizer import build_tokenizer
from tools.tiny.warmup import PROMPT, load_pool
from vrts.data.datamodule import VideoQADataModule
from vrts.data.readers.video_rts import VideoR1Reader
from vrts.data.video.resolution import Resolution
from vrts.demo.scenes import SIZE
from vrts.models.vlm.policy import TransformersPolicy

TOKENIZER = build_tokenizer()
ANSWER_ID = TOKENIZER.convert_tokens_to_ids("<answer>")
LOOKUP = Lesson("look-up", 1, 1e-3, levels=(2,), num_lookups=4, perceives=False)
BOTH = Lesson("all", 1, 1e-3, levels=(4, 16), num_lookups=2)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return folder, load_pool(folder, 6, seed=0)


def test_samples_are_those_of_the_data_module(pool):
    folder, items = pool
    assert len(items) == len((folder / "questions.jsonl").read_text().splitlines())
    data = VideoQADataModule(
        predict=VideoR1Reader(str(folder / "questions.jsonl")),
        resolution=Resolution(min_pixels=PIXELS, max_pixels=PIXELS),
        num_workers=0,
    )
    data.setup("predict")
    for num_frames in (2, 4, 16):
        loaded = data.load(data.questions("predict")[:3], num_frames)
        for item, sample in zip(items, loaded, strict=False):
            own = item.sample(num_frames)
            assert own.question == sample.question
            assert own.clip.frame_indices == sample.clip.frame_indices
            assert own.clip.frame_indices == item.frame_indices(num_frames)
            assert own.clip.sampled_fps == sample.clip.sampled_fps
            assert torch.equal(own.clip.frames, sample.clip.frames)
    data.close()


def test_completions_of_given_texts():
    texts = ["<think>a</think><answer>B</answer>", "no"]
    completions = as_completions(TOKENIZER, texts)
    for completion, text in zip(completions, texts, strict=True):
        ids = completion.token_ids.tolist()
        assert ids[-1] == TOKENIZER.eos_token_id
        assert TOKENIZER.decode(ids[:-1]) == text
    assert [c.num_tokens for c in completions] == [7, 2]


def test_lookups_are_learnt_from_the_answer_on():
    text = "<think>the flash is red</think><answer>C</answer>"
    texts = [text, text, "<think>x</think><answer>A</answer>"]
    completions = as_completions(TOKENIZER, texts)
    learnt = learnt_tokens(completions, torch.tensor([True, False, False]), ANSWER_ID)
    decoded = [
        TOKENIZER.decode(c.token_ids[keep[: c.num_tokens]])
        for c, keep in zip(completions, learnt, strict=True)
    ]
    assert decoded == [text + "<|im_end|>", "C</answer><|im_end|>", "A</answer><|im_end|>"]


def test_batch_without_perception_names_every_option(pool):
    samples, texts, whole = draw_batch(pool[1], LOOKUP, 3, np.random.default_rng(0))
    assert [s.clip.num_frames for s in samples] == [2, 2, 2]
    assert not whole.any()
    for n, sample in enumerate(samples):
        row = next(x.row for x in pool[1] if x.question == sample.question)
        assert set(texts[4 * n : 4 * n + 4]) == {seen_target(row, letter) for letter in "ABCD"}


def test_batch_with_perception_starts_each_question_with_the_truth(pool):
    rng = np.random.default_rng(0)
    levels = set()
    for _ in range(10):
        samples, texts, whole = draw_batch(pool[1], BOTH, 4, rng)
        assert whole.tolist() == [True, False, False] * 4
        for sample, text in zip(samples, texts[::3], strict=True):
            levels.add(sample.clip.num_frames)
            evidence = sample.question.metadata["evidence_frames"]
            if evidence is None or set(evidence) & set(sample.clip.frame_indices):
                assert text.endswith(f"<answer>{sample.question.gold}</answer>")
            else:
                assert "is seen" in text
    assert levels == {4, 16}


@pytest.mark.parametrize("lesson", [LOOKUP, BOTH])
def test_teaching_lowers_the_loss_and_trains_vision_only_where_it_perceives(lesson, pool, tmp_path):
    build_model_folder(tmp_path, seed=0)
    policy = TransformersPolicy(str(tmp_path), prompt=PROMPT, freeze_vision=False, dtype="float32")
    policy.load()
    tower = policy.base.model.visual
    before = tower.patch_embed.proj.weight.clone()
    lesson = Lesson("short", 25, 3e-3, lesson.levels, lesson.num_lookups, lesson.perceives)
    losses = list(teach(policy, pool[1], lesson, 4, np.random.default_rng(0)))
    assert len(losses) == 25
    assert losses[-1] < 0.6 * losses[0]
    assert torch.equal(before, tower.patch_embed.proj.weight) != lesson.perceives


def test_pool_rows_belong_to_their_questions(pool):
    for item in pool[1]:
        assert item.question.text == item.row["problem"]
        assert item.frames.shape == (32, 3, SIZE, SIZE)
        assert json.dumps(item.row["options"]).count(". ") == 4
