"""The ``vrts`` command. What needs no libraries is answered before they are imported."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version

SUBCOMMANDS = {
    "fit": "train with GRPO",
    "validate": "accuracy on data.val",
    "test": "accuracy on data.test",
    "predict": "answer the questions of data.predict, or one of data.video and data.question",
    "export": "write the model of a checkpoint as a Hugging Face folder",
}
PARTS = ("trainer", "model", "data")
"""What the names of options with a dot begin with."""
HELP = f"""usage: vrts {{{",".join(SUBCOMMANDS)}}} [--config FILE ...] [--OPTION VALUE ...]
       vrts --version

{chr(10).join(f"  {name:<10}{text}" for name, text in SUBCOMMANDS.items())}

Options are those of the YAML files, such as --model.policy.init_args.path FOLDER. All of a
subcommand: vrts fit --help; those of one part: vrts fit --help model.rewards
"""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the ``vrts`` command.

    Args:
        args: command-line words; those of the process where None.

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
    if not words[0].startswith("-") and words[0] not in SUBCOMMANDS:
        near = get_close_matches(words[0], SUBCOMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SUBCOMMANDS)}"
        print(f"vrts: error: {words[0]}: no such subcommand; {hint}", file=sys.stderr)  # noqa: T201
        return 2
    for name in (word.partition("=")[0] for word in words):
        part, dot, rest = name.removeprefix("--").partition(".")
        if name.startswith("--") and dot and part not in PARTS:
            near = get_close_matches(part, PARTS, 1)
            hint = f"did you mean --{near[0]}.{rest}?" if near else f"see vrts {words[0]} --help"
            print(f"vrts: error: {name}: no such option; {hint}", file=sys.stderr)  # noqa: T201
            return 2
    from vrts.cli.command import main as run

    return run(words)
