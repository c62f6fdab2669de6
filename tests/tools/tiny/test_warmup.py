"""The recipe end to end in small, and the checkpoint that it made."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from tests.models.engines.running import sample
from tools.tiny import warmup
from tools.tiny.lessons import Lesson
from tools.tiny.model import build_config, build_model_folder
from tools.tiny.tokenizer import build_tokenizer
from tools.tiny.warmup import OUTPUT, PROMPT, Recipe, load_pool, warm_up
from vrts.answers import has_format, is_correct, parse_answer
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import SamplingParams

SHIPPED = Path(__file__).parents[3] / OUTPUT


def load(folder: Path) -> TransformersPolicy:
    policy = TransformersPolicy(str(folder), prompt=PROMPT, dtype="float32")
    policy.load()
    return policy


def test_recipe_writes_a_folder_that_the_policy_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "REPORT_STEPS", 5)
    recipe = Recipe(
        num_videos=4,
        batch_size=4,
        vision_steps=5,
        lessons=(
            Lesson("look-up", 2, 1e-3, (2,), 4, perceives=False),
            Lesson("all", 2, 1e-3, (4, 8), 1),
        ),
    )
    lines: list[str] = []
    warm_up(tmp_path / "a", recipe, lines.append)
    assert [line.split(",")[0] for line in lines] == ["vision: step 5"]
    build_model_folder(tmp_path / "start", recipe.seed)
    trained, start = load(tmp_path / "a"), load(tmp_path / "start")
    moved = [
        not torch.equal(p, q) for p, q in zip(trained.parameters(), start.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)

    warm_up(tmp_path / "b", recipe, lines.append)
    again = load(tmp_path / "b")
    for p, q in zip(trained.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


class TestShippedCheckpoint:
    def test_is_of_the_recipes_architecture_and_tokenizer(self):
        tokenizer = build_tokenizer()
        config = json.loads((SHIPPED / "config.json").read_text())
        expected = build_config(tokenizer).to_dict()
        for part in ("text_config", "vision_config"):
            for key in ("hidden_size", "initializer_range", "num_hidden_layers", "depth"):
                assert config[part].get(key) == expected[part].get(key)
        policy = load(SHIPPED)
        assert policy.processor.tokenizer.get_vocab() == tokenizer.get_vocab()
        assert policy.base.config.text_config.rope_parameters == (
            build_config(tokenizer).text_config.rope_parameters
        )

    def test_is_small(self):
        assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4_000_000
        with safe_open(SHIPPED / "model.safetensors", "pt") as file:
            assert len(list(file.keys())) > 50

    def test_answers_in_the_format_often_rightly_and_not_always(self, tmp_path):
        """A spot check on few questions; the demo measures."""
        pool = load_pool(tmp_path, 40, seed=7)
        policy = load(SHIPPED)
        asked = [item.sample(16) for item in pool]
        _, found = sample(policy, asked, [SamplingParams()] * 2, 32)
        texts = [c.text for group in found for c in group]
        questions = [item.question for item in pool for _ in range(2)]
        assert sum(map(has_format, texts)) > 0.95 * len(questions)
        right = [
            is_correct(parse_answer(text, question), question)
            for text, question in zip(texts, questions, strict=True)
        ]
        assert 0.35 < sum(map(bool, right)) / len(right) < 0.75
        pairs = zip(texts[::2], texts[1::2], strict=True)
        assert sum(a != b for a, b in pairs) > 0.1 * len(pool)
