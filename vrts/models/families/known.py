"""The families that vrts knows, and how one is found."""

from __future__ import annotations

from vrts.models.families.family import Family
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.families.qwen3_5 import Qwen3_5
from vrts.models.families.qwen3_vl import Qwen3VL
from vrts.models.families.smolvlm import SmolVLM2
from vrts.types import InputError

FAMILIES: tuple[type[Family], ...] = (Qwen2_5VL, Qwen3VL, Qwen3_5, SmolVLM2)


def find_family(model_type: str, where: str) -> type[Family]:
    """The family of a configuration's ``model_type``.

    Args:
        model_type: of ``config.json``.
        where: the key and the model, for the message.

    Raises:
        InputError: none has it.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(f"{f.title} ({', '.join(f.model_types)})" for f in FAMILIES)
    raise InputError(
        f"{where} is of type {model_type!r}, which vrts does not know; it loads {known}"
    )
