"""Data flows one way: types <- answers, prompts <- {data, models} <- callbacks <- cli."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vrts"
ALLOWED = {
    "types": set(),
    "terminal": set(),
    "usage": {"terminal"},
    "files": {"types", "files"},
    "answers": {"types", "answers"},
    "prompts": {"types"},
    "votes": {"types"},
    "voting": {"types", "answers", "votes"},
    "data": {"types", "files", "answers", "data"},
    "models": {"types", "terminal", "files", "answers", "prompts", "votes", "voting", "models"},
    "callbacks": {
        *("types", "terminal", "files", "answers", "prompts", "votes", "voting"),
        *("data", "models", "callbacks"),
    },
    "checkpoint_paths": {"types", "models", "callbacks"},
    "exporting": {"types", "models", "callbacks", "checkpoint_paths"},
    "cli": {
        *("types", "terminal", "usage", "votes", "data", "models", "callbacks"),
        *("checkpoint_paths", "exporting"),
    },
    "demo": {"types", "answers", "prompts", "data", "models", "cli", "demo"},
    "__main__": {"cli"},
    "__init__": set(),
}


def imported_parts(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("vrts.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_a_module_imports_only_what_lies_before_it(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported_parts(path) <= ALLOWED[part]
