"""Two gloo processes that hold a part of the weights each, against one that holds all."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.callbacks.runs import build_model, make_policy, read_predictions
from tests.forked import forked
from tests.models.families.conftest import CASES
from tests.models.sharded_runs import run
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.vlm.loading import Lora

GIVEN_BACK = {"keep_gathered": False}
SUMMED = {"sync_every_micro_batch": True}
TRAINED: dict[str, dict[str, Any]] = {
    "full": {"checkpointing": True, "clip": 0.05, "count": 7, "damaged": [3], "export": True},
    "vision": {"freeze_vision": False, "beta": 0.0, "micro": 2, "count": 8},
    "lora": {"lora": True, "checkpointing": True, "batch": 8, "count": 9, "export": True},
    "lora_alone": {"lora": True, "beta": 0.0, "clip": 0.05, "updates": 2, "damaged": [0]},
    "moving": {"frozen": {"sync_every_n_steps": 1, "mixup": 0.5}, "micro": 2, "count": 8},
    "given_back": {"sharding": GIVEN_BACK, "count": 6, "damaged": [3], "max_new_tokens": 24},
    "given_back_lora": {"sharding": GIVEN_BACK, "lora": True, "count": 5, "checkpointing": True},
    "summed": {"sharding": SUMMED, "batch": 8, "count": 9},
    "offloaded": {"sharding": {"cpu_offload": True}, "clip": 0.05},
    "continued": {"folder": "adapter", "lora": True, "count": 6},
    **{c.name: {"folder": c.name, "freeze_vision": False, "beta": 0.0} for c in CASES[1:]},
    **{f"{c.name}, lora": {"folder": c.name, "lora": True, "count": 6} for c in CASES[1:]},
}
"""By one process and by two."""
MATRIX: dict[str, dict[str, Any]] = {
    f"{'lora' if lora else 'full'}, beta {beta}, micro {micro}": {
        "lora": lora,
        "beta": beta,
        "micro": micro,
        # the last step has one question, so that a rank has none
        "count": 5,
        "damaged": [2],
        "dapo": micro == 2,
    }
    for lora, beta, micro in (
        (False, 0.0, 1), (False, 0.1, 2), (False, 0.0, 4),
        (True, 0.1, 1), (True, 0.0, 2), (True, 0.1, 4),
    )
}  # fmt: skip
"""By one process, and by two under DDP and FSDP2; every two values of these come together."""
ANSWERED: dict[str, dict[str, Any]] = {
    "answered": {"do": "answer", "count": 7, "damaged": [1]},
    "answered_given_back": {"do": "answer", "count": 3, "sharding": GIVEN_BACK},
    "answered_alone": {"do": "answer", "count": 1},
}
"""By one process and by two; shares and rounds of the two are not equal."""
CHOICES: dict[str, Any] = {
    "temporal": True,
    "num_groups": 1,
    "dapo": True,
    "batch": 6,
    "micro": 3,
    "count": 12,
    "damaged": [0, 2, 4, 7],
}
TOGETHER: dict[str, dict[str, Any]] = {
    "choices": CHOICES,
    "choices_given_back": CHOICES | {"sharding": GIVEN_BACK},
    "resumed": {"do": "resume", "adam": True, "frozen": {"sync_every_n_steps": 2}},
    "resumed_lora": {"do": "resume", "adam": True, "lora": True},
    "resumed_background": {"do": "resume", "adam": True, "background": True},
    "long": {"max_new_tokens": 32},
    "mixed": {"precision": "bf16-mixed"},
}
"""By two processes only."""


def start(folder: Path, model: Path, videos: dict[str, str], cases: dict[str, Any]) -> None:
    with forked(folder / "log", run, folder, model, videos, cases, 2, ranks=2) as processes:
        processes.succeed()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = build_model(tmp_path_factory.mktemp("model"))
    for case in CASES[1:]:
        case.build(folder / case.name)
    adapted = make_policy(folder, lora=Lora(rank=4, alpha=8))
    adapted.load()
    perturb_adapter(adapted)
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def folders(made_once, model, videos) -> tuple[Path, Path]:
    """What one process and two left, all cases at once."""

    def make(root: Path) -> None:
        for name in ("one", "two"):
            (root / name).mkdir()
        run(root / "one", model, videos, TRAINED | MATRIX | ANSWERED, devices=1)
        ddp = {f"{name}, ddp": case | {"ddp": True} for name, case in MATRIX.items()}
        start(root / "two", model, videos, TRAINED | MATRIX | ddp | ANSWERED | TOGETHER)

    root = made_once("sharded", make)
    return root / "one", root / "two"


def read(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_sharded_training_is_training(folders, name):
    """The same losses, gradient norms and weights."""
    one, two = folders
    alone, ranks = read(one, name), [read(two, name, rank) for rank in (0, 1)]
    case = TRAINED[name]
    assert len(alone["norms"]) == math.ceil(case.get("count", 4) / case.get("batch", 4))
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert alone["norms"][0] > 1e-3
    if "clip" in case:
        assert max(alone["norms"]) > case["clip"]
    want, got = (torch.load(folder / f"{name}-0.pt") for folder in folders)
    assert got.keys() == want.keys()
    for key, parameter in want.items():
        assert (got[key] - parameter).norm() <= 1e-5 * parameter.norm(), key


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("end", ["", ", ddp"], ids=["fsdp", "ddp"])
def test_two_processes_are_one(folders, name, end):
    """The same losses and gradient norms, whatever is trained and however batches come out."""
    alone = read(folders[0], name)
    assert len(alone["norms"]) == 2
    assert min(alone["norms"]) > 1e-3
    for rank in (0, 1):
        found = read(folders[1], name + end, rank)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-5)


@pytest.mark.slow
def test_choosing_groups_and_shuffled_frames_are_done_in_step(folders):
    """Also where one process has no usable video at all, and whatever is kept."""
    names = ("choices", "choices_given_back")
    found = [read(folders[1], name, rank) for name in names for rank in (0, 1)]
    for one in found:
        assert one["losses"] == pytest.approx(found[0]["losses"], rel=1e-5, abs=1e-6)
        assert one["norms"] == pytest.approx(found[0]["norms"], rel=1e-5)
    assert len(found[0]["norms"]) == 2
    assert found[0]["norms"][0] > 1e-3


@pytest.mark.slow
def test_weights_that_stay_are_gathered_independently_of_the_length(folders):
    two = folders[1]
    short, long = read(two, "full"), read(two, "long")
    assert max(long["lengths"]) > max(short["lengths"]) + 4
    assert long["gathers"] == short["gathers"][:1]
    num_modules = read(two, "lora")["sharded"]  # of the policy alone
    for name in ("full", "moving", "lora", "lora_alone", "summed", "long"):
        found = read(two, name)
        # Each module once for each update, once for the reference and once for the engine, which
        # gathers an adapter at once: only its first copy is of all modules.
        updates = TRAINED.get(name, {}).get("updates", 1)
        step = updates * num_modules + found["sharded"] - num_modules
        step += 1 if "lora" in name else num_modules
        steps = len(found["gathers"])
        assert found["gathers"] == [step + num_modules, *[step] * (steps - 1)], name
    # Sampling gathers nothing any more: what is gathered anew is each micro-batch's.
    assert read(two, "given_back")["gathers"][0] > short["gathers"][0]


@pytest.mark.slow
def test_mixed_precision_keeps_whole_numbers_where_it_steps(folders):
    """Computes in bfloat16; weights and their gradients stay float32."""
    mixed, exact = read(folders[1], "mixed"), read(folders[1], "long")
    assert mixed["norms"][0] != exact["norms"][0]
    weights = torch.load(folders[1] / "mixed-0.pt")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.isfinite().all() for weight in weights.values())
    rounded = [(weight.bfloat16().float() != weight).any() for weight in weights.values()]
    assert any(rounded)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_sharded_policy_is_exported_whole(folders, name):
    one, two = (folder / f"{name}-model" for folder in folders)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    want, got = load_file(one / file), load_file(two / file)
    assert got.keys() == want.keys()
    for key, parameter in want.items():
        assert (got[key] - parameter).norm() <= 1e-5 * parameter.norm(), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resumed", "resumed_lora", "resumed_background"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(folders, name):
    for rank in (0, 1):
        found = read(folders[1], name, rank)
        whole, rest = found["losses"]
        assert len(whole) == 8  # losses, then norms
        assert rest == whole[2:4] + whole[6:8]
        assert "of another model or LoRA setting" in found["refused"]
        kept = [key for key in found["saved"] if key.startswith("state_dict.")]
        assert kept
        assert not [key for key in kept if ".visual." in key]
        assert all(".lora_" in key for key in kept) == (name == "resumed_lora")


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERED)
def test_sharded_answers_are_answers(folders, name):
    """Validation and sparse-to-dense prediction, with shares that are not equal."""
    one, two = folders
    assert read(two, name, 0) == read(two, name, 1) == read(one, name)
    settings = [(folder / f"{name}-predicted/settings.json").read_text() for folder in folders]
    assert settings[0] == settings[1]
    want, got = (read_predictions(folder / f"{name}-predicted") for folder in folders)
    assert len(want) == ANSWERED[name]["count"]

    def told(lines: list[dict[str, Any]]) -> dict[str, Any]:
        """What was answered, without numbers that rounding changes."""
        rounds = {line["id"]: line["rounds"] for line in lines}
        return {
            name: [(r["num_frames"], r["completions"]) for r in of_one]
            for name, of_one in rounds.items()
        }

    assert told(got) == told(want)
