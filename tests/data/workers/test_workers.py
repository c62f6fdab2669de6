import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.data.plugins import BrokenDecoder, FakeDecoder, NaughtyDecoder
from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import UniformSampler
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool, WorkerStartError
from vrts.types import InputError, Question


def pool(decoder=None, **kwargs):
    return DecodePool(decoder or NaughtyDecoder(), UniformSampler(), Resolution(), **kwargs)


def question(name):
    return Question(name, "?", f"{name}.mp4")


def children():
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return [
        line
        for line in listed.stdout.splitlines()
        if "vrts.data.workers.worker" in line or " Z" in line
    ]


@pytest.fixture
def no_traces():
    threads = threading.active_count()
    yield
    assert children() == []
    assert threading.active_count() == threads


def test_bad_videos_fail_by_name_and_the_rest_goes_on(no_traces):
    decoding = pool(num_workers=1, deadline_s=1.5)
    names = ["good", "bad", "die", "raise", "spin", "good2"]
    decoding.submit(question("warm up"), 2).result()
    began = time.monotonic()
    futures = [decoding.submit(question(name), 4) for name in names]
    samples = [future.result(timeout=300) for future in futures]
    assert time.monotonic() - began < 100
    errors = {sample.question.id: sample.error for sample in samples}
    assert errors == {
        "good": None,
        "bad": "bad.mp4: has no frame",
        "die": "die.mp4: two decode workers died of it, the last with status -9",
        "raise": "raise.mp4: TypeError: odd bytes",
        "spin": "spin.mp4: no frame within 1.5 s",
        "good2": None,
    }
    expected = NaughtyDecoder().decode("good.mp4", 4, UniformSampler(), Resolution())
    assert torch.equal(samples[0].clip.frames, expected.frames)
    assert samples[0].clip.frame_indices == expected.frame_indices
    assert (samples[0].clip.fps, samples[0].clip.num_source_frames) == (10.0, 100)
    decoding.close()
    decoding.close()
    with pytest.raises(RuntimeError, match="closed"):
        decoding.submit(question("good"), 2)


def test_a_worker_that_is_killed_from_outside_is_replaced(no_traces, tmp_path):
    """As where the machine is out of memory: the video is decoded by the next one."""
    decoding = pool(num_workers=1)
    asked = [
        Question(f"q{i}", "?", str(tmp_path / f"{n}.mp4")) for i, n in enumerate(("once", "b"))
    ]
    samples = [decoding.submit(each, 4).result(timeout=300) for each in asked]
    assert [sample.error for sample in samples] == [None, None]
    assert (tmp_path / "once.mp4").exists(), "one was killed"
    decoding.close()


def test_closing_ends_a_hanging_worker_and_cancels_the_rest(no_traces):
    decoding = pool(num_workers=1, deadline_s=600)
    decoding.submit(question("good"), 2).result()
    hanging, waiting = [decoding.submit(question(name), 2) for name in ("spin", "good2")]
    time.sleep(0.3)
    began = time.monotonic()
    decoding.close()
    assert time.monotonic() - began < 10
    with pytest.raises(RuntimeError, match="closed meanwhile"):
        hanging.result(timeout=1)
    assert waiting.cancelled()


def test_without_workers_decoding_is_in_the_calling_thread(no_traces):
    decoding = pool(num_workers=0)
    assert decoding.submit(question("good"), 2).result(timeout=0).clip.num_frames == 2
    assert decoding.submit(question("bad"), 2).result(timeout=0).error == "bad.mp4: has no frame"
    assert decoding.submit(question("raise"), 2).result(timeout=0).clip is None
    decoding.close()


def test_a_worker_that_cannot_start_is_no_fault_of_the_video(no_traces, capfd):
    decoding = pool(BrokenDecoder(), num_workers=1)
    with pytest.raises(WorkerStartError, match="ended with status 1 at its start"):
        decoding.submit(question("good"), 2).result(timeout=300)
    decoding.close()
    assert "no-such-codec" in capfd.readouterr().err


def test_a_plug_in_of_the_main_script_is_refused(monkeypatch):
    class Local(FakeDecoder):
        pass

    monkeypatch.setattr(Local, "__module__", "__main__")
    with pytest.raises(InputError, match="Local is defined in the main script"):
        pool(Local(), num_workers=1)
    pool(Local(), num_workers=0).close()


PARENT = """
import sys, time
from vrts.data.video.resolution import Resolution
from vrts.data.video.frames import UniformSampler
from vrts.data.workers.pool import DecodePool
from vrts.types import Question
from tests.data.plugins import NaughtyDecoder
assert __name__ == "__main__", "a worker must not run the main module again"
pool = DecodePool(NaughtyDecoder(), UniformSampler(), Resolution(), num_workers=1)
pool.submit(Question("a", "?", "good.mp4"), 2).result()
pool.submit(Question("b", "?", "spin.mp4"), 2)
time.sleep(0.3)
print(*[process.process.pid for process in pool._processes], flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children follow their parent on Linux")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_workers_end_with_their_parent(tmp_path, how):
    """Also a worker that spins in C and would never see that the connection is gone."""
    script = tmp_path / "main.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        start_new_session=True,
    )
    child = int(parent.stdout.readline())
    os.killpg(parent.pid, how)
    _, errors = parent.communicate(timeout=600)
    assert errors.count("Traceback") == (how == signal.SIGINT)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_decoders_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Decoder()
