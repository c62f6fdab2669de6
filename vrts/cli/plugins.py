"""The classes that configurations name: which there are, what each takes, which is meant."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from docstring_parser import parse_from_object

_OWNERS = ("vrts", "lightning.pytorch", "torch.optim")
_SECTION = re.compile(r"^(Args|Raises|Returns|Attributes):$", re.M)
MOST_NAMES = 12  # that are listed where none is near
_ROLE = re.compile(r":\w+:(?=`)")


@dataclass(frozen=True, slots=True)
class Option:
    """One argument of a class, as a configuration gives it in ``init_args``."""

    name: str
    kind: str
    """Its type, as the source writes it."""
    default: str | None
    """As YAML writes it; None where the option has to be given."""
    text: str
    """From the docstring."""


def options_of(cls: type) -> list[Option]:
    """List what a class takes: its own arguments and those that it passes on to its bases."""
    found: dict[str, Option] = {}
    texts: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__[:-1]):  # a subclass may leave them to its base
        texts |= {p.arg_name: p.description or "" for p in parse_from_object(ancestor).params}
    for ancestor in cls.__mro__[:-1]:
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(ancestor.__init__).parameters.values())[1:]  # type: ignore[misc]
        for given in parameters:
            if given.kind not in (given.VAR_POSITIONAL, given.VAR_KEYWORD):
                text = _ROLE.sub("", " ".join(texts.get(given.name, "").split()))
                option = Option(given.name, _kind(given.annotation), _default(given), text)
                found.setdefault(given.name, option)
        if all(given.kind is not given.VAR_KEYWORD for given in parameters):
            break
    return list(found.values())


def purpose(cls: type) -> str:
    """What a class is for and what it reads: its docstring up to the arguments."""
    return _ROLE.sub("", _SECTION.split(inspect.getdoc(cls) or "")[0].strip())


def class_help(cls: type) -> str:
    """Help on a class for the terminal."""
    lines = [f"{cls.__name__} ({cls.__module__})", "", purpose(cls), ""]
    lines += ["Options, in init_args:" if options_of(cls) else "It takes no options."]
    for option in options_of(cls):
        default = "required" if option.default is None else f"default {option.default}"
        lines.append(f"  {option.name}: {option.kind}, {default}")
        lines += textwrap.wrap(option.text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def classes_named(path: str) -> list[type]:
    """The class of a path, or those of a short name in the modules that plug-ins come from."""
    module, _, name = path.rpartition(".")
    if module:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            return []
        return [found] if isinstance(found, type) else []
    owners = [m for n, m in list(sys.modules.items()) if n.startswith(_OWNERS) and m is not None]
    return list({cls for owner in owners if isinstance(cls := vars(owner).get(name), type)})


def descendants(cls: type) -> Iterator[type]:
    """Yield a class and all that derive from it."""
    yield cls
    children: list[type] = type.__subclasses__(cls)
    for child in children:
        yield from descendants(child)


def plug_ins(hint: Any) -> list[str]:
    """Names of the classes that a type annotation takes."""
    kinds = [hint] if isinstance(hint, type) and hint.__module__ != "builtins" else []
    found = {
        cls.__name__
        for kind in kinds
        for cls in descendants(kind)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_")
    }
    return sorted(found.union(*map(plug_ins, get_args(hint))))


def choose(wrong: str, names: Iterable[str]) -> str:
    """``did you mean X?``, or the names that there are."""
    names = list(dict.fromkeys(names))
    near = nearest(wrong, names)
    if near:
        return f"did you mean {near}?"
    shown = names[:MOST_NAMES]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"there are {', '.join(shown)}{more}" if shown else "give one that there is"


def nearest(wrong: str, names: Sequence[str]) -> str | None:
    """The name that is almost the wrong one, in any case."""
    lower = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(wrong.casefold(), lower, n=1, cutoff=0.7)
    return lower[found[0]] if found else None


def _kind(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def _default(given: inspect.Parameter) -> str | None:
    value = given.default
    if value is given.empty:
        return None
    if inspect.isfunction(value):  # such as the optimizer, which is made from the parameters
        body = inspect.getsource(value).split("lambda", 1)[-1].partition(":")[2]
        return "".join(body.split()).strip(",").replace(",", ", ")
    plain = {None: "null", True: "true", False: "false", "": '""'}
    return plain[value] if isinstance(value, bool | str | None) and value in plain else str(value)
