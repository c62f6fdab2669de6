import json
import time
from functools import partial

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from benchmarks import common, sharding
from benchmarks.sharding import loading_row, training_rows
from benchmarks.sharding_ranks import Case, Plan, resident_peak
from tests import forked
from tests.benchmarks.conftest import TINY
from vrts.models.sharding import Sharding


def step(rollout_s, gathers=3, sampling=0):
    return {
        "all-gathers": gathers,
        "all-gathers in sampling": sampling,
        "gathered bytes": 2e6,
        "rollout s": rollout_s,
        "update s": 1.0,
        "parameter bytes": 5e6,
    }


def found(rollouts, peak, gathers=3, sampling=0):
    return {"steps": [step(s, gathers, sampling) for s in rollouts], "peak bytes": peak}


PLAN = Plan("m", (Case(8, Sharding()), Case(8)), 1, 2, 2, 56, 1, 3)


def test_rows_are_of_the_slower_and_the_larger_process_and_relative_to_the_default():
    ranks = [
        {"cases": [found([1.0, 5.0, 2.0], 4e6), found([1.0, 1.0, 1.0], 8e6)]},
        {"cases": [found([2.0, 1.0, 1.0], 3e6), found([1.0, 1.0, 1.0], 8e6)]},
    ]
    base, other = training_rows(["default", "DDP"], PLAN, ranks)
    assert base["rollout s"] == 2.0
    assert base["peak MB"] == 4.0
    assert (base["rollout ratio"], base["peak ratio"]) == (1.0, 1.0)
    assert (other["rollout ratio"], other["update ratio"], other["peak ratio"]) == (0.5, 1.0, 2.0)


def test_unequal_gathers_are_an_error():
    case = found([1.0], 1e6)
    ranks = [{"cases": [case, case]}, {"cases": [case, found([1.0], 1e6, gathers=4)]}]
    with pytest.raises(RuntimeError, match=r"DDP, L = 8: all-gathers differ: \[\[3\], \[4\]\]"):
        training_rows(["default", "DDP"], PLAN, ranks)


def test_gathers_while_sampling_are_an_error():
    ranks = [{"cases": [found([1.0], 1e6), found([1.0], 1e6, sampling=1)]}] * 2
    with pytest.raises(RuntimeError, match="DDP, L = 8: all-gathers while sampling"):
        training_rows(["default", "DDP"], PLAN, ranks)


def test_a_process_that_held_the_whole_model_is_an_error():
    fine = {"model": 10e6, "held": 5e6, "resident": 6e6}
    assert loading_row([{"load": fine}] * 2)["peak / model"] == 0.6
    with pytest.raises(RuntimeError, match="as much as the whole model while loading"):
        loading_row([{"load": fine}, {"load": fine | {"resident": 10e6}}])


def test_memory_that_is_held_for_a_moment_only_is_seen():
    def run():
        torch.ones(16 << 20)
        time.sleep(0.05)
        held = torch.ones(16 << 20)
        time.sleep(0.05)
        del held

    assert 60e6 < resident_peak(run) < 120e6


@pytest.mark.slow
def test_the_command_measures_both_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(sharding, "SMALL", TINY)
    monkeypatch.setattr(sharding, "LENGTHS", (6,))
    monkeypatch.setattr(sharding, "ROUNDS", 1)
    monkeypatch.setattr(sharding, "STEPS", 1)
    # of so small a model Python's own objects are most of what is resident
    monkeypatch.setattr(sharding, "loading_row", lambda ranks: ranks[0]["load"])
    # processes have everything imported
    begin = partial(start_processes, start_method=forked.CONTEXT.get_start_method())
    monkeypatch.setattr(sharding, "spawn", begin)
    sharding.main()
    content = json.loads((tmp_path / "sharding.json").read_text())
    rows = {row["setting"]: row for row in content["rows"]}
    assert rows.keys() == sharding.SETTINGS.keys()
    assert rows["DDP"]["all-gathers"] == 0
    assert rows["DDP"]["weights MB"] > 1.9 * rows["default"]["weights MB"]
    # decoder layers, vision blocks, and the rest
    groups = TINY.num_layers + TINY.vision_depth + 1
    assert rows["default"]["all-gathers"] <= 3 * groups
    assert rows["keep_gathered: false"]["all-gathers"] > rows["default"]["all-gathers"]
    assert content["loading"]["held"] == pytest.approx(content["loading"]["model"] / 2, rel=0.05)
