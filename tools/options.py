"""Lists every option of every plug-in: ``python -m tools.options > docs/options.md``."""

import inspect

from vrts import callbacks, data, models, prompts, types, voting
from vrts.cli.plugins import options_of, purpose

HEAD = """# Options

Made from the code by `python -m tools.options > docs/options.md`. `vrts fit --help NAME` shows the
same on the terminal. Options of `VideoQAModule` are those below `model` in YAML, those of
`VideoQADataModule` below `data`; of every other class they are its `init_args`. A class in a cell
of `type` is a plug-in of its own, or a group of options.
"""
PARTS = {
    "vrts.models": models,
    "vrts.data": data,
    "vrts.callbacks": callbacks,
}
OTHERS = {
    "Votes": (voting.MajorityVote, voting.LogProbVote),
    "Groups of options": (prompts.PromptTemplate, types.SamplingParams),
}


def section(cls: type) -> str:
    """One class: what it is for, and a table of its options."""
    lines = [f"### {cls.__name__}", "", purpose(cls), ""]
    if options := options_of(cls):
        lines += ["| option | type | default | |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option.default is None else f"`{_cell(option.default)}`"
        cells = (f"`{option.name}`", f"`{_cell(option.kind)}`", default, _cell(option.text))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def page() -> str:
    """The page."""
    groups = {
        name: [getattr(part, plug_in) for plug_in in sorted(part.__all__)]
        for name, part in PARTS.items()
    }
    groups |= {name: list(classes) for name, classes in OTHERS.items()}
    lines = [HEAD]
    for name, classes in groups.items():
        lines.append(f"## {name}\n")
        lines += [section(cls) for cls in classes if not inspect.isabstract(cls)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ") or '""'


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
