"""SIGKILL at random moments of a prediction run, which is resumed each time."""

import contextlib
import json
import multiprocessing
import os
import random
import time

import pytest

from tests.callbacks import killed_ranks
from tests.callbacks.killed_ranks import SlowPolicy, asked
from tests.callbacks.plugins import ScriptedPolicy
from tests.callbacks.prediction.test_writer import SCRIPT
from tests.callbacks.runs import by_id, predict, read_predictions
from tests.forked import forked

NUM_KILLS = 30
STEP_S = 0.01
"""What each rollout takes, so that a run is long enough to be hit anywhere."""


def predict_alone(folder, videos):
    """Run in a process of its own; nothing of it comes to the terminal."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 descriptors are what is replaced
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    predict(folder, SlowPolicy(SCRIPT, step_s=STEP_S), asked(videos), data={"eval_batch_size": 2})


@pytest.fixture(scope="module")
def started():
    """Starts runs from a server that has everything imported, so that they begin at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = []

    def start(folder, videos):
        process = context.Process(target=predict_alone, args=(folder, videos))
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ValueError):
            process.kill()
            process.join()


@pytest.mark.slow
def test_a_run_killed_at_thirty_moments_comes_to_the_same(tmp_path, videos, started):
    want = tmp_path / "whole"
    first = started(tmp_path / "first", videos)  # the server starts with it
    first.join()
    begin_s = time.monotonic()
    whole = started(want, videos)
    whole.join()
    duration_s = time.monotonic() - begin_s
    assert (first.exitcode, whole.exitcode) == (0, 0)

    rng = random.Random(0)
    kills = runs = 0
    reached = set()
    while kills < NUM_KILLS:
        folder = tmp_path / f"run{runs}"
        runs += 1
        finished = False
        while not finished:
            process = started(folder, videos)
            process.join(rng.uniform(0, duration_s) if kills < NUM_KILLS else None)
            finished = process.exitcode is not None
            if not finished:
                process.kill()
                process.join()
                kills += 1
                path = folder / "predictions.jsonl"
                reached.add(path.read_bytes().count(b"\n") if path.exists() else -1)
            else:
                assert process.exitcode == 0
        for name in ("predictions.jsonl", "metrics.json", "settings.json"):
            assert (folder / name).read_bytes() == (want / name).read_bytes(), (name, runs)
        assert len(by_id(read_predictions(folder))) == 30
    assert len(reached) >= 5, f"kills came at the same places: {reached}"


def wait_for(text, log, seconds=60):
    """Wait until a log says something."""
    end_s = time.monotonic() + seconds
    while text not in log.read_text(errors="replace"):
        assert time.monotonic() < end_s, log.read_text(errors="replace")
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
def test_two_processes_of_which_some_are_killed_go_on_as_one(tmp_path, videos, ranks):
    """None is left behind that writes on, and what both have decided is kept."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with forked(log, killed_ranks.run, folder, videos, ranks) as processes:
        assert processes.wait_for_each() != [0], log.read_text()
        if ranks == [0]:
            wait_for("RuntimeError: the first process of this run is gone", log)
    assert not (folder / "metrics.json").exists()
    paths = [folder / "predictions.jsonl", folder / "predictions.rank1.jsonl"]
    decided = [json.loads(line)["id"] for path in paths for line in path.read_text().splitlines()]
    assert 0 < len(set(decided)) == len(decided) < 30
    policy = ScriptedPolicy(SCRIPT)
    lines, metrics = predict(folder, policy, asked(videos))
    assert {id for id, _ in policy.asked}.isdisjoint(decided)
    want = predict(tmp_path / "whole", ScriptedPolicy(SCRIPT), asked(videos))
    assert by_id(lines) == by_id(want[0])
    assert metrics == want[1]
