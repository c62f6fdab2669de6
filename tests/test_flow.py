"""Imports go one way: between the parts of the package, and between the rooms of each."""

import ast
from graphlib import TopologicalSorter

from tools.structure import PACKAGE, drawing, edges, imported, modules, room

COMMON = {"types", "terminal", "files", "answers", "prompts", "voting"}
ALLOWED = {
    "vrts": set(),
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
    "api": {"types", "data", "models", "callbacks"},
    "__main__": {"cli"},
    "demo": COMMON | {"data", "models", "cli"},
}
"""What each part may import of the others. `data` and `models` do not know each other."""


def test_parts_import_only_what_lies_before_them():
    for name, path in modules().items():
        part = room(name).split(".")[0]
        others = {room(other).split(".")[0] for other in imported(path, modules())} - {part}
        assert others <= ALLOWED[part], path


def test_imports_are_absolute():
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.ImportFrom) or node.level == 0, path


def test_rooms_do_not_import_in_a_circle():
    order = list(TopologicalSorter(edges()).static_order())
    places = [order.index(name) for name in ("models.policy", "models.vlm", "callbacks.export")]
    assert places == sorted(places)


def test_the_drawing_is_of_today():
    kept = (PACKAGE.parent / "docs/structure.md").read_text(encoding="utf-8")
    assert kept == drawing(), "python -m tools.structure > docs/structure.md"


def test_a_folder_has_room_for_what_it_holds():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        entries = [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
        assert len(entries) <= 16, f"{folder} has {len(entries)} entries"
