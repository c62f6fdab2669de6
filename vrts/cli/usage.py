"""Help, and what is wrong with a command line or a configuration file, in one to three lines.

jsonargparse says what its types expect. Here that becomes: the key as it is written, where it is
written, what it needs, the nearest right name, and how to see more.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import yaml
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import StrategyRegistry

from vrts.cli.plugins import choose, class_help, classes_named, nearest, options_of, plug_ins
from vrts.files.shipped import list_configs
from vrts.terminal import printable, shorten

_INT, _NULL = "a whole number", "null"
_TYPES = {
    "int": _INT,
    "PositiveInt": f"{_INT} above 0",
    "NonNegativeInt": f"{_INT} from 0",
    "float": "a number",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number from 0",
    "ClosedUnitInterval": "a number from 0 and up to 1",
    "bool": "true or false",
    "str": "a text",
    "list": "a list, such as '[a, b]'",
    "dict": "keys with values, such as '{a: 1}'",
    "NoneType": _NULL,
}
"""What jsonargparse expects, in words."""
_MOST_CHARACTERS = 600
_CONFIG = ("-c", "--config")
_FOOTER = """
Any of these in a file: --config NAME or FILE, later ones win (vrts configs lists those of vrts).
Options below a key:    vrts {command} --help model.policy
What a class takes:     vrts {command} --help {example}
Lightning's Trainer:    vrts {command} --help trainer
"""


class Setting(NamedTuple):
    """One key with its value, as a user wrote it."""

    key: str
    """Dotted, of the same form in files and on the command line."""
    value: str
    where: str
    """File and line, or the option."""


class UsageParser(LightningArgumentParser):
    """A parser whose errors are one to three lines, and whose ``--help`` takes a key or a class."""

    words: ClassVar[list[str]] = []
    """Of the command line, for the places of keys; one command is parsed at a time."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit status 2 and what is wrong."""
        if not self.exit_on_error:
            super().error(message, ex)
        print(f"vrts: error: {explain(message, self.words, self)}", file=sys.stderr)  # noqa: T201
        self.exit(2)
        raise AssertionError("exit() returned")

    def print_help(self, file: Any = None) -> None:
        """Print the options of vrts, or those of the key or the class named after ``--help``."""
        command = self.words[0]
        named = (v for option, v in _options(self.words) if option in ("-h", "--help"))
        key = next(named, "").lstrip("-")
        listed = [a for a in self._actions if not any(".help" in o for o in a.option_strings)]
        if key:
            actions = [a for a in listed if _is_under(str(a.dest), key)]
        else:
            actions = [a for a in listed if not _is_under(str(a.dest), "trainer")]
        formatter = self._get_formatter()
        formatter.add_arguments(actions)
        text = (
            formatter.format_help() if actions else "\n".join(map(class_help, classes_named(key)))
        )
        if not text:
            names = sorted({str(a.dest) for a in listed} | set(_plug_ins_of(self)))
            self.error(f"--help: no option or class {key!r}; {choose(key, names)}")
        if not key:
            example = "PlainReader" if command != "fit" else "AccuracyReward"
            text = f"usage: vrts {command} --config NAME [--OPTION VALUE ...]\n\n{text}"
            text += _FOOTER.format(command=command, example=example)
        print(text.rstrip("\n"), file=file or sys.stdout)


class Mistake(NamedTuple):
    """What jsonargparse refused, with what was given."""

    message: str
    words: Sequence[str]
    parser: Any
    """Of the subcommand, for names that are near."""
    settings: list[Setting]


def explain(message: str, words: Sequence[str], parser: Any = None) -> str:
    """Say in one to three lines what is wrong.

    Args:
        message: of jsonargparse.
        words: of the command line.
        parser: of the subcommand, or of the command with its subcommands; for names that are near.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    mistake = Mistake(message, words, _subparser(parser, command), list(find_settings(words)))
    problems = (_syntax, _unknown, _missing, _wrong_value)
    found = next((lines for problem in problems if (lines := problem(mistake))), None)
    lines = found or [message.strip().splitlines()[0]]
    lines = [shorten(" ".join(line.split()), _MOST_CHARACTERS) for line in lines]
    return printable("\n  ".join(lines).replace("{command}", command))


def find_settings(words: Sequence[str]) -> Iterator[Setting]:
    """Keys of the files and options of a command line, in their order."""
    for option, value in _options(words):
        try:
            if option in _CONFIG:
                yield from _walk(yaml.compose(Path(value).read_text(encoding="utf-8")), "", value)
            elif option.startswith("--"):
                key = option.lstrip("-").removesuffix("+")
                yield Setting(key, value, option)
                yield from _walk(yaml.compose(value), key, option)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # a plain text, or a file that the parser's own message is about


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command line with what follows them, ``--a=b`` and ``--a b`` alike."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option.startswith("-"):
            yield option, value if equals else following


def _walk(node: Any, key: str, where: str) -> Iterator[Setting]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, key, where)
    elif isinstance(node, yaml.MappingNode):
        for name, item in node.value:
            full = f"{key}.{name.value}" if key else str(name.value)
            value = str(item.value) if isinstance(item, yaml.ScalarNode) else ""
            line = "" if where.startswith("-") else f":{name.start_mark.line + 1}"
            yield Setting(full, value, where + line)
            yield from _walk(item, full, where)


def _syntax(mistake: Mistake) -> list[str] | None:
    """A file that is missing, no YAML, or no mapping."""
    message = mistake.message
    files = [Path(value) for option, value in _options(mistake.words) if option in _CONFIG]
    missing = next((path for path in files if not path.is_file()), None)
    if 'key "config"' in message and missing is not None:
        near = nearest(missing.name, [path.name for path in missing.parent.glob("*.yaml")])
        name = missing.with_name(near) if near else nearest(missing.stem, list(list_configs()))
        remedy = f"did you mean {name}?" if name else "vrts configs lists those of vrts"
        return [f"--config: no file {missing}; {remedy}"]
    if not message.startswith(("Problems parsing config", "Unexpected config")):
        return None
    for path in files:
        try:
            content = yaml.compose(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{path}:{mark.line + 1}, column {mark.column + 1}" if mark else path
            return [f"{place}: {error.problem or error.context}; correct the YAML there"]
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return [f"{path}: {error}; write it as YAML in UTF-8"]
        if content is not None and not isinstance(content, yaml.MappingNode):
            return [f"{path}:1: not a configuration; it needs keys, such as 'model:'"]
    return None


def _unknown(mistake: Mistake) -> list[str] | None:
    """A key that does not exist, of the command or of a class."""
    message = mistake.message
    found = re.search(
        r"(?:does not accept option '|Option ')(.+?)'|[Uu]nrecognized arguments?: (?:--)?([^\s=]+)",
        message,
    )
    if not found or f'Parser key "{found[1]}"' in message:  # another class of the key takes it
        return None
    leaf = found[1] or found[2]
    setting = _locate(leaf, "", mistake.settings)
    key = setting.key if setting else leaf
    at, option = _at(key, setting), leaf.partition(".")[0]
    owner = re.search(r"class_path '([\w.]+)':\s+Option '", message) or re.search(
        r"is not accepted\. Got value: Namespace\(class_path='([\w.]+)'", message
    )
    if owner and (classes := classes_named(owner[1])):
        names = [known.name for cls in classes for known in options_of(cls)]
        what = f"{owner[1].rpartition('.')[2]} has no option {option!r}; {choose(option, names)}"
        return [f"{at}{what}", _see(key.rpartition(".")[0])]
    dests = [str(action.dest) for action in getattr(mistake.parser, "_actions", [])]
    names = [dest for dest in dests if "." in dest and not dest.endswith(".help")]
    return [f"{at}no such option; {choose(key, names)}", _see(key.rpartition(".")[0])]


def _missing(mistake: Mistake) -> list[str] | None:
    """A missing required option, or a missing value of an option."""
    required = re.search(r"following arguments are required: (.+)", mistake.message)
    if required:
        keys = [key.strip().split(".", 1)[-1] for key in required[1].split(",")]
        remedy = f"give --{keys[0]}"
        if keys[0] == "model.policy":
            remedy = "give a recipe, such as --config grpo (fit) or --config s2d (predict)"
        return [f"{', '.join(keys)}: missing; {remedy}", _see(keys[0])]
    value = re.search(r"argument (-\S+?)(?:/\S+)?: expected (?:one|at least one)", mistake.message)
    if value:
        # argparse names the option that it took a longer word for
        longer = (w for w in reversed(mistake.words) if w.startswith(value[1]))
        option = next(longer, value[1])
        return [f"{option}: a value is missing after it", _see(value[1].lstrip("-"))]
    return None


def _wrong_value(mistake: Mistake) -> list[str] | None:
    """A value of another type, out of range, or of a class that is not known."""
    message = mistake.message
    keys = re.findall(r'Parser key "(.+?)":', message)
    message = message[message.rfind("Parser key") :] if keys else message
    given = re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value|\n|\Z)", message)
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    value = unknown[1] if unknown else given[1].strip() if given else ""
    setting = _locate(keys[-1], value, mistake.settings, keys[0]) if keys else None
    key = setting.key.removesuffix(".class_path") if setting else keys[-1] if keys else ""
    at = _at(key, setting) if key else ""
    failed = re.search(r"Problem with given class_path '(.+?)':\s*(.+)", message, re.DOTALL)
    if failed and not _needs(message[: failed.start()]):  # else of another class that the key takes
        return [f"{at}{_failure(failed[1], failed[2])}", _see(key)]
    if unknown and not re.search(r"Expected an? <class '(?:int|float)'>", message):
        bases = re.findall(r"(?:[a-z_]\w*\.)+[A-Z]\w*", message.partition("Errors:")[0])
        names = {name for base in bases for cls in classes_named(base) for name in plug_ins(cls)}
        names |= set(_plug_ins_of(mistake.parser, key))
        return [f"{at}no class {unknown[1]!r}; {choose(unknown[1], sorted(names))}", _see(key)]
    needs = _needs(message)
    if not needs:
        return None
    shown = (setting.value if setting else "") or value
    near = nearest(shown, [n for n in _literals(message) if isinstance(n, str)])
    hint = f"; did you mean {near}?" if near else ""
    instead = f", not {shorten(shown.strip(), 80)!r}" if shown.strip() else ""
    return [f"{at}needs {needs}{instead}{hint}", _see(key)]


def _failure(class_path: str, text: str) -> str:
    """Why a class could not be made."""
    reason = next((line.strip(" -") for line in text.splitlines() if line.strip(" -")), "")
    package = re.search(r"No module named '?([\w.]+)'?", reason) or re.search(
        r"[`']([\w\-]+)(?:>=[\w.]+)?[`'] (?:not met|was not found|is not installed|is required)",
        reason,
    )
    name = class_path.rpartition(".")[2]
    if package and class_path.startswith(package[1]):
        return f"no module {package[1]!r}; run from its folder, or install it"
    if package:
        root = package[1].split(".")[0]
        return f"{name} needs the package {root}; pip install {root}"
    return f"{name}: {reason}"


def explain_trainer(error: Exception) -> str:
    """What the Trainer refuses, with the nearest right name."""
    found = re.search(r"invalid (strategy|accelerator) name: .\w+='?(\w+)", str(error))
    if not found:
        return f"trainer: {str(error).strip().splitlines()[0]}"
    kind, name = found[1], found[2]
    names = [*StrategyRegistry.available_strategies(), "auto"]
    if kind == "accelerator":
        names = ["auto", *AcceleratorRegistry.available_accelerators()]
    return f"trainer.{kind}: there is no {name!r}; {choose(name, names)}"


def _needs(message: str) -> str:
    """What the types of a message allow, in words."""
    found = re.findall(r"Not of type (\w+)", message)
    found += re.findall(r"Expected an? <class '(\w+)'>", message)
    allowed = [_TYPES[name] for name in found if name in _TYPES]
    literals = _literals(message)
    if literals:
        allowed.append("one of " + ", ".join(map(str, literals)))
    # of what is one of some names, that it may be a number or null too says nothing
    less = {_NULL, _INT} if literals else {_NULL}
    return " or ".join([a for a in dict.fromkeys(allowed) if a not in less] or allowed)


def _literals(message: str) -> list[Any]:
    found = re.findall(r"Expected an? typing\.Literal(\[.*?\])", message)
    return list(dict.fromkeys(value for text in found for value in ast.literal_eval(text)))


def _at(key: str, setting: Setting | None) -> str:
    """``model.rewards (recipe.yaml:7): ``, or the option where it is on the command line."""
    if setting is None:
        return f"{key}: "
    return f"--{key}: " if setting.where.startswith("-") else f"{setting.where}: {key}: "


def _see(key: str) -> str:
    top = key.split(".init_args")[0]
    return f"see: vrts {{command}} --help {top}".rstrip()


def _locate(leaf: str, value: str, settings: list[Setting], outer: str = "") -> Setting | None:
    """The last setting of this name within another, with this value if there is one."""
    within = [s for s in settings if _is_under(s.key, outer)] or settings
    matching = [s for s in within if f".{s.key.removesuffix('.class_path')}".endswith(f".{leaf}")]
    found = [s for s in matching if value and s.value == value] or matching
    return found[-1] if found else None


def _subparser(parser: Any, command: str) -> Any:
    for action in getattr(parser, "_actions", []):
        if isinstance(action.choices, dict) and command in action.choices:
            return action.choices[command]
    return parser


def _is_under(dest: str, key: str) -> bool:
    return bool(key) and (dest == key or dest.startswith(f"{key}."))


def _plug_ins_of(parser: Any, key: str | None = None) -> Iterator[str]:
    """Names of the classes that a key takes; that any key takes where none is given."""
    for action in getattr(parser, "_actions", []):
        if key is None or action.dest == key:
            yield from plug_ins(getattr(action, "_typehint", None))
