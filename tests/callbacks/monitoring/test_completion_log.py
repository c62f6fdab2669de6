"""completions.jsonl: which rollouts are kept, and what a line contains."""

import json

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from tests.callbacks.plugins import TextReward
from tests.callbacks.runs import (
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
)
from vrts.callbacks.monitoring.completion_log import CompletionLog, completion_table
from vrts.models.grpo.objectives import GRPO
from vrts.models.rewards import AccuracyReward, FormatReward
from vrts.types import InputError

G = 4


def fit(folder, model_folder, train, callbacks, updates=1, ckpt_path=None, **options):
    module = make_module(
        make_policy(model_folder),
        objective=GRPO(beta=0),
        rewards=[TextReward(), AccuracyReward(), FormatReward(weight=0.5)],
        updates_per_rollout=updates,
    )
    trainer = make_trainer(folder, callbacks, **({"max_epochs": 1} | options))
    data = make_data(train=train, batch_size=2, shuffle=False)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def read(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def steps_and_ids(lines):
    """Step and questions of each rollout that was kept."""
    groups = {}
    for line in lines:
        groups.setdefault(line["step"], []).append(line["id"])
    return {step: ids[::G] for step, ids in groups.items()}


def test_a_line_has_question_completion_and_rewards(tmp_path, model_folder, videos):
    asked = questions(videos["long"], 2)
    module = fit(tmp_path, model_folder, asked, [CompletionLog(str(tmp_path / "out"), 1, 0)])
    lines = read(tmp_path / "out")
    rows = [(group, n) for group in module.last_rollout for n in range(G)]
    assert len(lines) == len(rows) == 2 * G
    for i, (line, (group, n)) in enumerate(zip(lines, rows, strict=True)):
        question, text = asked[i // G], group.completions[n].text
        assert line == {
            "step": 1,
            "id": question.id,
            "question": question.text,
            "gold": question.gold,
            "completion": text,
            "rewards": {
                "text": pytest.approx(sum(map(ord, text)) % 7 / 6),
                "accuracy": float(group.rewards["accuracy"][n]),
                "format": 0.0,
            },
            "advantage": pytest.approx(float(group.advantages[n])),
        }
    assert len({line["completion"] for line in lines}) > 1
    assert any(line["advantage"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("every", "options", "kept"),
    [
        (1, {}, {1: 0, 2: 2, 3: 4, 4: 6}),
        (2, {}, {1: 0, 3: 4}),
        (10, {}, {1: 0}),
        (2, {"updates": 2}, {1: 0, 3: 4}),
    ],
)
def test_rollouts_are_kept_every_n_steps(tmp_path, model_folder, videos, every, options, kept):
    train = questions(videos["long"], 8)
    fit(tmp_path, model_folder, train, [CompletionLog(str(tmp_path), every, 0)], **options)
    expected = {step: [f"q{first}", f"q{first + 1}"] for step, first in kept.items()}
    assert steps_and_ids(read(tmp_path)) == expected


def test_a_step_without_a_usable_video_keeps_no_older_rollout(tmp_path, model_folder, videos):
    train = questions(videos["long"], 2) + questions(videos["damaged"], 2, "x")
    fit(tmp_path, model_folder, train, [CompletionLog(str(tmp_path), 1, 0)])
    assert steps_and_ids(read(tmp_path)) == {1: ["q0", "q1"]}


def test_a_skipped_question_is_named_without_control_characters(
    tmp_path, model_folder, videos, caplog
):
    train = questions(videos["long"], 1) + questions(videos["damaged"], 1, "\x1b[2J")
    fit(tmp_path, model_folder, train, [])
    assert r"skipped question \x1b[2J0: " in caplog.text
    assert "\x1b" not in caplog.text


def test_a_later_run_that_starts_over_replaces_them(tmp_path, model_folder, videos):
    train = questions(videos["long"], 2)
    for _ in range(2):
        fit(tmp_path, model_folder, train, [CompletionLog(None, 1, 0)])
    assert len(read(tmp_path)) == 2 * G, "the Trainer's folder where none is given"


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_run_killed_after_its_checkpoint_resumes_without_repeated_or_torn_lines(
    tmp_path, model_folder, videos, every
):
    train = questions(videos["long"], 12)
    full, cut = tmp_path / "full", tmp_path / "cut"
    fit(full, model_folder, train, [CompletionLog(str(full), every, 0)])
    keep = ModelCheckpoint(cut, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(cut, model_folder, train, [CompletionLog(str(cut), every, 0), keep])
    path = cut / "completions.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    for step in (2, 5, 4):
        fit(
            cut, model_folder, train, [CompletionLog(str(cut), every, 0)],
            ckpt_path=str(cut / f"step={step}.ckpt"),
        )  # fmt: skip
        assert read(cut) == read(full)


def test_a_file_that_is_not_of_a_run_is_refused(tmp_path, model_folder, videos):
    (tmp_path / "completions.jsonl").write_text('{"step": 1}\n[]\n')
    with pytest.raises(InputError, match=r"completions\.jsonl:2: not a line that vrts fit wrote"):
        fit(tmp_path, model_folder, questions(videos["long"], 2), [CompletionLog(str(tmp_path))])


def test_completions_are_shown(tmp_path, model_folder, videos, capsys):
    train = questions(videos["long"], 4)
    fit(tmp_path, model_folder, train, [CompletionLog(str(tmp_path), 10, 2)])
    out = capsys.readouterr().out
    assert "step 1: What colour very very q0? (right: A)" in out
    assert out.count("accuracy") == 2
    assert "step 2" not in out


def test_completions_and_questions_are_no_markup():
    bad = "[red]x[/nonsense]\x1b[2J"
    line = {"step": 1, "question": bad, "gold": "A", "completion": bad, "advantage": 0.0}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(completion_table([line | {"rewards": {"format": 1.0}}]))
    shown = capture.get()
    assert shown.count("[red]x[/nonsense]\\x1b[2J") == 2
    assert "\x1b" not in shown


def test_an_unusable_folder_is_named_before_training(tmp_path, model_folder, videos):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"CompletionLog\.output_dir: cannot use .*file/out"):
        fit(
            tmp_path, model_folder, questions(videos["long"], 2),
            [CompletionLog(str(tmp_path / "file/out"))],
        )  # fmt: skip
