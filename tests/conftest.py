"""What all tests share.

pytest-xdist's own process, which runs no test, imports this file before it starts workers: what
takes long to import (torch) is imported where it is used.
"""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from filelock import FileLock

SHARED = Path(__file__).parents[1] / "../shared"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLOW = (
    "benchmarks", "callbacks", "cli", "ranks", "tools", "data/test_any_row.py",
    "data/test_found.py", "models/checkpoints", "models/families/test_exactness.py",
    "models/served/test_command.py", "models/test_exactness.py", "models/test_module.py",
    "test_prefetch.py", "test_readme.py",
)  # fmt: skip
"""Tests of whole runs: each is slow, unless it is marked as fast."""
PARSERS = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
"""What `LightningCLI.setup_parser` makes."""
LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is in folders of slow tests."""
    slow = [Path(__file__).parent / name for name in SLOW]
    for item in items:
        if "fast" not in item.keywords and {item.path, *item.path.parents}.intersection(slow):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Keep what was imported out of garbage collections, which took a twelfth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def parsers_are_made_once() -> Generator[None]:
    """Make the parser of a subcommand once: what it is made from is the same in every test."""
    command = sys.modules.get("vrts.cli.command")
    if command is None:
        yield
        return
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    setup = command.VrtsCLI.setup_parser

    def setup_once(cli: Any, *args: Any) -> None:
        key = tuple(cli.subcommands())
        if key not in made:
            setup(cli, *args)
            made[key] = {name: getattr(cli, name) for name in PARSERS}
        vars(cli).update(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.VrtsCLI, "setup_parser", setup_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def configurations_are_not_written_out() -> Generator[None]:
    """Spare the text that transformers makes of a configuration for a log that nobody reads.

    It does so thirty times for each model that is loaded.
    """
    with pytest.MonkeyPatch.context() as patch:
        if module := sys.modules.get("transformers.configuration_utils"):
            patch.setattr(module.PreTrainedConfig, "__repr__", object.__repr__)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Leave the group of processes, and forget where Lightning said that this one stands.

    A run of one process under ``ddp`` or ``fsdp`` leaves both: later runs would meet in the group,
    and processes that they start take themselves for ranks whose peers somebody else starts.
    """
    result = yield
    if (group := sys.modules.get("torch.distributed")) and group.is_initialized():
        group.destroy_process_group()
    for name in LAUNCHED:
        os.environ.pop(name, None)
    return result


@pytest.fixture(autouse=True)
def _signals():
    """Give signals back: Lightning ignores SIGINT for good once a run was interrupted by it."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def disks_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave files in the system's cache; a training run of two steps waits for a disk 24 times.

    Processes that tests start do wait.
    """
    monkeypatch.setattr(
        os, "fsync", lambda file: os.fstat(file if isinstance(file, int) else file.fileno())
    )


@pytest.fixture(autouse=True)
def curves_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave curves.png empty: drawing it takes as long as a training run of two steps.

    Tests of the drawing have a fixture of this name that lets it be.
    """
    if curves := sys.modules.get("vrts.callbacks.monitoring.curves"):
        monkeypatch.setattr(curves, "write_curves", lambda path, points: path.touch())


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder that the workers of pytest-xdist share: ``made_once(name, make)``."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def find(name: str, make: Callable[[Path], object]) -> Path:
        folder, whole = root / name, root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failed attempt has left
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return find


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's architecture with random weights."""
    from tools.tiny.model import build_model_folder

    folder = tmp_path_factory.mktemp("cli") / "model"
    build_model_folder(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about four videos, as Video-R1 writes them."""
    from vrts.demo.questions import FLASH, OBJECT
    from vrts.demo.videos import make_dataset

    folder = tmp_path_factory.mktemp("cli-data")
    return make_dataset(folder, num_videos=4, seed=5, kinds=(OBJECT, FLASH))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files beside the repository, or a skip that names it."""
    folder = SHARED.resolve()
    for name in ("videos", "annotations"):
        if not (folder / name).is_dir():
            pytest.skip(f"{folder / name} is missing: real files are not here")
    return folder


@pytest.fixture(scope="session")
def make_video() -> Callable[..., str]:
    """Write a small video whose frame i is grey of level 8 + 240 * i / (num_frames - 1)."""

    def make(
        path: Path,
        num_frames: int = 16,
        fps: int = 8,
        size: tuple[int, int] = (64, 48),
        codec: str = "libx264",
        frames: np.ndarray | None = None,
        gop: int = 8,
        options: dict[str, str] | None = None,
    ) -> str:
        width, height = size
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.gop_size = gop
            for i in range(num_frames):
                level = 8 + 240 * i // max(num_frames - 1, 1)
                image = (
                    np.full((height, width, 3), level, np.uint8) if frames is None else frames[i]
                )
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return str(path)

    return make
