"""What a model folder of others could do other than run code: never end, or fetch code to run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vrts.models.vlm.shards import INDEX, PATH_KEY
from vrts.types import InputError

TIMEOUT_S = 10
"""For what takes milliseconds where it is sound."""

KINDS = ("video", "image")
QUESTION = "Which?"
"""That a chat template is tried with."""

_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    expression = re.compile(pattern)
    for name in names:
        expression.fullmatch(name)
"""
_REGEX_FIELDS = ("target_modules", "exclude_modules", "layers_pattern")
_REGEX_KEYS = ("rank_pattern", "alpha_pattern")


def refuse_kernels(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that has transformers fetch a kernel, which is code, from the hub.

    Raises:
        InputError: it does.
    """
    for key, value in _fields(config):
        names = value if isinstance(value, list) else [value]
        if key.endswith("attn_implementation") and any("/" in str(name) for name in names):
            raise InputError(
                f"{PATH_KEY}: {path} asks for the kernel {value!r} of the hub ({key}), which is "
                "code that vrts does not fetch; remove that entry from a local copy"
            )


def check_index(folder: Path) -> None:
    """Check that a weight index names only safetensors files.

    Raises:
        InputError: it names another file, or is no index.
    """
    path = folder / INDEX
    if not path.is_file():
        return
    try:
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        wrong = sorted(str(name) for name in files if not str(name).endswith(".safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{PATH_KEY}: {path} is not an index of weights ({error!r})") from error
    if wrong:
        raise InputError(
            f"{PATH_KEY}: {path} names {wrong[0]!r}, which is not a safetensors file; convert the "
            "weights to safetensors first (pickled weights are not loaded)"
        )


def check_patterns(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Check that regular expressions are valid and terminate on the model's module names.

    They are tried in a process of their own: Python cannot stop a match that runs away.

    Raises:
        InputError: one is not a regular expression, or takes too long.
    """
    patterns = list(patterns)
    if not patterns:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([patterns, list(names)]),
            timeout=TIMEOUT_S,
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{where}: matching {patterns[0]!r} with the names of the model's modules did not end "
            f"within {TIMEOUT_S} s; write it without nested repetition"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1]
        raise InputError(
            f"{where}: {patterns[0]!r} is not a regular expression ({reason})"
        ) from None


def adapter_patterns(config: dict[str, Any]) -> list[str]:
    """Regular expressions in an adapter's configuration."""
    found = [config.get(field) for field in _REGEX_FIELDS]
    found += [key for field in _REGEX_KEYS for key in config.get(field) or {}]
    return [pattern for pattern in found if isinstance(pattern, str) and pattern != "all-linear"]


def check_template(processor: Any, where: str) -> None:
    """Check that a chat template renders questions about videos and images, and terminates.

    Raises:
        InputError: it breaks, is stopped by its sandbox, takes too long, or leaves out what it is
            to render.
    """
    contents = [[{"type": kind}, {"type": "text", "text": QUESTION}] for kind in KINDS]
    deadline_s = time.monotonic() + TIMEOUT_S

    def trace(frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG001 Python's signature
        if time.monotonic() > deadline_s:
            raise TimeoutError
        return trace

    # a thread could not be ended, and would take its share of every later second
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            for content in contents
        ]
        problem = _missing(processor, texts)
    except TimeoutError:
        problem = f"does not end within {TIMEOUT_S} s"
    except Exception as error:  # noqa: BLE001 a template can raise anything
        lines = str(error).strip().splitlines() or [""]
        problem = f"breaks ({type(error).__name__}: {lines[0]})"
    finally:
        sys.settrace(before)
    if problem is not None:
        raise InputError(
            f"{PATH_KEY}: the chat template in {where} {problem}; correct chat_template.jinja, or "
            "take that of the model it was trained from"
        )


def _missing(processor: Any, texts: Sequence[str]) -> str | None:
    """What is wrong with the chats of a video and of an image, None where nothing is."""
    for kind, text in zip(KINDS, texts, strict=True):
        if QUESTION not in text:
            return f"leaves out the question about the {kind}"
        # else frames would not fit the tokens that stand for them
        videos, images = (text.count(getattr(processor, f"{other}_token")) for other in KINDS)
        if (videos, images) != (int(kind == "video"), int(kind == "image")):
            return f"puts {videos} video and {images} image placeholders for one {kind}"
    return None


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON object and of those in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key), item
            yield from _fields(item)
