"""What runs of several processes start from, and the run of one that they are compared with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks.test_two_processes import fit
from tools.tiny.model import build_model_folder
from vrts.demo.videos import make_dataset


@pytest.fixture(scope="session")
def inputs(made_once: Callable[..., Path]) -> tuple[Path, Path]:
    """A model, and questions about six videos."""

    def make(root: Path) -> None:
        build_model_folder(root / "model", seed=0)
        annotations = make_dataset(root / "data", num_videos=6, seed=5)
        (root / "annotations").symlink_to(annotations)

    root = made_once("ranks_inputs", make)
    return root / "model", (root / "annotations").resolve()


@pytest.fixture(scope="session")
def alone(made_once: Callable[..., Path], inputs: tuple[Path, Path]) -> Path:
    """The folder of three steps by one process, which trains all weights."""
    return made_once("ranks_alone", lambda root: fit(*inputs, root, 1))
