"""Two gloo processes leave the report and the curves of one."""

import json

import pytest

from tests.callbacks.report.test_callback import embedded
from tests.callbacks.report.two_processes import run
from tests.forked import forked


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path, model_folder, videos):
    """One test, so that the processes are started once."""
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, model_folder, videos, devices=1)
    with forked(tmp_path / "log", run, two, model_folder, videos, 2, ranks=2) as processes:
        processes.succeed()
    for name in ("entries", "thumbnails"):
        assert embedded(two / "predicted", name) == embedded(one / "predicted", name)
    assert len(embedded(two / "predicted", "thumbnails")) == 5
    names = [sorted(p.name for p in (f / "predicted/thumbnails").iterdir()) for f in (one, two)]
    assert names[0] == names[1]
    want, got = (json.loads((folder / "points.json").read_text()) for folder in (one, two))
    assert [point["step"] for point in got] == [point["step"] for point in want] == [1, 2, 2]
    for name in ("train/loss", "train/reward/total", "val/accuracy", "lr"):
        values = [[p[name] for p in points if name in p] for points in (want, got)]
        assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-6)
        assert values[0]
    assert (two / "curves.png").is_file()
