"""The demo's numbers and table."""

import io

from rich.console import Console

from vrts.demo.__main__ import comparison_table, predict_report

METRICS = {
    "accuracy": 0.5,
    "accuracy_stderr": 0.025,
    "mean_frames": 9.55,
    "mean_frames_total": 15.1,
    "unanimous_and_wrong": 0.1,
    "num_questions": 400,
}


def test_a_report_has_the_keys_that_the_summary_promises():
    assert predict_report(METRICS, 12.345) == {
        "accuracy": 0.5,
        "stderr": 0.025,
        "mean_frames": 9.55,
        "mean_frames_total": 15.1,
        "seconds": 12.3,
        "unanimous_and_wrong": 0.1,
    }


def test_the_table_shows_every_run_on_80_columns():
    runs = {mode: predict_report(METRICS, 12.3) for mode in ("sparse", "dense", "s2d")}
    rl = {mode: run | {"accuracy": 0.75} for mode, run in runs.items()}
    summary = {
        "base": runs,
        "rl": rl,
        "fit": {"steps": 150, "seconds": 112.4},
        "num_questions": 400,
    }
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table(summary))
    text = out.getvalue()
    assert "400 held-out questions; 150 GRPO steps in 112 s" in text
    assert text.count("50.0 ± 2.5") == text.count("75.0 ± 2.5") == 3
    assert "…" not in text
