"""What is wrong with a command line or a configuration file, in one to three lines.

jsonargparse says what its types expect. Here that becomes: the key as it is written, where it is
written, what it needs, the nearest right name, and how to see more.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NoReturn, get_args

import yaml
from jsonargparse import typing as restricted
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import Strategy, StrategyRegistry

from vrts.terminal import printable, shorten

_INT, _FLOAT, _NULL = "a whole number", "a number", "null"
_PLAIN = {
    "int": _INT,
    "float": _FLOAT,
    "bool": "true or false",
    "str": "a text",
    "list": "a list, such as '[a, b]'",
    "dict": "keys with values, such as '{a: 1}'",
    "NoneType": _NULL,
}
_OPERATORS = {">": "above", ">=": "from", "<": "below", "<=": "up to", "==": "", "!=": "other than"}
_OWNERS = ("vrts", "lightning.pytorch", "torch.optim")
_MOST_NAMES = 12
_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Setting:
    """One key with its value, as a user wrote it."""

    key: str
    """Dotted, of the same form in files and on the command line."""
    value: str
    where: str
    """File and line, or the option."""
    class_path: str | None
    """Of the mapping that the key stands in."""


class UsageParser(LightningArgumentParser):
    """A parser whose errors are one to three lines, and whose ``--help`` takes a key."""

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
        """Print all options, or those that begin with the key behind ``--help``."""
        words = self.words
        asked = next((i for i, word in enumerate(words) if word in ("-h", "--help")), len(words))
        key = words[asked + 1] if asked + 1 < len(words) else ""
        actions = [a for a in self._actions if _is_under(str(a.dest), key.lstrip("-"))]
        if not key or not actions:
            super().print_help(file)
            return
        formatter = self._get_formatter()
        formatter.add_arguments(actions)
        text = formatter.format_help()
        classes = [option for a in actions for option in a.option_strings if ".help" in option]
        text += "".join(f"\nOptions of a class: {option} CLASS" for option in classes)
        print(text, file=file or sys.stdout)


def explain(message: str, words: Sequence[str], parser: Any = None) -> str:
    """Say in one to three lines what is wrong.

    Args:
        message: of jsonargparse.
        words: of the command line.
        parser: of the subcommand, or of the command with its subcommands; for names that are near.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    parser = _subparser(parser, command)
    settings = list(find_settings(words))
    for problem in (_syntax, _subcommand, _unknown, _missing, _wrong_value):
        lines = problem(message, settings, words, parser)
        if lines:
            break
    else:
        lines = [message.strip().splitlines()[0]]
    lines = [shorten(" ".join(line.split()), 2 * _MOST_CHARACTERS) for line in lines]
    return printable("\n  ".join(lines[:3]).replace("{command}", command))


def find_settings(words: Sequence[str]) -> Iterator[Setting]:
    """Keys of the files and options of a command line, in their order."""
    position = 0
    while position < len(words):
        option, equals, value = words[position].partition("=")
        if option.startswith("-") and not equals and position + 1 < len(words):
            value = words[position + 1]
            position += not value.startswith("--")
        position += 1
        if option in ("-c", "--config"):
            try:
                yield from _walk(yaml.compose(Path(value).read_text(encoding="utf-8")), "", value)
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue  # the parser's own message is about it
        elif option.startswith("--"):
            key = option.lstrip("-").removesuffix("+")
            yield Setting(key, value, option, None)
            try:
                yield from _walk(yaml.compose(value), key, option)
            except yaml.YAMLError:
                continue  # a plain text


def _walk(node: Any, key: str, where: str) -> Iterator[Setting]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, key, where)
    if not isinstance(node, yaml.MappingNode):
        return
    fields = {name.value: item for name, item in node.value}
    found = fields.get("class_path")
    for name, item in node.value:
        line = "" if where.startswith("-") else f":{name.start_mark.line + 1}"
        full = f"{key}.{name.value}" if key else str(name.value)
        value = str(item.value) if isinstance(item, yaml.ScalarNode) else ""
        yield Setting(full, value, where + line, found.value if found is not None else None)
        for setting in _walk(item, full, where):
            inherits = setting.class_path is None and name.value == "init_args"
            owner = found.value if inherits and found is not None else setting.class_path
            yield Setting(setting.key, setting.value, setting.where, owner)


def _syntax(
    message: str, _settings: list[Setting], words: Sequence[str], _parser: Any
) -> list[str] | None:
    """A file that is missing, no YAML, or no mapping."""
    missing = re.search(r"File does not exist: '(.*)'", message) or re.search(
        r"(?:not (?:readable|accessible)|Problems? .*accessing).*?'(.*?)'", message
    )
    files = _config_files(words)
    if missing and 'key "config"' in message:
        path = next((f for f in files if missing[1].endswith(Path(f).name)), missing[1])
        folder = Path(path).parent
        near = _nearest(Path(path).name, [p.name for p in folder.glob("*.yaml")])
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        return [f"--config: no file {path}{hint}"]
    if not message.startswith(("Problems parsing config", "Unexpected config")):
        return None
    for path in files:
        try:
            content = yaml.compose(Path(path).read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{path}:{mark.line + 1}, column {mark.column + 1}" if mark else path
            return [f"{place}: {error.problem or error.context}; correct the YAML there"]
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return [f"{path}: {error}; write it as YAML in UTF-8"]
        if content is not None and not isinstance(content, yaml.MappingNode):
            return [f"{path}:1: not a configuration; it needs keys, such as 'model:'"]
    return None


def _subcommand(
    message: str, _settings: list[Setting], _words: Sequence[str], _parser: Any
) -> list[str] | None:
    invalid = re.search(
        r"argument subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", message
    )
    absent = re.search(r'"subcommand" to be one of \{(.*?)\}', message)
    if invalid:
        names = re.findall(r"'(\w+)'", invalid[2])
        return [f"no command {invalid[1]!r}; {_choose(invalid[1], names)}", "see: vrts --help"]
    if absent:
        commands = ", ".join(absent[1].split(","))
        return [f"give a command: {commands}", "see: vrts --help"]
    return None


def _unknown(
    message: str, settings: list[Setting], _words: Sequence[str], parser: Any
) -> list[str] | None:
    """A key that does not exist, of the command or of a class."""
    found = re.search(r"does not accept option '(.+?)'", message) or re.search(
        r"Option '(.+?)' is not accepted", message
    )
    if not found:
        found = re.search(r"[Uu]nrecognized arguments?: (?:--)?([^\s=]+)", message)
    if not found:
        return None
    leaf = found[1]
    setting = _locate(leaf, "", settings)
    key = setting.key if setting else leaf
    owner = _owner(key, setting, settings)
    if owner is not None:
        names = [name for cls in _classes_named(owner) for name in _arguments(cls)]
        what = f"{owner.rpartition('.')[2]} has no option {key.rpartition('.')[2]!r}"
        help_key = key.split(".init_args")[0]
    else:
        names = [str(a.dest) for a in parser._actions if "." in str(a.dest)] if parser else []
        what, help_key = "no such option", key.rpartition(".")[0]
    return [f"{_at(key, setting)}{what}; {_choose(key, names, owner is not None)}", _see(help_key)]


def _missing(
    message: str, _settings: list[Setting], words: Sequence[str], _parser: Any
) -> list[str] | None:
    required = re.search(r"following arguments are required: (.+)", message)
    if required:
        keys = [key.strip().split(".", 1)[-1] for key in required[1].split(",")]
        key = keys[0]
        remedy = (
            "give a recipe, such as --config configs/grpo.yaml (fit) or configs/s2d.yaml (predict)"
            if key == "model.policy"
            else f"give --{key}"
        )
        return [f"{', '.join(keys)}: missing; {remedy}", _see(key)]
    value = re.search(r"argument (-\S+?)(?:/\S+)?: expected (?:one|at least one) argument", message)
    if value:
        # argparse names the option that it took a longer word for
        given = next((w for w in reversed(words) if w.startswith(value[1])), value[1])
        return [f"{given}: a value is missing behind it", _see(value[1].lstrip("-"))]
    return None


def _wrong_value(
    message: str, settings: list[Setting], _words: Sequence[str], parser: Any
) -> list[str] | None:
    """A value of another type, out of range, or of a class that is not known."""
    keys = re.findall(r'Parser key "(.+?)":', message)
    outer, leaf = (keys[0], keys[-1]) if keys else ("", "")
    nested = re.search(r"NestedArg\(key='.*?', val='(.*?)'\)", message)
    message = message[message.rfind("Parser key") :] if keys else message
    given = nested or re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value|\n|\Z)", message)
    value = given[1].strip() if given else ""
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    setting = _locate(leaf, unknown[1] if unknown else value, settings, outer) if leaf else None
    key = setting.key.removesuffix(".class_path") if setting else leaf
    at = _at(key, setting) if key else ""
    failed = re.search(r"Problem with given class_path '(.+?)':\s*(.+)", message, re.DOTALL)
    if failed:
        reason = [line.strip(" -") for line in failed[2].splitlines() if line.strip(" -")]
        return _failed_class(at, failed[1], reason[0] if reason else "", key, parser)
    if unknown and not re.search(r"Expected an? <class '(?:int|float)'>", message):
        names = sorted(set(_subclasses(message, key, parser)))
        return [f"{at}no class {unknown[1]!r}; {_choose(unknown[1], names)}", _see(key)]
    needs = _needs(message)
    if not needs:
        return None
    shown = (setting.value if setting else "") or value
    shown = shown or (re.findall(r"(?::|base 10: )\s*'?([^\s']+)'?", message) or [""])[-1]
    literals = [n for n in _literals(message) if isinstance(n, str)]
    near = _nearest(shown, literals)
    hint = f"; did you mean {near[0]}?" if near else ""
    instead = f", not {shorten(shown.strip(), 80)!r}" if shown.strip() else ""
    return [f"{at}needs {needs}{instead}{hint}", _see(key)]


def _failed_class(at: str, class_path: str, reason: str, key: str, _parser: Any) -> list[str]:
    package = re.search(r"No module named '?([\w.]+)'?", reason) or re.search(
        r"[`']([\w\-]+)(?:>=[\w.]+)?[`'] (?:not met|was not found|is not installed|is required)",
        reason,
    )
    name = class_path.rpartition(".")[2]
    if package and not class_path.startswith(package[1]):
        root = package[1].split(".")[0]
        return [f"{at}{name} needs the package {root}; pip install {root}", _see(key)]
    if package:
        return [f"{at}no module {package[1]!r}; run from its folder, or install it", _see(key)]
    return [f"{at}{name}: {reason}", _see(key)]


def explain_trainer(error: Exception) -> str:
    """What the Trainer refuses, with the nearest right name."""
    found = re.search(r"invalid (strategy|accelerator) name: .\w+='?(\w+)", str(error))
    if not found:
        return f"trainer: {str(error).strip().splitlines()[0]}"
    kind, name = found[1], found[2]
    names = [*StrategyRegistry.available_strategies(), "auto"]
    if kind == "accelerator":
        names = ["auto", *AcceleratorRegistry.available_accelerators()]
    return f"trainer.{kind}: there is no {name!r}; {_choose(name, names)}"


def named_strategy(name: Any) -> str | None:
    """Class path of a strategy that is given by its class name alone, or None."""
    known = {cls.__name__: cls for cls in _descendants(Strategy)}
    cls = known.get(name) if isinstance(name, str) else None
    return None if cls is None else f"{cls.__module__}.{cls.__qualname__}"


def _needs(message: str) -> str:
    """What the types of a message allow, in words."""
    allowed: list[str] = []
    for name, rest in re.findall(r"Not of type (\w+)(.*)", message):
        kind = getattr(restricted, name, None)
        limits = re.findall(r"v\s*(<=|>=|==|!=|<|>)\s*(-?[\d.]+)", rest) or [
            (operator, limit) for operator, limit in _limits(kind)
        ]
        base = _INT if isinstance(kind, type) and issubclass(kind, int) else _FLOAT
        bounds = " and ".join(f"{_OPERATORS[o]} {limit}".strip() for o, limit in limits)
        allowed.append(f"{base} {bounds}".strip())
    allowed += [
        _PLAIN[n] for n in re.findall(r"Expected an? <class '(\w+)'>", message) if n in _PLAIN
    ]
    literals = _literals(message)
    if literals:
        allowed.append("one of " + ", ".join(map(str, literals)))
    # of what is one of some names, that it may be a number or null too says nothing
    less = {_NULL, _INT} if literals else {_NULL}
    return " or ".join([a for a in dict.fromkeys(allowed) if a not in less] or allowed)


def _limits(kind: Any) -> list[tuple[str, str]]:
    symbols = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
    found = getattr(kind, "_restrictions", [])
    return [(symbols[function.__name__], str(limit)) for function, limit in found]


def _literals(message: str) -> list[Any]:
    found = re.findall(r"Expected an? typing\.Literal(\[.*?\])", message)
    return list(dict.fromkeys(value for text in found for value in ast.literal_eval(text)))


def _at(key: str, setting: Setting | None) -> str:
    """``model.rewards (recipe.yaml:7): ``, or the option where it is on the command line."""
    if setting is None:
        return f"{key}: "
    if setting.where.startswith("-"):
        return f"--{key}: "
    return f"{setting.where}: {key}: "


def _see(key: str) -> str:
    top = key.split(".init_args")[0]
    return f"see: vrts {{command}} --help {top}" if top else "see: vrts {command} --help"


def _locate(leaf: str, value: str, settings: list[Setting], outer: str = "") -> Setting | None:
    """The last setting of this name within another, with this value if there is one."""
    within = [s for s in settings if _is_under(s.key, outer)] or settings
    named = [s for s in within if s.key.removesuffix(".class_path").endswith(leaf)]
    matching = [s for s in named if f".{s.key.removesuffix('.class_path')}".endswith(f".{leaf}")]
    found = [s for s in matching if value and s.value == value] or matching
    return found[-1] if found else None


def _owner(key: str, setting: Setting | None, settings: list[Setting]) -> str | None:
    """Class whose argument a key is."""
    parent, _, _ = key.rpartition(".")
    if setting is not None and setting.class_path and parent.endswith("init_args"):
        return setting.class_path
    if not parent.endswith(".init_args"):
        return None
    plugin = parent.removesuffix(".init_args")
    given = [s for s in settings if s.key in (plugin, f"{plugin}.class_path") and s.value]
    return given[-1].value if given else None


def _choose(wrong: str, names: Iterable[str], leaf: bool = False) -> str:
    """``did you mean X?``, or the names that there are."""
    names = list(dict.fromkeys(names))
    near = _nearest(wrong.rpartition(".")[2] if leaf else wrong, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    shown = names[:_MOST_NAMES]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"there are {', '.join(shown)}{more}" if shown else "give one that there is"


def _nearest(wrong: str, names: Sequence[str]) -> list[str]:
    """Up to two names that are almost the wrong one, in any case."""
    lower = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(wrong.casefold(), lower, n=2, cutoff=0.7)
    return [lower[name] for name in found[: 1 if found[:1] and len(found) > 1 else 2]]


def _config_files(words: Sequence[str]) -> list[str]:
    files = [word.partition("=")[2] for word in words if word.startswith(("--config=", "-c="))]
    pairs = pairwise(words)
    return files + [value for word, value in pairs if word in ("-c", "--config")]


def _subparser(parser: Any, command: str) -> Any:
    for action in getattr(parser, "_actions", []):
        choices = action.choices
        if isinstance(choices, dict) and command in choices:
            return choices[command]
    return parser


def _is_under(dest: str, key: str) -> bool:
    return bool(key) and (dest == key or dest.startswith(f"{key}."))


def _subclasses(message: str, key: str, parser: Any) -> Iterator[str]:
    """Names of the classes that a key takes."""
    bases = re.findall(r"(?:<class ')?((?:[a-z_]\w*\.)+[A-Z]\w*)", message.partition("Errors:")[0])
    kinds = [cls for base in bases for cls in _classes_named(base)]
    for action in getattr(parser, "_actions", []):
        if action.dest == key:
            kinds += list(_types_in(getattr(action, "_typehint", None)))
    for kind in kinds:
        for cls in _descendants(kind):
            if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
                yield cls.__name__


def _types_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and hint.__module__ != "builtins":
        yield hint
    for part in get_args(hint):
        yield from _types_in(part)


def _descendants(cls: type) -> Iterator[type]:
    yield cls
    children: list[type] = type.__subclasses__(cls)
    for child in children:
        yield from _descendants(child)


def _classes_named(path: str) -> list[type]:
    """The class of a path, or those of a short name in the modules that plug-ins come from."""
    module, _, name = path.rpartition(".")
    if module:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            return []
        return [found] if isinstance(found, type) else []
    owners = [m for n, m in list(sys.modules.items()) if n.startswith(_OWNERS) and m is not None]
    found_all = {vars(owner).get(name) for owner in owners}
    return [cls for cls in found_all if isinstance(cls, type)]


def _arguments(cls: type) -> list[str]:
    names: list[str] = []
    for ancestor in cls.__mro__[:-1]:
        if "__init__" in vars(ancestor):
            parameters = inspect.signature(ancestor.__init__).parameters.values()  # type: ignore[misc]
            names += [
                p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            ]
    return [name for name in dict.fromkeys(names) if name != "self"]
