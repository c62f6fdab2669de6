"""What a model card contains, and that names from outside stay names in it."""

import re

import pytest
import torch
import yaml

from tests.callbacks.runs import make_module, make_trainer
from tests.models.families.conftest import family_model  # noqa: F401 a fixture
from vrts.callbacks.export.model_card import (
    ADAPTER,
    FULL,
    MERGED,
    code_text,
    plain_text,
    render_card,
)
from vrts.data.datamodule import VideoQADataModule
from vrts.data.video.resolution import Resolution

FACTS = {
    "base_model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "recipe": {
        "objective": {"class": "GRPO", "beta": 0.04, "advantages": {"class": "GroupScaled"}},
        "rewards": [
            {"class": "AccuracyReward", "weight": 1.0, "graded": True},
            {"class": "my.Brevity", "weight": 0.1},
        ],
        "reference": None,
        "num_generations": 8,
        "optimizer": {"class": "torch.optim.adamw.AdamW", "lr": 1e-6},
        "num_frames": 32,
        "resolution": {"class": "Resolution", "short_side": 224, "min_pixels": 3136},
        "lora": {"class": "Lora", "rank": 64, "alpha": 128},
        "seed": 0,
    },
    "data": {"train": {"reader": "VideoR1Reader", "file": "mine.jsonl", "num_questions": 812}},
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "steps": 300,
    "metrics": {
        "training": {"train/reward/accuracy": 0.61251},
        "validation": {"val/accuracy": {"best": 0.5, "step": 200, "last": 0.45}},
    },
}


def front_matter(card: str) -> dict:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(text)


def changed(**recipe) -> dict:
    return {**FACTS, "recipe": {**FACTS["recipe"], **recipe}}


@pytest.mark.parametrize(
    ("kind", "library", "relation", "has_lora"),
    [
        (ADAPTER, "peft", "adapter", True),
        (MERGED, "transformers", "finetune", True),
        (FULL, "transformers", "finetune", False),
    ],
)
def test_the_hub_reads_its_front_matter(kind, library, relation, has_lora):
    found = front_matter(render_card("mine", kind, FACTS, "bfloat16", "qwen2_5_vl"))
    assert found.pop("tags")[:3] == ["vrts", "reinforcement-learning", "grpo"]
    assert found == {
        "base_model": "Qwen/Qwen2.5-VL-7B-Instruct",
        "base_model_relation": relation,
        "library_name": library,
        "pipeline_tag": "video-text-to-text",
    }
    tags = front_matter(render_card("mine", kind, FACTS))["tags"]
    assert ("lora" in tags) == has_lora


def test_rewards_that_never_differed_are_a_warning():
    card = render_card(
        "mine", FULL, {**FACTS, "warning": "rewards never differed"}, "bfloat16", "x"
    )
    assert "> **Warning:** rewards never differed." in card
    assert "Warning" not in render_card("mine", FULL, FACTS, "bfloat16", "x")


def test_it_has_recipe_data_metrics_and_versions():
    card = render_card("mine", ADAPTER, FACTS)
    for row in (
        "| `steps` | `300` |",
        "| `objective` | `{class: GRPO, beta: 0.04, advantages: {class: GroupScaled}}` |",
        "| `num_generations` | `8` |",
        "| `optimizer` | `{class: torch.optim.adamw.AdamW, lr: 1.0e-06}` |",
        "| `resolution` | `{class: Resolution, short_side: 224, min_pixels: 3136}` |",
        "| `lora` | `{class: Lora, rank: 64, alpha: 128}` |",
        "| `rewards` | `{class: AccuracyReward, weight: 1.0, graded: true}` |",
        "| `rewards` | `{class: my.Brevity, weight: 0.1}` |",
        "| `train` | `VideoR1Reader` | `mine.jsonl` | 812 |",
        "| `val/accuracy` | `0.5` | 200 | `0.45` |",
        "| `train/reward/accuracy` | `0.6125` |",
        "python 3.11.7, torch 2.14.1",
    ):
        assert row in card
    assert "`reference`" not in card, "there is none"
    assert "from_pretrained('Qwen/Qwen2.5-VL-7B-Instruct', dtype=\"auto\")" in card
    assert "Resolution(short_side=224, min_pixels=3136)" in card
    assert "PromptTemplate()" in card
    assert "init_args.prompt" not in card


@pytest.mark.parametrize("kind", [ADAPTER, MERGED, FULL])
def test_its_code_is_python(kind):
    card = render_card("mine", kind, changed(prompt={"preamble": "It's\n```\n# \u202e"}))
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    compile(code, "card", "exec")
    assert ("PeftModel" in code) == (kind == ADAPTER)
    assert 'PromptTemplate(preamble="It\'s\\n```\\n# \\u202e")' in code


def test_its_frames_are_those_that_vrts_takes_of_each_family(family_model, shared, tmp_path):  # noqa: F811
    """Indices and size of a real video, by the card's code and by the data module."""
    asked = {"short_side": 224} if not family_model.case.squares else {}
    recipe = {"num_frames": 6, "max_new_tokens": 2, "resolution": asked}
    card = render_card("mine", FULL, changed(**recipe))
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    video = str(shared / "videos/nasa_13013.mp4")
    code = code.replace('"FOLDER"', repr(str(family_model.folder)))
    code = code.replace('"VIDEO"', repr(video))
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    data = VideoQADataModule(
        video=video, question="?", resolution=Resolution(**asked), num_frames=6, num_workers=0
    )
    data.trainer = make_trainer(tmp_path)
    data.trainer.strategy._lightning_module = make_module(family_model.policy())
    data.setup("predict")
    ((sample,),) = data.predict_dataloader()
    assert names["clip"].frame_indices == sample.clip.frame_indices
    assert torch.equal(names["clip"].frames, sample.clip.frames)
    assert len(names["new_tokens"]) <= 2


def test_the_prompt_is_given_to_predict():
    card = render_card("mine", FULL, changed(prompt={"preamble": "It's", "ocr": ""}))
    (line,) = [line for line in card.splitlines() if "init_args.prompt" in line]
    assert line.endswith(""" '{"preamble": "It'"'"'s", "ocr": ""}' \\""")


HOSTILE = (
    "x\n---\nlicense: mit\n# <script>alert(1)</script> | [a](http://b) `c` ``` {{ 7*7 }} \u202e\x1b"
)


def test_names_stay_text():
    data = {"reader": HOSTILE, "file": HOSTILE, "num_questions": 3}
    facts = {
        **changed(rewards=[{"class": HOSTILE, "weight": 1.0, HOSTILE: HOSTILE}], sampler=HOSTILE),
        "base_model": HOSTILE,
        "data": {"train": data},
        "metrics": {"training": {HOSTILE: 1.0}, "validation": {}},
    }
    card = render_card(HOSTILE, ADAPTER, facts, model_type=HOSTILE)
    found = front_matter(card)
    assert found["base_model"] == HOSTILE
    assert "license" not in found
    body = card.partition("\n---\n\n# ")[2]
    usual = render_card("mine", ADAPTER, FACTS)
    sections = [line for line in usual.splitlines() if line.startswith("## ")]
    assert [line for line in body.splitlines() if line.startswith("##")] == sections
    assert not {"\u202e", "\x1b"} & set(body)
    assert "49" not in body
    text = re.sub(r"^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert text.count("alert") >= 8
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5)
        outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", line))
        assert "<script" not in outside
        assert "[a" not in outside


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a", "`a`"),
        ("a|b", r"`a\|b`"),
        ("a`b", "``a`b``"),
        ("`a``b", "``` `a``b ```"),
        ("a\nb\tc", "`a b c`"),
        ("", "`  `"),
        (1e-6, "`1e-06`"),
        (3.0, "`3`"),
        (float("inf"), "`inf`"),
        (None, "`None`"),
    ],
)
def test_code_shows_what_it_holds(text, code):
    assert code_text(text) == code


def test_plain_text_is_escaped():
    assert plain_text("a_b *c* <d> [e](f) | `g` & $h$ \\i\n# j") == (
        r"a\_b \*c\* \<d\> \[e\](f) \| \`g\` \& \$h\$ \\i # j"
    )
