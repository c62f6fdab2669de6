"""Two nodes, here two processes that meet over loopback, do as one process does.

Each is started by itself: with the variables of torchrun, of srun, or of Lightning.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import command, forked_each, free_port
from tests.ranks.test_two_processes import CONFIGS, fit_args, logged
from vrts.cli.command import main

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.precision=32-true")
STRATEGIES = ("ddp", "fsdp")


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


def on_two_nodes(described: list[dict[str, str]], log: Path, args: list[str]) -> None:
    args = [*args, "--trainer.devices=1", "--trainer.num_nodes=2"]
    with forked_each(log, [(command, (args,), variables) for variables in described]) as nodes:
        nodes.succeed()


NOTE = """
import json, os, sys
with open(sys.argv[1] + os.environ["RANK"], "w") as file:
    json.dump(dict(os.environ), file)
"""


def by_torchrun(folder: Path) -> list[dict[str, str]]:
    """The variables that torchrun itself gives to the processes of two nodes.

    They are started with them afterwards, since imports take each one ten seconds. The first one
    then has to open the store in which they meet: torchrun's own is gone.
    """
    script = folder / "note.py"
    script.write_text(NOTE)
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    words += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    nodes = [
        subprocess.Popen([*words, f"--node_rank={node}", str(script), f"{folder}/"])
        for node in (0, 1)
    ]
    try:
        assert [node.wait(300) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    found = [json.loads((folder / rank).read_text()) for rank in "01"]
    return [variables | {"TORCHELASTIC_USE_AGENT_STORE": "False"} for variables in found]


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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_nodes_train_as_one_does(strategy, inputs, alone, tmp_path):
    """Under DDP they are described by Lightning's variables, under FSDP2 by those of torchrun."""
    port = free_port()
    described = [plainly(node, port) for node in (0, 1)]
    if strategy == "fsdp":
        described = by_torchrun(tmp_path)
        assert [variables["RANK"] for variables in described] == ["0", "1"]
    on_two_nodes(described, tmp_path / "log", training(inputs, tmp_path, strategy))
    want, got = logged(alone), logged(tmp_path)
    assert len(got) == len(want) == 3
    for one, two in zip(want, got, strict=True):
        for name in ("train/loss", "train/kl", "train/reward/length", "train/entropy"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-6), name
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
    port = free_port()
    described = [describe(node, port) for node in (0, 1)]
    on_two_nodes(described, tmp_path / "log", prediction(inputs, tmp_path / "two", strategy))
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
