"""A real server: `transformers serve` with the embedded model, on the CPU."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from transformers.utils.import_utils import is_serve_available

from vrts.cli.command import main

ROOT = Path(__file__).parents[3]
TINY = ROOT / "assets/tiny"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_serve_available(),
        reason="pip install 'transformers[serving]' for transformers serve",
    ),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where it serves the embedded model."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(TINY)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log.txt").read_text()
            try:
                urlopen(f"http://127.0.0.1:{port}/health")
                break
            except (URLError, ConnectionError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def test_it_answers_level_by_level(url, annotations, tmp_path):
    callbacks = (
        "[{class_path: SparseToDense, init_args: {levels: [4, 8], num_samples: 2}}, "
        "{class_path: PredictionWriter}]"
    )
    parts = ("preamble", "multiple_choice", "free_form", "numerical")
    args = [
        "predict",
        f"--config={ROOT / 'configs/s2d.yaml'}",
        f"--config={ROOT / 'configs/served.yaml'}",
        f"--model.policy.init_args.base_url={url}",
        f"--model.policy.init_args.model={TINY}",
        *(f"--model.policy.init_args.prompt.{name}=" for name in parts),
        f"--trainer.default_root_dir={tmp_path}",
        f"--trainer.callbacks={callbacks}",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.video_root=null",
        "--data.resolution={min_pixels: 3136, max_pixels: 3136, short_side: null}",
        "--data.num_workers=0",
        "--model.max_new_tokens=32",
    ]
    with pytest.warns(UserWarning, match="refuses top_k 50, now left out"):
        assert main(args) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert all(line["error"] is None for line in lines)
    texts = [text for line in lines for r in line["rounds"] for text in r["completions"]]
    # the embedded model was trained to write so; the server takes thoughts and answer apart
    assert sum("<think>" in text and "</think><answer>" in text for text in texts) > len(texts) / 4
    assert {line["answer"] for line in lines} & set("ABCD")
