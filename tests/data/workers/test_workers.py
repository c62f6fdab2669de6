import os
import pty
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.data.plugins import BrokenDecoder, FakeDecoder, NaughtyDecoder
from tests.forked import forked
from tests.processes import assert_is_ending, decode_workers, is_running
from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import UniformSampler
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool, WorkerStartError
from vrts.data.workers.server import own_server
from vrts.types import InputError, Question

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def pool(decoder=None, **kwargs):
    return DecodePool(decoder or NaughtyDecoder(), UniformSampler(), Resolution(), **kwargs)


def question(name):
    return Question(name, "?", f"{name}.mp4")


def worker():
    """Process id of the only worker."""
    (pid,) = decode_workers()
    return pid


@pytest.fixture
def no_traces():
    threads = threading.active_count()
    yield
    assert decode_workers() == []
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
        "die": "die.mp4: it crashed two decode workers, the last with status -9",
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


@on_linux
def test_a_worker_begins_at_once_and_shares_what_it_imports(no_traces):
    """Also in the place of one that was killed."""
    decoding = pool(num_workers=1)
    pids = []
    for name in ("a", "b"):
        assert decoding.submit(question(name), 2).result(timeout=300).error is None
        pids.append(worker())
        ticks = Path(f"/proc/{pids[-1]}/stat").read_text().rpartition(")")[2].split()[11:13]
        cpu_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        assert cpu_s < 0.5, "importing torch takes 2 s and more"
        memory = Path(f"/proc/{pids[-1]}/smaps_rollup").read_text().splitlines()[1:]
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in memory}
        own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        assert own < 60_000 < kilobytes["Rss"]
        os.kill(pids[-1], signal.SIGKILL)
    assert pids[0] != pids[1]
    decoding.close()


@pytest.mark.slow
@on_linux
def test_a_server_that_is_killed_is_replaced_and_no_video_is_lost(no_traces):
    decoding = pool(num_workers=1)
    assert decoding.submit(question("a"), 2).result(timeout=300).error is None
    first, server = worker(), own_server().process
    assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1, "threads do not survive fork"
    server.kill()
    server.wait()
    assert_is_ending(first)
    assert decoding.submit(question("b"), 2).result(timeout=300).error is None
    assert own_server().process.pid != server.pid
    decoding.close()


def test_a_worker_has_the_paths_the_folder_and_the_environment_of_its_parent(
    no_traces, tmp_path, monkeypatch, capfd
):
    """As they are when it starts, and not when the server did."""
    own_server()
    (tmp_path / "own_decoder.py").write_text(
        "import os\n"
        "from tests.data.plugins import FakeDecoder\n"
        "class OwnDecoder(FakeDecoder):\n"
        "    def decode(self, path, *args):\n"
        "        print('decodes', open('name').read(), os.environ['OWN_NAME'], flush=True)\n"
        "        return super().decode(path, *args)\n"
    )
    (tmp_path / "name").write_text("first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OWN_NAME", "second")
    monkeypatch.syspath_prepend(tmp_path)
    import own_decoder

    decoding = pool(own_decoder.OwnDecoder(), num_workers=1)
    assert decoding.submit(question("a"), 2).result(timeout=300).error is None
    decoding.close()
    assert "decodes first second" in capfd.readouterr().out


def decode_until_killed():
    """Has a worker that spins in C, and a child that holds what this process has open."""
    decoding = pool(num_workers=1)
    decoding.submit(question("a"), 2).result()
    decoding.submit(question("spin"), 2)
    time.sleep(0.3)
    bystander = os.fork() or time.sleep(600)
    sys.stdout.write(f"processes {own_server().process.pid} {worker()} {bystander}\n")
    sys.stdout.flush()
    time.sleep(600)


@pytest.mark.slow
@on_linux
def test_nothing_is_left_of_a_parent_that_was_killed(tmp_path):
    """Neither the server nor a worker that would never see that its connection is gone."""
    log = tmp_path / "log"
    with forked(log, decode_until_killed) as parent:
        while "processes" not in log.read_text():
            assert parent.running(), log.read_text()
            time.sleep(0.05)
        server, spinning, bystander = map(int, log.read_text().split()[1:])
        assert is_running(server)
        assert is_running(spinning)
        os.kill(parent.pids[0], signal.SIGKILL)
        assert_is_ending(server, spinning)
        assert is_running(bystander)
        os.kill(bystander, signal.SIGKILL)
    assert "Traceback" not in log.read_text()


SCRIPT = """
import time
from tests.data.plugins import NaughtyDecoder
from vrts.data.video.frames import UniformSampler
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.data.workers.server import own_server
from vrts.types import Question

assert __name__ == "__main__", "a worker must not run the main module again"
decoding = DecodePool(NaughtyDecoder(), UniformSampler(), Resolution(), num_workers=1)
decoding.submit(Question("a", "?", "a.mp4"), 2).result()
(first,) = decoding._processes
try:
    print("decoded one", flush=True)
    while True:
        time.sleep(0.05)  # a signal just before it would not end a long sleep
except KeyboardInterrupt:
    assert decoding.submit(Question("b", "?", "b.mp4"), 2).result().error is None
    assert decoding._processes == {first}
    print("decoded two", own_server().process.pid, first.pid, flush=True)
"""


@on_linux
@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_program_alone(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    pid, terminal = pty.fork()
    if not pid:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[3])
        os.execv(sys.executable, [sys.executable, str(script)])
    said = ""
    try:
        while "decoded one" not in said:
            said += os.read(terminal, 4096).decode()
        os.write(terminal, b"\x03")
        while True:
            said += os.read(terminal, 4096).decode()
    except OSError:  # what a terminal answers once its program has ended
        os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, said
    assert "Traceback" not in said
    assert_is_ending(*map(int, said.partition("decoded two")[2].split()))


def test_decoders_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Decoder()
