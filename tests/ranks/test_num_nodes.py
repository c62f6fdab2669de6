"""Two nodes, here two groups of processes that meet over loopback, do as one node with two does.

Each node is started by itself: by torchrun, with srun's variables, or with those of Lightning.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import command, forked, forked_each, free_port
from tests.ranks.test_two_processes import CONFIGS, fit_args, logged
from tools.tiny.model import build_model_folder
from vrts.cli.command import main
from vrts.demo.videos import make_dataset

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.precision=32-true")
STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    build_model_folder(root / "model", seed=0)
    return root / "model", make_dataset(root / "data", num_videos=6, seed=5)


def plainly(node: int, port: int) -> dict[str, str]:
    """A node as Lightning's own variables describe it."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)}
    return where | {"LOCAL_RANK": "0"}


def by_srun(node: int, port: int) -> dict[str, str]:
    """A node with one task, as srun's variables describe it."""
    where = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "vrts", "SLURM_NTASKS": "2"}
    where |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost"}
    where |= {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
    return where | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def on_two_nodes(describe, log: Path, args: list[str]) -> None:
    args = [*args, "--trainer.devices=1", "--trainer.num_nodes=2"]
    port = free_port()
    with forked_each(log, [(command, (args,), describe(n, port)) for n in (0, 1)]) as nodes:
        nodes.succeed()


def by_torchrun(log: Path, args: list[str]) -> None:
    """Two nodes that torchrun itself starts."""
    port = free_port()
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    words += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    vrts = ["-m", "vrts", *args, "--trainer.devices=1", "--trainer.num_nodes=2"]
    with log.open("w") as file:
        nodes = [
            subprocess.Popen([*words, f"--node_rank={node}", *vrts], stdout=file, stderr=file)
            for node in (0, 1)
        ]
        try:
            assert [node.wait(600) for node in nodes] == [0, 0], log.read_text()[-4000:]
        finally:
            for node in nodes:
                node.kill()


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
    args = [*training(inputs, root, request.param), "--trainer.devices=2"]
    with forked(root / "log", command, args, ranks=2) as processes:
        processes.succeed()
    return request.param, logged(root)


@pytest.mark.slow
def test_two_nodes_train_as_one_does(trained, inputs, tmp_path):
    """Under DDP they are described by Lightning's variables, under FSDP2 torchrun starts them."""
    strategy, want = trained
    args = training(inputs, tmp_path, strategy)
    if strategy == "fsdp":
        by_torchrun(tmp_path / "log", args)
    else:
        on_two_nodes(plainly, tmp_path / "log", args)
    got = logged(tmp_path)
    assert len(got) == len(want) == 3
    for one, two in zip(want, got, strict=True):
        for name in ("train/loss", "train/kl", "train/reward/length", "train/entropy"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5, abs=1e-7), name
    assert float(want[-1]["train/kl"]) > 0
    assert (tmp_path / "model/model.safetensors").is_file()
    assert (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.fixture(scope="module")
def predicted(inputs, tmp_path_factory) -> Path:
    """What one process predicts."""
    root = tmp_path_factory.mktemp("one")
    args = prediction(inputs, root, "ddp")
    assert main([*args, "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("describe", "strategy"), [(by_srun, "ddp"), (plainly, "fsdp")])
def test_two_nodes_predict_as_one_does(describe, strategy, predicted, inputs, tmp_path):
    on_two_nodes(describe, tmp_path / "log", prediction(inputs, tmp_path / "two", strategy))
    found = []
    for root in (predicted, tmp_path / "two"):
        lines = (root / "predictions.jsonl").read_text().splitlines()
        found.append({line["id"]: line["rounds"] for line in map(json.loads, lines)})
        assert len(lines) == len(found[-1]) == 12
    want, got = ({k: [r["completions"] for r in v] for k, v in one.items()} for one in found)
    assert got == want
    metrics = [
        json.loads((root / "metrics.json").read_text()) for root in (predicted, tmp_path / "two")
    ]
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
