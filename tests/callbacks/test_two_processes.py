"""Two gloo processes against one: training, validation and prediction come to the same."""

import json

import pytest
import torch

from tests.callbacks.runs import by_id, make_policy, read_predictions
from tests.callbacks.two_processes import OBJECTIVES, run
from tests.forked import forked


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_two_processes_come_to_the_same_as_one(tmp_path, model_folder, videos):
    """One test, so that the processes are started once."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    run(one, model_folder, videos, devices=1)
    with forked(tmp_path / "log", run, two, model_folder, videos, 2, ranks=2) as processes:
        processes.succeed()
    for name in OBJECTIVES:
        check_training(one, two, model_folder, name)
    check_completions(one, two)
    check_validation(one, two, 7, 3 / 7)
    check_validation(one, two, 1, 1.0)
    for count in (9, 1):
        check_prediction(one / f"predicted-{count}", two / f"predicted-{count}", count)


def check_training(one, two, model_folder, name):
    """The same losses and parameters; each process has its half of every batch."""
    alone, ranks = read(one / f"{name}-0.json"), [read(two / f"{name}-{r}.json") for r in (0, 1)]
    assert alone["ids"] == [["q0", "q1"], ["q2", "q3"]]
    assert [r["ids"] for r in ranks] == [[["q0"], ["q2"]], [["q1"], ["q3"]]]
    assert len(alone["losses"]) == 2
    assert max(abs(loss) for loss in alone["losses"]) > 1e-2
    for losses in (r["losses"] for r in ranks):
        assert losses == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
    start = make_policy(model_folder)
    start.load()
    before = {f"policy.{n}": p for n, p in start.named_parameters()}
    want = torch.load(one / f"{name}-0.pt")
    for rank in (0, 1):
        got = torch.load(two / f"{name}-{rank}.pt")
        assert got.keys() == want.keys()
        for key, parameter in want.items():
            difference = (got[key] - parameter).norm()
            assert difference <= 1e-5 * parameter.norm(), key
            assert difference <= 1e-2 * (parameter - before[key]).norm(), key


def check_completions(one, two):
    """The first process keeps its own completions."""
    for folder, ids in ((one, ["q0", "q1", "q2"]), (two, ["q0", "q2"])):
        text = (folder / "grpo" / "completions.jsonl").read_text()
        found = [json.loads(line)["id"] for line in text.splitlines()]
        assert found == [id for id in ids for _ in range(4)]


def check_validation(one, two, count, accuracy):
    """Every question counts once, also where a process has none at all."""
    want = {
        "val/accuracy": pytest.approx(accuracy),
        "val/num_failed": int(count > 1),
        "val/mean_frames": 4,
        "val/agreement": 1,
    }
    assert read(one / f"val-{count}-0.json") == want
    for rank in (0, 1):
        assert read(two / f"val-{count}-{rank}.json") == want


def check_prediction(one, two, count):
    """Each question is predicted once, and the files are the same."""
    want, got = read_predictions(one), read_predictions(two)
    assert len(by_id(got)) == count
    assert got == want
    for name in ("predictions.jsonl", "metrics.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    metrics = read(two / "metrics.json")
    assert metrics["num_questions"] == metrics["num_scored"] + (count > 5) == count
    assert sum(c["num_questions"] for c in metrics["breakdown"]["kind"].values()) == count
    assert len({len(line["rounds"]) for line in got}) == (4 if count > 1 else 1)
    assert not list(two.glob("*rank*"))
