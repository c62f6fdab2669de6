"""The ``vrts`` command. What needs no libraries is answered before they are imported."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

from vrts.files.shipped import find_config, list_configs

SUBCOMMANDS = {
    "fit": "train with GRPO",
    "validate": "accuracy on data.val",
    "test": "accuracy on data.test",
    "predict": "answer the questions of data.predict, or one of data.video and data.question",
    "export": "write the model of a checkpoint as a Hugging Face folder",
    "configs": "list the configurations that come with vrts, or print the one named",
    "demo": "predict, train, predict again: a small model on the CPU, in minutes",
}
PARTS = ("trainer", "model", "data")
"""What the names of options with a dot begin with."""
HELP = f"""Trains video language models on rewards alone (GRPO), and answers questions about videos
with as few frames as agreement needs (sparse-to-dense), as Video-RTS does (arXiv 2507.06485).

usage: vrts {{{",".join(SUBCOMMANDS)}}} [--config NAME ...] [--OPTION VALUE ...]
       vrts --version

{chr(10).join(f"  {name:<10}{text}" for name, text in SUBCOMMANDS.items())}

Try it:             vrts demo
Ask about a video:  vrts predict --config ask --data.video clip.mp4 --data.question "Who wins?"
Train an adapter:   vrts fit --config grpo --config lora --config gpu --data.train VideoR1Reader \\
                      --data.train.init_args.path questions.jsonl \\
                      --data.train.init_args.video_root null
Answer a table:     vrts predict --config s2d --config gpu --data.predict PlainReader \\
                      --data.predict.init_args.path questions.csv \\
                      --data.predict.init_args.video_root null

All options of a subcommand: vrts fit --help. A part of them: vrts fit --help model.rewards
What a class takes:          vrts fit --help AccuracyReward
"""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the ``vrts`` command, with the words of the process where `args` is None.

    Returns:
        The exit status, see `vrts.cli.command.main`; 2 for an unknown subcommand, or an option of
        an unknown part.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words or words in (["-h"], ["--help"]):
        print(HELP, end="")  # noqa: T201
        return 0
    if words == ["--version"]:
        print(f"vrts {version('vrts')}")  # noqa: T201
        return 0
    if words[0] not in SUBCOMMANDS:
        near = get_close_matches(words[0], SUBCOMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SUBCOMMANDS)}"
        return _refuse(f"{words[0]}: no such subcommand; {hint}")
    if words[0] == "configs":
        return _show_configs(words[1:])
    if words[0] == "demo":  # which itself gives commands, and so lies above them
        demo = resolve_name("vrts.demo.__main__:main")
        return int(demo(words[1:]))
    for name in (word.partition("=")[0] for word in words):
        part, dot, rest = name.removeprefix("--").partition(".")
        if name.startswith("--") and dot and part not in PARTS:
            near = get_close_matches(part, PARTS, 1)
            hint = f"did you mean --{near[0]}.{rest}?" if near else f"see vrts {words[0]} --help"
            return _refuse(f"{name}: no such option; {hint}")
    from vrts.cli.command import main as run

    return run(words)


def _show_configs(names: list[str]) -> int:
    """List the configurations of vrts, or print those that are named."""
    known = list_configs()
    if not names:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in known.items()))  # noqa: T201
        return 0
    for name in names:
        path = Path(find_config(name))
        if not path.is_file():
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "vrts configs lists them"
            return _refuse(f"configs: no configuration {name}; {hint}")
        print(f"# {path}\n{path.read_text(encoding='utf-8')}", end="")  # noqa: T201
    return 0


def _refuse(message: str) -> int:
    print(f"vrts: error: {message}", file=sys.stderr)  # noqa: T201
    return 2
