"""No tensor is made in a hook without its device named.

Lightning runs hooks with the GPU as torch's default device: what does not name the host lies there.
"""

import ast
from pathlib import Path

import pytest

import vrts

FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
HOOKS = ("models", "callbacks", "data")


def unnamed(source: str) -> list[str]:
    """Calls that make a tensor on whichever device is torch's default."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]


@pytest.mark.parametrize("folder", HOOKS)
def test_every_tensor_names_its_device(folder):
    root = Path(vrts.__file__).parent
    files = sorted((root / folder).rglob("*.py"))
    assert len(files) > 20
    found = {str(f.relative_to(root)): unnamed(f.read_text(encoding="utf-8")) for f in files}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_what_is_found():
    source = "x = torch.zeros(3)\ny = torch.zeros(3, device=x.device)\nz = torch.tensor([1])"
    assert unnamed(source) == ["line 1: torch.zeros(3)", "line 3: torch.tensor([1])"]
