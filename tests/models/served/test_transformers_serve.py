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
from PIL import Image
from transformers.utils.import_utils import is_serve_available

from vrts.cli.command import main
from vrts.data import PyAVDecoder, Resolution, UniformSampler

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


PARTS = ("preamble", "multiple_choice", "free_form", "numerical")


def predict(root: Path, annotations: Path, callback: str, *options: str) -> list[dict]:
    """Records of questions that are put as the embedded model was trained on them."""
    args = [
        "predict",
        f"--config={ROOT / 'configs/s2d.yaml'}",
        *options,
        *(f"--model.policy.init_args.prompt.{name}=" for name in PARTS),
        f"--trainer.default_root_dir={root}",
        f"--trainer.callbacks=[{callback}, {{class_path: PredictionWriter}}]",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.video_root=null",
        "--data.resolution={min_pixels: 3136, max_pixels: 3136, short_side: null}",
        "--data.num_workers=0",
        "--model.max_new_tokens=32",
    ]
    assert main(args) == 0
    return [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]


def served(url: str) -> list[str]:
    return [
        f"--config={ROOT / 'configs/served.yaml'}",
        f"--model.policy.init_args.base_url={url}",
        f"--model.policy.init_args.model={TINY}",
    ]


def test_it_answers_level_by_level(url, annotations, tmp_path):
    callback = "{class_path: SparseToDense, init_args: {levels: [4, 8], num_samples: 2}}"
    with pytest.warns(UserWarning, match="refuses top_k 50, now left out"):
        lines = predict(tmp_path, annotations, callback, *served(url))
    assert len(lines) == 8
    assert all(line["error"] is None for line in lines)
    texts = [text for line in lines for r in line["rounds"] for text in r["completions"]]
    # the embedded model was trained to write so; the server takes thoughts and answer apart
    assert sum("<think>" in text and "</think><answer>" in text for text in texts) > len(texts) / 4
    assert {line["answer"] for line in lines} & set("ABCD")


def test_greedy_votes_on_images_are_those_of_the_native_engine(url, annotations, tmp_path):
    """A PNG gives the server the same prompt; the frames of a video give it another one."""
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    for i, row in enumerate(rows):
        frame = (
            PyAVDecoder()
            .decode(str(annotations.parent / row["path"]), 2, UniformSampler(), Resolution())
            .frames[i % 2]
        )
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
        row |= {"path": str(tmp_path / f"{i}.png"), "data_type": "image"}
    images = tmp_path / "images.jsonl"
    images.write_text("".join(json.dumps(row) + "\n" for row in rows))
    callback = "{class_path: SparseToDense, init_args: {levels: [4], num_samples: 3}}"
    greedy = "--model.eval_sampling={temperature: 0, top_p: 1, top_k: 0}"
    png = "--model.policy.init_args.format=png"
    found = predict(tmp_path / "served", images, callback, *served(url), png, greedy)
    tiny = f"--config={ROOT / 'configs/tiny.yaml'}"
    native = predict(tmp_path / "native", images, callback, tiny, greedy)

    def votes(lines):
        return [(line["answer"], [r["completions"] for r in line["rounds"]]) for line in lines]

    assert votes(found) == votes(native)
    assert len({line["answer"] for line in native}) > 1
