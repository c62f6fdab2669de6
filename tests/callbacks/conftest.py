from pathlib import Path

import pytest

from tests.callbacks.runs import build_model, make_videos


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video) -> dict[str, str]:
    return make_videos(tmp_path_factory.mktemp("videos"), make_video)
