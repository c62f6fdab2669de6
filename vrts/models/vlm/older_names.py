"""Names that transformers 4 reads a model's folder by, next to those of transformers 5.

Serving engines and many users still have transformers 4.57. It would take a folder that
transformers 5 has written without a message, and with other rotary parameters than the model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROCESSORS = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}
"""Parts of ``processor_config.json``, and the files that these had."""


def add_older_names(folder: Path) -> None:
    """Add the names of transformers 4.57 to a folder that transformers 5 has written.

    Args:
        folder: of a model or an adapter, with its processor.
    """
    _update(folder / "config.json", _add_rotary)
    _update(folder / "tokenizer_config.json", _name_tokenizer)
    path = folder / "processor_config.json"
    if path.is_file():
        processor = json.loads(path.read_text(encoding="utf-8"))
        for part, name in PROCESSORS.items():
            if part in processor:
                own = {**processor[part], "processor_class": processor.get("processor_class")}
                _write(folder / name, own)


def _add_rotary(config: dict[str, Any]) -> None:
    for part in (config, config.get("text_config") or {}):
        rotary = part.get("rope_parameters")
        if rotary and "rope_theta" in rotary:
            part["rope_theta"] = rotary["rope_theta"]
            scaling = {key: value for key, value in rotary.items() if key != "rope_theta"}
            if scaling != {"rope_type": "default"}:
                kind = "mrope" if "mrope_section" in scaling else scaling.get("rope_type")
                part["rope_scaling"] = {**scaling, "type": kind}


def _name_tokenizer(config: dict[str, Any]) -> None:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")


def _update(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        change(found)
        _write(path, found)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
