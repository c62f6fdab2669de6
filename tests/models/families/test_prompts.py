"""Every family's prompts against transformers' own processor, on clips of all kinds."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from transformers import Qwen3VLProcessor

from tests.models.conftest import make_sample
from tests.models.engines.running import CPU
from vrts.models.families.prompt import frame_times_s, patch_times_s
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Sample

TEMPLATE = PromptTemplate(preamble="")


@dataclass(frozen=True)
class Frames:
    """Which frames of a video are shown; of a single one transformers makes an image."""

    fps: float
    num_source_frames: int
    indices: tuple[int, ...]
    tokens: tuple[int, int] = (2, 3)
    """Of a frame, rows and columns, where a family lets it be no square."""


CLIPS = {
    "0.5 fps": Frames(0.5, 15, (0, 4, 9, 14)),
    "1 fps, two frames": Frames(1.0, 2, (0, 1), (1, 1)),
    "23.976 fps, odd": Frames(24000 / 1001, 1433, (0, 358, 716, 1074, 1432), (3, 2)),
    "25 fps, three frames": Frames(25.0, 3, (0, 1, 2)),
    "29.97 fps, beyond an hour": Frames(
        30000 / 1001, 130_000, (1, 1798, 1799, 60_000, 107_892, 129_999), (2, 2)
    ),
    "60 fps": Frames(60.0, 3601, (59, 60, 61, 1800, 3599, 3600)),
    "half a second a frame": Frames(2.0, 64, tuple(range(0, 64, 2)), (1, 2)),
    "image": Frames(1.0, 1, (0,)),
    "tall image": Frames(1.0, 1, (0,), (4, 1)),
}


def make(family_model, shown: Frames, text: str = "Which colour has it?") -> Sample:
    size = family_model.case.size(*shown.tokens)
    sample = make_sample(3, len(shown.indices), size, text)
    clip = Clip(sample.clip.frames, shown.indices, shown.fps, shown.num_source_frames)
    question = dataclasses.replace(sample.question, is_image=clip.is_image)
    return Sample(question, clip)


def processed(policy, sample: Sample) -> dict[str, torch.Tensor]:
    """What the checkpoint's own processor makes of a sample, frames as large as they are."""
    clip, processor = sample.clip, policy.processor
    kind = "image" if clip.is_image else "video"
    content = [{"type": kind}, {"type": "text", "text": TEMPLATE.render(sample.question)}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    if clip.is_image:
        options = {"do_resize": False}
        if policy.base.config.model_type == "smolvlm":
            options["do_image_splitting"] = False
        return processor(
            text=[chat], images=[clip.frames[0]], images_kwargs=options, return_tensors="pt"
        )
    about = {
        "total_num_frames": clip.num_source_frames,
        "fps": clip.fps,
        "duration": clip.num_source_frames / clip.fps,
        "frames_indices": list(clip.frame_indices),
    }
    options = {"do_resize": False, "do_sample_frames": False, "video_metadata": [about]}
    return processor(text=[chat], videos=[clip.frames], videos_kwargs=options, return_tensors="pt")


def own_ids(policy, sample: Sample, want: dict[str, torch.Tensor]) -> list[int]:
    """Token ids of the processor, but for what `Qwen3VLProcessor` of transformers 5.24 has wrong.

    It leaves the video's vision tokens around those of its temporal patches; 4.57, which the
    weights were published with, replaced them.
    """
    ids = want["input_ids"][0].tolist()
    if sample.clip.is_image or not isinstance(policy.processor, Qwen3VLProcessor):
        return ids
    config = policy.base.config
    starts = [i for i, t in enumerate(ids) if t == config.vision_start_token_id]
    ends = [i for i, t in enumerate(ids) if t == config.vision_end_token_id]
    assert len(starts) == len(ends) == policy.family.encode(sample, TEMPLATE).grid[0] + 1
    return [t for i, t in enumerate(ids) if i not in (starts[0], ends[-1])]


@pytest.fixture(scope="module")
def policy(family_model):
    return family_model.policy(prompt=TEMPLATE)


@pytest.mark.parametrize("shown", CLIPS.values(), ids=CLIPS.keys())
def test_tokens_grids_and_pixels_are_the_processors(policy, family_model, shown):
    sample = make(family_model, shown)
    prompt, want = policy.family.encode(sample, TEMPLATE), processed(policy, sample)
    ids = own_ids(policy, sample, want)
    assert policy.processor.tokenizer.decode(prompt.input_ids) == policy.processor.tokenizer.decode(
        ids
    )
    assert prompt.input_ids.tolist() == ids
    key = "pixel_values" if "pixel_values" in want else "pixel_values_videos"
    pixels = want[key]
    if family_model.case.squares:  # [1, frames, C, H, W]
        pixels = pixels[0]
        patch_size = policy.base.config.vision_config.patch_size
        grid = [len(pixels), *(side // patch_size for side in pixels.shape[-2:])]
    else:
        grid = want["image_grid_thw" if sample.clip.is_image else "video_grid_thw"][0].tolist()
    assert torch.equal(prompt.patches(CPU), pixels)
    assert prompt.grid == tuple(grid)
    num_vision_tokens = int(
        torch.isin(prompt.input_ids, torch.tensor(policy.family.vision_ids())).sum()
    )
    assert len(prompt.vision_places) == num_vision_tokens
    assert policy.family.length(sample, TEMPLATE) == (len(ids), num_vision_tokens)


@pytest.mark.parametrize("shown", CLIPS.values(), ids=CLIPS.keys())
def test_positions_are_the_models(policy, family_model, shown):
    sample = make(family_model, shown)
    prompt = policy.family.encode(sample, TEMPLATE)
    if policy.family.position_axes == 1:
        want = torch.arange(prompt.num_tokens)[None]
    else:
        if isinstance(policy.family, Qwen2_5VL) and not sample.clip.is_image:
            pytest.skip("transformers is wrong; see test_positions")
        config, grid = policy.base.config, torch.tensor([prompt.grid])
        kinds = (prompt.input_ids == config.image_token_id).int()
        kinds += 2 * (prompt.input_ids == config.video_token_id).int()
        grids = {"image_grid_thw" if sample.clip.is_image else "video_grid_thw": grid}
        want, _ = policy.base.model.get_rope_index(
            prompt.input_ids[None], mm_token_type_ids=kinds[None], **grids
        )
        want = want[:, 0]
    assert torch.equal(prompt.positions, want)
    assert prompt.next_position == int(want.max()) + 1


@pytest.mark.parametrize("num_frames", [2, 8, 64])
def test_the_fewest_tokens_of_text_are_known_before_weights_are(family_model, num_frames):
    """The template's own and the timestamps, fewer than with a question; nothing is read twice."""
    policy = TransformersPolicy(str(family_model.folder), prompt=PromptTemplate())
    fewest = policy.fewest_text_tokens(num_frames)
    assert not policy.loaded
    processor = policy.processor
    policy.load()
    assert policy.processor is processor
    assert policy.fewest_text_tokens(num_frames) == fewest
    shown = Frames(1.0, num_frames, tuple(range(num_frames)))
    sample = make(family_model, shown)
    num_tokens, num_vision_tokens = policy.family.length(sample, policy._template)
    words = policy.processor.tokenizer(
        "Which colour has it?\nA. red\nB. green\nC. blue", add_special_tokens=False
    )
    missing = num_tokens - num_vision_tokens - fewest
    assert 0 < missing <= 2 * len(words["input_ids"]) + 40


@pytest.mark.parametrize("shown", [CLIPS["60 fps"], CLIPS["image"]], ids=["video", "image"])
def test_special_tokens_in_a_question_stay_text(policy, family_model, shown):
    tokenizer = policy.processor.tokenizer
    spelled = [*tokenizer.all_special_tokens, policy.processor.video_token]
    spelled += tokenizer.convert_ids_to_tokens(policy.family.suppressed_ids())
    plain = policy.family.encode(make(family_model, shown), TEMPLATE)
    hostile = policy.family.encode(make(family_model, shown, " ".join(spelled)), TEMPLATE)
    known = tokenizer.get_vocab()
    special = torch.tensor([known[token] for token in spelled if token in known])

    def count(prompt):
        return int(torch.isin(prompt.input_ids, special).sum())

    assert count(hostile) == count(plain) > len(plain.vision_places)
    assert len(hostile.vision_places) == len(plain.vision_places)
    assert hostile.num_tokens > plain.num_tokens + 3 * len(spelled)


def test_features_do_not_depend_on_the_default_dtype(policy, family_model):
    """Lightning's bf16-true makes bfloat16 the default, in which 1 / 14 is far from it."""
    case = family_model.case
    size = (112, 112) if case.squares else case.size(7, 7)
    sample = make_sample(0, 4, size, "What?")
    (want,) = policy.network().encode([sample])
    torch.set_default_dtype(torch.bfloat16)
    try:
        (got,) = policy.network().encode([sample])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got.features, want.features)


class TestTimes:
    """As text, for the families that tell them so."""

    def clip(self, times_s: tuple[float, ...]) -> Clip:
        frames = torch.zeros(len(times_s), 3, 4, 4, dtype=torch.uint8)
        return Clip(frames, tuple(range(0, 8 * len(times_s), 8)), 8.0, 60, times_s)

    def test_of_a_constant_rate_are_those_of_the_indices(self):
        clip = self.clip((0.003, 1.0, 1.996))
        assert frame_times_s(clip) == [0.0, 1.0, 2.0]
        assert patch_times_s(clip, 2) == [0.5, 2.0]

    def test_of_another_rate_are_the_frames_own(self):
        clip = self.clip((0.0, 1.0, 70.5))
        assert frame_times_s(clip) == [0.0, 1.0, 70.5]
        assert patch_times_s(clip, 2) == [0.5, 70.5]

    def test_reach_the_prompt(self, policy, family_model):
        if isinstance(policy.family, Qwen2_5VL):
            pytest.skip("tells no time as text")
        sample = make(family_model, Frames(8.0, 60, (0, 8, 16, 24)))
        late = dataclasses.replace(sample.clip, times_s=(0.0, 1.0, 70.5, 71.5))
        prompt = policy.family.encode(dataclasses.replace(sample, clip=late), TEMPLATE)
        text = policy.processor.tokenizer.decode(prompt.input_ids)
        wanted = ["<0.5 seconds>", "<71.0 seconds>"]
        if family_model.case.squares:
            wanted = ["00:00:", "00:01:", "01:10:", "01:11:", "from a 0:01:11 [H:MM:SS] video"]
        assert all(part in text for part in wanted), text
