"""A public name means one thing: what a module defines is called like nothing else in the project."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmark", "upstreams", "downstreams")
PROTOCOLS = {  # the same job in each module of a folder, which whoever uses it looks up by the module's name
    "load": "upstreams/families",
    "method": "upstreams/seeds",
    "size_of": "upstreams/seeds",
}


def definitions() -> dict[str, list[Path]]:
    """Files, from the root of the project, that define each public class and function of a module."""
    found = defaultdict(list)
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(ROOT))
    return found


def test_no_two_modules_define_the_same_public_name() -> None:
    for name, paths in definitions().items():
        folders = {path.parent.as_posix() for path in paths}
        assert len(paths) == 1 or folders == {PROTOCOLS.get(name)}, f"{name} is defined in {', '.join(map(str, paths))}"


def test_a_name_of_a_protocol_is_defined_more_than_once() -> None:
    for name in PROTOCOLS:
        assert len(definitions()[name]) > 1, name
