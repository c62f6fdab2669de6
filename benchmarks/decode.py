"""Decoding: 32 frames of a 60 s clip of 720p, against qwen_vl_utils with decord.

``python -m benchmarks.decode`` makes the clip and decodes it in child processes, one after the
other in turn, by `vrts` (the default decoder and decord, in the same code that a decode worker
runs, one thread) and by ``qwen_vl_utils.fetch_video`` (decord's own threads). It prints medians:
seconds of a decode after the imports, by the clock and of all cores together, and peak memory, of
the whole process and beyond what its imports took. Another clip and number of rounds can be given:
``python -m benchmarks.decode clip.mp4 3``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.common import report

FPS, SECONDS, WIDTH, HEIGHT = 30, 60, 1280, 720
NUM_FRAMES = 32
MIN_PIXELS, MAX_PIXELS = 128 * 784, 256 * 784
REPEATS = 5

MEASURE = """
import json, time
from pathlib import Path
def peak_mib():
    # of this program: getrusage would count the parent that it was forked from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
{imports}
imported_mib, start_s, start_cpu_s = peak_mib(), time.perf_counter(), time.process_time()
frames = {call}
seconds, cpu_seconds = time.perf_counter() - start_s, time.process_time() - start_cpu_s
assert len(frames) == {num_frames}, frames.shape
print(json.dumps([seconds, cpu_seconds, peak_mib(), imported_mib, list(frames.shape[-2:])]))
"""
OURS = (
    """
import sys
import torch
from vrts.data.video.decord import DecordDecoder
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.workers.requests import Request
from vrts.data.video.resolution import Resolution
from vrts.data.video.frames import UniformSampler
from vrts.data.workers.worker import try_decode
import decord
torch.set_num_threads(1)
decoder = {decoder}
resolution = Resolution(min_pixels={min_pixels}, max_pixels={max_pixels})
""",
    "try_decode(decoder, UniformSampler(), resolution, Request({path!r}, {num_frames})).frames",
)
QWEN = (
    """
import decord
from qwen_vl_utils.vision_process import fetch_video
""",
    "fetch_video(dict(video={path!r}, nframes={num_frames}, min_pixels={min_pixels}, "
    "max_pixels={max_pixels}))",
)


def make_clip(path: Path) -> None:
    """Write a moving pattern, encoded as sites that host videos do: H.264, closed GOPs of 250.

    Args:
        path: of the file.
    """
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    pattern = pattern.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 250
        for i in range(FPS * SECONDS):
            image = np.roll(pattern, (2 * i, 3 * i), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def measure(script: tuple[str, str], values: dict[str, Any]) -> list[Any]:
    """Decode once in a process of its own.

    Args:
        script: imports and call.
        values: to fill in.

    Returns:
        Seconds, seconds of all cores, peak memory in MiB, that after the imports, and the size.
    """
    imports, call = (text.format(**values) for text in script)
    child = subprocess.run(
        [sys.executable, "-c", MEASURE.format(imports=imports, call=call, **values)],
        env=os.environ | {"FORCE_QWENVL_VIDEO_READER": "decord", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure in turn and write ``results/decode.json``."""
    given, repeats = (sys.argv[1:] + [None, None][len(sys.argv) - 1 :])[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(given or Path(folder) / "clip.mp4")
        if given is None:
            make_clip(path)
        values = {
            "path": str(path),
            "num_frames": NUM_FRAMES,
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
        }
        cases = {
            "vrts": (OURS, values | {"decoder": "PyAVDecoder()"}),
            "vrts, DecordDecoder": (OURS, values | {"decoder": "DecordDecoder()"}),
            "qwen_vl_utils": (QWEN, values),
        }
        found: dict[str, list[list[Any]]] = {name: [] for name in cases}
        for _ in range(int(repeats or REPEATS)):
            for name, (script, filled) in cases.items():
                found[name].append(measure(script, filled))
    rows = []
    for name, runs in found.items():
        seconds, cpu_seconds, peak, imported, _ = zip(*runs, strict=True)
        rows.append(
            {
                "decoder": name,
                "s": statistics.median(seconds),
                "CPU s": statistics.median(cpu_seconds),
                "peak MiB": statistics.median(peak),
                "peak beyond imports MiB": statistics.median(
                    a - b for a, b in zip(peak, imported, strict=True)
                ),
                "size": runs[0][4],
            }
        )
    theirs = rows[-1]
    for row in rows:
        for key in ("s", "CPU s", "peak MiB", "peak beyond imports MiB"):
            row[f"ratio {key}"] = row[key] / theirs[key]
    report(
        "decode",
        rows,
        video=f"{WIDTH}x{HEIGHT}, {FPS * SECONDS} frames, H.264",
        num_frames=NUM_FRAMES,
        max_pixels=MAX_PIXELS,
        repeats=int(repeats or REPEATS),
        **{name: version(name) for name in ("qwen-vl-utils", "decord", "av")},
    )


if __name__ == "__main__":
    main()
