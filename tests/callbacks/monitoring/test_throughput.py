"""The throughput callback on real training runs of the tiny model, and rates by hand."""

import csv
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests.callbacks import slow_rank
from tests.callbacks.plugins import SlowDecoder, ask
from tests.callbacks.runs import (
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
)
from tests.forked import forked
from vrts.callbacks.monitoring.throughput import (
    Interval,
    ThroughputLog,
    over_ranks,
    rates,
    split_waiting,
)
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.rollouts import SampledCount, StepWork
from vrts.models.policy import Workload


def fit(folder, model_folder, train, callback, ckpt_path=None, data=None, more=(), **options):
    module = make_module(make_policy(model_folder), objective=GRPO(beta=0))
    logger = CSVLogger(folder, name="logs")
    defaults = {"max_epochs": 1, "logger": logger, "log_every_n_steps": 1}
    trainer = make_trainer(folder, [callback, *more], **(defaults | options))
    datamodule = make_data(train=train, batch_size=2, shuffle=False, **(data or {}))
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row.get("throughput/step_s")]


def numbers(row):
    return {
        name.removeprefix("throughput/"): float(value)
        for name, value in row.items()
        if name.startswith("throughput/") and value
    }


def test_every_step_is_logged_and_its_times_add_up(tmp_path, model_folder, videos):
    rows = fit(
        tmp_path, model_folder, questions(videos["long"], 6), ThroughputLog(peak_tflops=0.001)
    )
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    for row in rows:
        found = numbers(row)
        parts = ("data_s", "rollout_s", "waiting_s", "update_s")
        assert sum(found[part] for part in parts) == pytest.approx(found["step_s"], rel=1e-3)
        assert all(found[part] > 0 for part in ("data_s", "rollout_s", "update_s"))
        assert found["questions_per_s"] == pytest.approx(2 / found["step_s"], rel=1e-3)
        assert found["frames_per_s"] == pytest.approx(8 / found["step_s"], rel=1e-3)
        length = float(row["train/completion_length"])
        tokens = found["rollout_tokens_per_s"] * found["rollout_s"]
        assert tokens == pytest.approx(8 * length, rel=1e-3)
        assert found["update_tokens_per_s"] * found["update_s"] > tokens
        assert found["mfu_update"] > 0
        assert found["mfu_step"] > 0
        assert 0.05 < found["memory_gb"] < 50


def test_without_a_known_peak_there_is_no_mfu(tmp_path, model_folder, videos):
    rows = fit(tmp_path, model_folder, questions(videos["long"], 2), ThroughputLog())
    assert not any("mfu" in name for name in rows[0])


def test_a_step_without_a_usable_video_counts_no_question(tmp_path, model_folder, videos):
    train = questions(videos["damaged"], 2, "x") + questions(videos["long"], 2)
    rows = fit(tmp_path, model_folder, train, ThroughputLog())
    first, second = map(numbers, rows)
    assert first["questions_per_s"] == 0
    assert "rollout_tokens_per_s" not in first or first["rollout_tokens_per_s"] == 0
    assert second["questions_per_s"] > 0


def test_several_steps_are_added_up(tmp_path, model_folder, videos):
    rows = fit(
        tmp_path,
        model_folder,
        questions(videos["long"], 8),
        ThroughputLog(every_n_steps=2),
    )
    # Lightning gives loggers the last value again where there is no new one
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    first, again, last = map(numbers, rows)
    assert first == again
    for row in (first, last):
        assert row["questions_per_s"] * row["step_s"] == pytest.approx(4, rel=1e-3)


def test_a_resumed_run_continues(tmp_path, model_folder, videos):
    train = questions(videos["long"], 8)
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True, every_n_train_steps=1)
    fit(tmp_path, model_folder, train, ThroughputLog(), more=[keep], max_steps=2)
    rows = fit(
        tmp_path, model_folder, train, ThroughputLog(), ckpt_path=str(tmp_path / "kept/last.ckpt")
    )
    assert [int(row["step"]) for row in rows] == [2, 3]
    assert all(0 < numbers(row)["data_share"] < 1 for row in rows)


def test_waiting_for_a_slow_decoder_is_its_share_of_the_time(tmp_path, model_folder, videos):
    copies = [shutil.copy(videos["long"], tmp_path / f"{i}.mp4") for i in range(12)]
    train = [ask(f"q{i}", str(path)) for i, path in enumerate(copies)]  # one video comes once
    rows = fit(tmp_path, model_folder, train, ThroughputLog(), data={"decoder": SlowDecoder()})
    # the last batch was decoded with the one before it
    assert all(numbers(row)["data_share"] > 0.2 for row in rows[:-1])


@pytest.mark.slow
def test_of_two_processes_the_slow_one_shows(tmp_path, model_folder, videos):
    """In the rollout of its rank, and in how long the other one waits."""
    args = (tmp_path, model_folder, videos["long"], 2.0)
    with forked(tmp_path / "log", slow_rank.run, *args, ranks=2) as processes:
        processes.succeed()
    fast, slow = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for found in (fast, slow):  # the same on both: logged is what all ranks have told
        assert found["throughput/rollout_s/rank1"] > found["throughput/rollout_s/rank0"] + 1
        assert found["throughput/waiting_s/rank0"] > 1
        assert found["throughput/waiting_s/rank1"] < found["throughput/waiting_s/rank0"]


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16-mixed", 989),
        ("NVIDIA H100 NVL", "bf16-true", 835),
        ("NVIDIA L40S", "bf16-mixed", 362),
        ("NVIDIA L4", "16-mixed", 121),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", 165.2),
        ("A100-SXM4-40GB", "bf16-mixed", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16-mixed", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", None),
        ("NVIDIA H200", "32-true", None),
        ("Tesla T4", "16-mixed", None),
    ],
)
def test_the_peak_of_a_card_is_that_of_its_data_sheet_or_asked_for(
    monkeypatch, caplog, name, precision, tflops
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    trainer = SimpleNamespace(strategy=strategy, precision=precision)
    with caplog.at_level(logging.INFO):
        found = ThroughputLog()._peak(trainer)
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))
    said = f"the peak of {name} in {precision} is not known; give its peak_tflops"
    assert (said in caplog.text) == (tflops is None)
    assert ThroughputLog(peak_tflops=5.0)._peak(trainer) == 5e12


WORKLOAD = Workload(
    num_prompt_tokens=300,
    num_completion_tokens=100,
    vision_flops=10.0,
    forward_flops=100.0,
    backward_flops=200.0,
    trains_vision=False,
)
STEP = StepWork(
    rollout_s=2.0,
    num_questions=2,
    num_frames=64,
    sampled=SampledCount(num_tokens=400, flops=110.0),
    update=[WORKLOAD],
    reference=[WORKLOAD],
)


def interval(*steps: StepWork) -> Interval:
    found = Interval()
    for work in steps:
        found.add(work, data_s=1.0, batch_s=4.0)
    return found


def test_rates_of_two_steps_by_hand():
    found = rates(replace(interval(STEP, STEP), memory_gb=3.0, reserved_gb=4.0), 1000.0)
    assert found == pytest.approx(
        {
            "step_s": 10.0,
            "data_s": 2.0,
            "rollout_s": 4.0,
            "waiting_s": 0.0,
            "update_s": 4.0,  # 4 - 2, twice
            "data_share": 0.2,
            "rollout_share": 0.4,
            "rollout_tokens_per_s": 800 / 4,
            "update_tokens_per_s": 800 / 4,
            "frames_per_s": 12.8,
            "questions_per_s": 0.4,
            "memory_gb": 3.0,
            "reserved_gb": 4.0,
            # reference 100, forward 100, backward 200
            "mfu_update": 2 * 400 / 4.0 / 1000.0,
            "mfu_step": 2 * 510 / 10.0 / 1000.0,
        }
    )


def test_every_micro_batch_of_every_update_counts():
    work = replace(STEP, update=[WORKLOAD, WORKLOAD, WORKLOAD])
    found = interval(work)
    assert (found.rollout_s, found.update_s) == (2.0, 2.0)
    assert found.update_flops == 3 * 300 + 100
    assert found.completion_tokens == 400
    assert found.update_tokens == 3 * 400


def test_the_trained_vision_tower_is_counted_in_every_pass():
    work = replace(WORKLOAD, trains_vision=True)
    assert (work.rollout_flops, work.scoring_flops, work.update_flops) == (110, 110, 310)


def test_without_a_peak_there_is_no_mfu_and_without_work_no_rate():
    assert not any(name.startswith("mfu") for name in rates(interval(STEP), None))
    found = rates(interval(StepWork()), 1000.0)
    assert "mfu_update" not in found
    assert "update_tokens_per_s" not in found
    assert math.isnan(found["rollout_tokens_per_s"])
    assert found["questions_per_s"] == 0.0


def test_ranks_are_named_next_to_their_mean_and_the_worst():
    ranks = [
        {"step_s": 1.0, "frames_per_s": 5.0, "rollout_tokens_per_s": math.nan},
        {"step_s": 3.0, "frames_per_s": 7.0, "rollout_tokens_per_s": 8.0},
    ]
    assert over_ranks(ranks) == {
        "step_s": 2.0,
        "step_s/max": 3.0,
        "step_s/rank0": 1.0,
        "step_s/rank1": 3.0,
        "frames_per_s": 6.0,
        "frames_per_s/min": 5.0,
        "frames_per_s/rank0": 5.0,
        "frames_per_s/rank1": 7.0,
        "rollout_tokens_per_s": 8.0,
        "rollout_tokens_per_s/min": 8.0,
        "rollout_tokens_per_s/rank1": 8.0,
    }
    assert "step_s/rank8" in over_ranks(ranks * 8)
    assert "step_s/rank0" not in over_ranks(ranks * 9)
    assert over_ranks(ranks[:1]) == {"step_s": 1.0, "frames_per_s": 5.0}


def test_waiting_for_the_slowest_is_not_updating():
    fast = Interval(step_s=10, data_s=1, rollout_s=2, update_s=7)
    slow = Interval(step_s=10, data_s=1, rollout_s=4, update_s=5)
    first, second = split_waiting([fast, slow])
    assert (first.waiting_s, first.update_s) == (2, 5)
    assert (second.waiting_s, second.update_s) == (0, 5)
    assert split_waiting([fast]) == [fast]
