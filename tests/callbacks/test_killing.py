"""SIGKILL at every moment of a prediction run, which is resumed each time."""

import json
import time

import pytest

from tests.callbacks import killed_ranks
from tests.callbacks.killed_ranks import asked
from tests.callbacks.plugins import ScriptedPolicy
from tests.callbacks.prediction.test_writer import SCRIPT, nine
from tests.callbacks.runs import by_id, predict
from tests.crashes import copied_at_changes
from tests.forked import forked


def files(folder):
    names = ("predictions.jsonl", "metrics.json", "settings.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_a_run_that_was_killed_anywhere_comes_to_the_same(tmp_path, videos):
    """Also where it is killed a second time, and where the end of a file is lost."""

    def run(folder):
        predict(folder, ScriptedPolicy(SCRIPT), nine(videos), data={"eval_batch_size": 2})
        return files(folder)

    whole = tmp_path / "whole"
    with copied_at_changes(whole, tmp_path / "killed") as once:
        want = run(whole)
    assert want["predictions.jsonl"].count(b"\n") == 9
    decided = {(folder / "predictions.jsonl") for folder in once}
    assert {path.read_bytes().count(b"\n") for path in decided if path.exists()} == set(range(10))
    for folder in once[:-1]:
        assert run(folder) == want, folder.name
    middle = tmp_path / "killed" / str(len(once) // 2)
    (middle / "predictions.jsonl").write_bytes(want["predictions.jsonl"][:1000])
    with copied_at_changes(middle, tmp_path / "killed_again") as twice:
        assert run(middle) == want
    assert len(twice) > 5
    for folder in twice:
        assert run(folder) == want, folder.name


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
            wait_for("RuntimeError: the first process of this run has exited", log)
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
