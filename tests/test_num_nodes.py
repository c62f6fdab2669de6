"""Two nodes, here two groups of processes that meet over loopback, do as one node with two does.

Each node is started by itself: by torchrun, with srun's variables, or with those of Lightning.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_two_processes import CONFIGS, fit_args, logged
from vrts.cli import main
from vrts.demo.model import build_model_folder
from vrts.demo.videos import make_dataset

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.precision=32-true")
STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    build_model_folder(root / "model", seed=0)
    return root / "model", make_dataset(root / "data", num_videos=6, seed=5)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def plainly(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """A node as Lightning's own variables describe it."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)}
    return [sys.executable, "-m", "vrts"], where


def by_torchrun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """A node of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"]
    command += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return [*command, "-m", "vrts"], {}


def by_srun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """A node with one task, as srun's variables describe it."""
    where = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "vrts", "SLURM_NTASKS": "2"}
    where |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost"}
    where |= {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [sys.executable, "-m", "vrts"], where


def run(nodes: list[tuple[list[str], dict[str, str]]], args: list[str]) -> None:
    """Start every node, and wait for all of them."""
    started = []
    for command, variables in nodes:
        started.append(
            subprocess.Popen(
                [*command, *args],
                cwd=Path(__file__).parents[1],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in started:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in started:
            process.kill()


def on_one_node(args: list[str]) -> None:
    run([([sys.executable, "-m", "vrts"], {})], [*args, "--trainer.devices=2"])


def on_two_nodes(launcher, args: list[str]) -> None:
    port = free_port()
    nodes = [launcher(node, port) for node in (0, 1)]
    run(nodes, [*args, "--trainer.devices=1", "--trainer.num_nodes=2"])


def training(inputs, root: Path, strategy: str) -> list[str]:
    overlay = (f"--config={CONFIGS / strategy}.yaml", *ON_CPU)
    return fit_args(*inputs, root, 2, more_last=overlay)


def prediction(inputs, root: Path, strategy: str) -> list[str]:
    model, annotations = inputs
    return [
        "predict",
        *(f"--config={CONFIGS / name}.yaml" for name in ("s2d", "tiny", strategy)),
        *ON_CPU,
        f"--model.policy.init_args.path={model}",
        "--model.max_new_tokens=12",
        "--trainer.callbacks=[{class_path: SparseToDense, init_args: {levels: [4, 8], "
        "num_samples: 3}}, {class_path: PredictionWriter}]",
        f"--trainer.default_root_dir={root}",
        f"--data.predict.init_args.path={annotations}",
        "--data.predict.init_args.video_root=null",
    ]


@pytest.fixture(scope="module", params=STRATEGIES)
def trained(request, inputs, tmp_path_factory) -> tuple[str, list[dict]]:
    """A strategy, and what two processes of one node log under it."""
    root = tmp_path_factory.mktemp(f"one_{request.param}")
    on_one_node(training(inputs, root, request.param))
    return request.param, logged(root)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [plainly, by_torchrun])
def test_two_nodes_train_as_one_does(launcher, trained, inputs, tmp_path):
    strategy, want = trained
    on_two_nodes(launcher, training(inputs, tmp_path, strategy))
    got = logged(tmp_path)
    assert len(got) == len(want) == 3
    for one, two in zip(want, got, strict=True):
        for name in ("train/loss", "train/kl", "train/reward/length", "train/entropy"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5, abs=1e-7), name
    assert float(want[-1]["train/kl"]) > 0
    assert (tmp_path / "model/model.safetensors").is_file()
    assert (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "strategy"), [(by_srun, "ddp"), (by_torchrun, "fsdp")], ids=["srun", "torchrun"]
)
def test_two_nodes_predict_as_one_does(launcher, strategy, inputs, tmp_path):
    alone = prediction(inputs, tmp_path / "one", strategy)
    assert main([*alone, "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    on_two_nodes(launcher, prediction(inputs, tmp_path / "two", strategy))
    found = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        found.append({line["id"]: line["rounds"] for line in map(json.loads, lines)})
        assert len(lines) == len(found[-1]) == 12
    want, got = ({k: [r["completions"] for r in v] for k, v in one.items()} for one in found)
    assert got == want
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
