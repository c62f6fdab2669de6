"""What the command answers without its libraries."""

import subprocess
import sys

import pytest
import yaml

from vrts.cli import PARTS, SUBCOMMANDS, main
from vrts.cli.command import VrtsCLI

LIBRARIES = """
import sys
from vrts.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
found = {"torch", "lightning", "transformers", "numpy"} & sys.modules.keys()
sys.exit(status if not found else f"imported {found}")
"""


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--help"], 0, "predict   answer the questions"),
        ([], 0, "usage: vrts {fit,"),
        (["--help"], 0, "\nAsk about a video:  vrts predict --config ask "),
        (["configs"], 0, "  Video-RTS's training (arXiv 2507.06485)"),
        (["configs", "demo/fit"], 0, "\n  max_steps: 200\n"),
        (["configs", "gpro"], 2, "no configuration gpro; did you mean grpo?"),
        (["--version"], 0, "vrts 0."),
        (["fitt"], 2, "vrts: error: fitt: no such subcommand; did you mean fit?"),
        (
            ["answer"],
            2,
            "there are fit, validate, test, predict, export, configs, demo",
        ),
        (
            ["fit", "--tainer.max_steps", "1"],
            2,
            "--tainer.max_steps: no such option; did you mean --trainer.max_steps?",
        ),
        (["fit", "--x.y=1"], 2, "vrts: error: --x.y: no such option; see vrts fit --help"),
    ],
)
def test_it_answers_at_once(words, status, text):
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert text in (done.stderr if status else done.stdout)


@pytest.mark.parametrize("subcommand", ["fit", "export"])
def test_options_begin_with_the_parts_that_are_known(subcommand, capsys):
    with pytest.raises(SystemExit):
        main([subcommand, "--config=grpo", "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)
    assert {name for name, value in options.items() if isinstance(value, dict)} == set(PARTS)


def test_each_subcommand_is_listed(capsys):
    assert SUBCOMMANDS.keys() == VrtsCLI.subcommands().keys() | {"configs", "demo"}
    assert main(["-h"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in SUBCOMMANDS)
