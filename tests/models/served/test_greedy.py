"""Greedy decoding: a served run comes to what the same run in process does, to the letter."""

import json
from pathlib import Path

import pytest

from tests.models.served.native_server import NativeRule
from vrts.cli.command import main
from vrts.demo.videos import make_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TINY = ROOT / "assets/tiny"
PENALTIES = ((0.0, 0.0), (10.0, 0.0), (0.0, 2.0), (10.0, 3.0))
"""Presence and frequency: without them greedy completions of a question would all be the same."""
SAMPLING = ", ".join(
    f"{{temperature: 0, presence_penalty: {presence}, frequency_penalty: {frequency}}}"
    for presence, frequency in PENALTIES
)
CALLBACKS = (
    f"[{{class_path: SparseToDense, init_args: {{levels: [4, 8, 16], sampling: [{SAMPLING}]}}}}, "
    "{class_path: PredictionWriter}]"
)


def predict(root: Path, annotations: Path, *options: str) -> list[dict]:
    """Predict with the embedded model's own options; returns a record for each question."""
    args = [
        "predict",
        f"--config={ROOT / 'configs/s2d.yaml'}",
        f"--config={ROOT / 'configs/tiny.yaml'}",
        *options,
        f"--trainer.default_root_dir={root}",
        f"--trainer.callbacks={CALLBACKS}",
        "--model.max_new_tokens=24",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.video_root=null",
        "--data.num_workers=0",
    ]
    assert main(args) == 0
    lines = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        for found in line["rounds"]:
            del found["mean_logprobs"]  # which the server does not give
    return lines


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """About six videos; the model was trained on the like."""
    return make_dataset(tmp_path_factory.mktemp("greedy"), num_videos=6, seed=11)


@pytest.fixture
def served(server):
    """Options of a policy whose server decodes with the native engine."""
    server.rule = NativeRule(TINY)
    template = ("preamble", "multiple_choice", "free_form", "numerical", "regression")
    return [
        f"--config={ROOT / 'configs/served.yaml'}",
        f"--model.policy.init_args.base_url={server.url}",
        "--model.policy.init_args.model=tiny",
        "--model.policy.init_args.format=png",
        *(f"--model.policy.init_args.prompt.{name}=" for name in template),
    ]


def test_votes_levels_and_early_stops_are_those_of_the_native_engine(questions, served, tmp_path):
    """Completion after completion on both sides, so that the same ones are cancelled."""
    one = "--model.engine={class_path: NativeEngine, init_args: {max_rows: 1}}"
    native = predict(tmp_path / "native", questions, one)
    one = "--model.policy.init_args.max_concurrency=1"
    assert predict(tmp_path / "served", questions, *served, one) == native
    rounds = [found for line in native for found in line["rounds"]]
    assert {found["num_frames"] for found in rounds} == {4, 8, 16}, "some questions go on"
    assert any(line["num_frames"] == 4 for line in native), "others do not"
    assert sum(sum(found["cancelled"]) for found in rounds) > 0
    assert len({line["answer"] for line in native}) > 2


def test_many_in_flight_decide_the_same(questions, served, tmp_path):
    """Which completions come too late to matter depends on their order, and nothing else does."""

    def decided(lines):
        return [
            (line["answer"], line["num_frames"], [r["num_frames"] for r in line["rounds"]])
            for line in lines
        ]

    def texts(lines):
        rounds = [found for line in lines for found in line["rounds"]]
        return [
            None if gone else text
            for found in rounds
            for text, gone in zip(found["completions"], found["cancelled"], strict=True)
        ]

    native = predict(tmp_path / "native", questions)
    found = predict(tmp_path / "served", questions, *served)
    assert decided(found) == decided(native)
    both = [pair for pair in zip(texts(found), texts(native), strict=True) if None not in pair]
    assert len(both) > len(native)
    assert all(own == other for own, other in both)
