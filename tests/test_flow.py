"""Imports go one way: between the parts of the package, and between the rooms of each."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vrts"
COMMON = {"types", "terminal", "files", "answers", "prompts", "voting"}
ALLOWED = {
    "__init__": set(),
    "types": set(),
    "terminal": set(),
    "files": {"types"},
    "answers": {"types"},
    "prompts": {"types"},
    "voting": {"types", "answers"},
    "data": {"types", "files", "answers"},
    "models": COMMON,
    "callbacks": COMMON | {"data", "models"},
    "cli": COMMON | {"data", "models", "callbacks"},
    "__main__": {"cli"},
    "demo": COMMON | {"data", "models", "cli"},
}
"""What each part may import of the others. `data` and `models` do not know each other."""


def modules() -> dict[str, Path]:
    """Files of the package by module."""
    files = {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p
        for p in PACKAGE.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports; not those for annotations alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in known else str(node.module) for name in whole}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & known.keys()


def room(name: str) -> str:
    """``models.qwen`` of ``vrts.models.qwen.policy``, and ``models.module`` of that module."""
    return ".".join(name.split(".")[1:3]) or "__init__"


def edges() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    known, found = modules(), defaultdict(set)
    for name, path in known.items():
        found[room(name)] |= {room(other) for other in imported(path, known)} - {room(name)}
    return found


def test_parts_import_only_what_lies_before_them():
    for name, path in modules().items():
        part = room(name).split(".")[0]
        others = {room(other).split(".")[0] for other in imported(path, modules())} - {part}
        assert others <= ALLOWED[part], path


def test_rooms_do_not_import_in_a_circle():
    order = list(TopologicalSorter(edges()).static_order())
    assert (
        order.index("models.policy") < order.index("models.qwen") < order.index("callbacks.export")
    )


def test_a_folder_has_room_for_what_it_holds():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        count = len(
            [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
        )
        assert count <= 17, f"{folder} has {count} entries"
