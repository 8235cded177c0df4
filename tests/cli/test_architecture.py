"""The documents for developers name files and functions that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

# `path/to/file.py` or `folder/`, and the names in parentheses behind it.
_PATH = re.compile(r"`((?:[\w.-]+/)*(?:[\w.-]+\.(?:py|md|toml|sh)|[\w-]+/))`(?:\s+\(((?:`[\w.]+`(?:,\s+)?)+)\))?")


@cache
def _defined(path: Path) -> frozenset[str]:
    """Return the functions, classes, methods, properties and constants of a module, as ``name`` or ``Class.name``."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(names)


def wrong_references(text: str) -> list[str]:
    """Return the paths and names of a document that do not exist."""
    wrong = []
    for match in _PATH.finditer(text):
        places = [ROOT / "rdsrepl" / match[1], ROOT / match[1]]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            wrong.append(match[1])
        elif match[2]:
            names = re.findall(r"`([\w.]+)`", match[2])
            wrong += [f"{match[1]}: {name}" for name in names if name not in _defined(found)]
    return wrong


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_path_and_name_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert _PATH.search(text)
    assert wrong_references(text) == []


def test_every_package_and_root_module_has_a_layer() -> None:
    layers = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## A change")[0]
    units = {path.name + "/" if path.is_dir() else path.name for path in (ROOT / "rdsrepl").iterdir()}
    units -= {"__pycache__/", "__init__.py", "__main__.py", "py.typed"}
    assert {unit for unit in units if f"`{unit}`" not in layers} == set()


def test_wrong_references_are_found() -> None:
    assert wrong_references("`no/file.py`, `plan.py` (`Plan`, `Nothing`), `errors.py` (`Error`, `Error.none`)") == [
        "no/file.py",
        "plan.py: Nothing",
        "errors.py: Error.none",
    ]
