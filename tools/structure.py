"""Draws which folders import which: ``python -m tools.structure > docs/structure.md``."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vrts"
HEAD = """# Structure

Made from the imports by `python -m tools.structure > docs/structure.md`. An arrow goes from a
folder, or a module that lies between folders, to what it imports; what follows from other arrows
is left out. None goes back: `tests/test_flow.py` holds that. `types`, `terminal` and `files` may be
imported from anywhere and are not drawn.

```mermaid
flowchart TD
"""
EVERYWHERE = {"types", "terminal", "files"}


def modules() -> dict[str, Path]:
    """Files of the package by the names of their modules."""
    root = PACKAGE.parent
    found = {".".join(p.relative_to(root).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports; those for annotations alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in known else str(node.module) for name in whole}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & known.keys()


def room(module: str) -> str:
    """``models.vlm`` of ``vrts.models.vlm.policy``; of ``vrts.models.module`` itself."""
    return ".".join(module.split(".")[1:3]) or "vrts"


def edges() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    known, found = modules(), defaultdict[str, set[str]](set)
    for name, path in known.items():
        found[room(name)] |= {room(other) for other in imported(path, known)} - {room(name)}
    return found


def reached(graph: dict[str, set[str]], name: str) -> set[str]:
    """All that a room imports, also by way of others."""
    direct = graph.get(name, set())
    return direct.union(*(reached(graph, other) for other in direct))


def drawing() -> str:
    """The document."""
    graph = {
        one: {other for other in others if other.split(".")[0] not in EVERYWHERE}
        for one, others in edges().items()
        if one.split(".")[0] not in EVERYWHERE
    }
    lines = []
    for one in sorted(graph):
        further = set[str]().union(*(reached(graph, other) for other in graph[one]))
        lines += [f"    {one} --> {other}\n" for other in sorted(graph[one] - further)]
    return f"{HEAD}{''.join(lines)}```\n"


if __name__ == "__main__":
    print(drawing(), end="")  # noqa: T201
