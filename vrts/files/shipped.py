"""What comes with vrts: its configurations and the embedded model.

A wheel carries them inside the package; in a clone they lie next to it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
"""Folder that holds ``configs`` and ``assets``."""
CONFIGS = ROOT / "configs"


def find_config(name: str) -> str:
    """Find a configuration: a file if there is one, else the one of that name in vrts.

    Args:
        name: a path, or a name with or without ``.yaml``, such as ``grpo`` or ``demo/fit``.

    Returns:
        The path; the name as it is where there is no such file.
    """
    file = name if name.endswith(".yaml") else f"{name}.yaml"
    for path in (Path(name), Path(file), CONFIGS / file, ROOT / file):
        if path.is_file():
            return str(path)
    return name


def list_configs() -> dict[str, str]:
    """Names of the configurations in vrts, each with the first line of its comment."""
    found = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        with path.open(encoding="utf-8") as file:
            found[name] = file.readline().lstrip("# ").strip()
    return found


def find_model(path: str) -> str:
    """Find the embedded model ``assets/tiny`` from any folder; other paths stay as they are."""
    shipped = ROOT / path
    is_embedded = path == "assets/tiny" and not Path(path).exists() and shipped.is_dir()
    return str(shipped) if is_embedded else path
