"""The model card of an exported folder: ``README.md`` as Hugging Face's hub shows it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from vrts.files.fingerprints import yaml_line
from vrts.prompts import PromptTemplate
from vrts.terminal import one_line

ADAPTER, MERGED, FULL = "adapter", "merged", "full"
"""What a folder contains: an adapter, a model with an adapter merged in, or a trained model."""
SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&])")
"""Markup of Markdown or HTML within a line."""


def write_card(folder: Path, name: str, merge: bool, facts: Mapping[str, Any]) -> None:
    """Write the card of the model in a folder; it is called after the final folder."""
    kind = MERGED if merge and facts["recipe"].get("lora") else FULL
    if (folder / "adapter_config.json").is_file():
        kind = ADAPTER
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    text = render_card(name, kind, facts, settings.get("dtype"), settings.get("model_type"))
    (folder / "README.md").write_text(text, encoding="utf-8")


def render_card(
    name: str,
    kind: str,
    facts: Mapping[str, Any],
    dtype: str | None = None,
    model_type: str | None = None,
) -> str:
    """Render the card of a model, in which names, paths and options from outside stay text.

    Args:
        name: of the model.
        kind: `ADAPTER`, `MERGED` or `FULL`.
        facts: of `recipe.training_facts`, with ``steps`` and ``metrics``.
        dtype: of the weights, unless they are an adapter's.
        model_type: transformers' name of the architecture.
    """
    recipe = facts["recipe"]
    environment = Environment(
        loader=PackageLoader("vrts.callbacks.export", "."),
        autoescape=False,  # this is Markdown, which `plain_text` and `code_text` escape for
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: "not known" if value is None else value,
    )
    environment.filters |= {
        "text": plain_text, "code": code_text, "python": ascii, "yaml": yaml_line,
    }  # fmt: skip
    base = facts["base_model"] or "a base model"
    prompt = {
        key: value
        for key, value in (recipe.get("prompt") or {}).items()
        if value != getattr(PromptTemplate(), key, value)
    }
    arguments = ", ".join(f"{key}={value!a}" for key, value in prompt.items())
    resolution = {k: v for k, v in (recipe.get("resolution") or {}).items() if k != "class"}
    return environment.get_template("model_card.md.j2").render(
        metadata=_metadata(kind, facts, model_type),
        name=name,
        is_merged=kind == MERGED,
        is_adapter=kind == ADAPTER,
        dtype=dtype,
        facts={"selected": None, **facts},
        prompt=shlex.quote(json.dumps(prompt)) if prompt else None,
        template=f"PromptTemplate({arguments})",
        resolution=", ".join(f"{key}={value!a}" for key, value in resolution.items()),
        resolution_option=shlex.quote(json.dumps(resolution)),
        num_frames=recipe.get("num_frames", 32),
        max_new_tokens=recipe.get("max_new_tokens", 768),
        base=base,
        base_source=base if "/" in base else "BASE",
    )


def _metadata(kind: str, facts: Mapping[str, Any], model_type: str | None) -> str:
    """Front matter as the hub reads it."""
    objective = facts["recipe"]["objective"]["class"].rpartition(".")[2].lower()
    tags = ["vrts", "reinforcement-learning", objective, "video-question-answering"]
    if kind != FULL:
        tags.append("lora")
    if model_type:
        tags.append(model_type)
    found = {
        "library_name": "peft" if kind == ADAPTER else "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": tags,
    }
    if facts["base_model"]:
        found["base_model"] = facts["base_model"]
        found["base_model_relation"] = "adapter" if kind == ADAPTER else "finetune"
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


def plain_text(value: Any) -> str:
    """Escape text from outside within a line of Markdown."""
    return SPECIAL.sub(r"\\\1", _text(value))


def code_text(value: Any) -> str:
    """Quote text from outside as code in a cell of a Markdown table."""
    line = _text(value).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _text(value: Any) -> str:
    """A value on one line, numbers with 4 digits."""
    return one_line(f"{value:.4g}" if isinstance(value, float) else str(value))
