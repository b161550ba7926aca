"""Who imports whom: the order of the packages, and no circles, be imports lazy or for type checking only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmark", "upstreams", "downstreams")

# From top to bottom: a module imports from its own folder, and from those below it.
ORDERS = {
    "benchmark": (
        ("__main__",),
        ("cli",),
        ("claims",),
        ("comparison", "reproduction", "pretraining"),
        ("run",),
        ("plan",),
        ("features",),
        ("engines", "tables", "data"),
        ("statistics", "corpora"),
        ("records", "heads"),
        ("values", "environment", "packed"),
        ("tasks", "files"),
        ("errors",),
    ),
    "upstreams": (
        ("seeds",),
        ("families",),
        ("contract", "pretraining", "spectral"),
        ("__init__",),
        ("arguments",),
        ("safety", "precision"),
        ("threads", "torchaudio_guard"),
        ("base",),
    ),
}
# What needs records alone, and the metrics that are computed from them: neither audio nor features nor torch.
FROM_RECORDS = ("statistics", "tables", "comparison")
METRICS = ("downstreams.metrics", "downstreams.errors")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported_by(path: Path) -> Iterator[str]:
    """Whole names of what a file imports anywhere; of `from package import module`, the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def graph() -> dict[str, set[str]]:
    return {
        name: {other for other in imported_by(path) if other in modules() and other != name}
        for name, path in modules().items()
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def place_of(module: str, order: tuple[tuple[str, ...], ...]) -> tuple[int, str]:
    """Level and folder of a module; the package's own file is `__init__`."""
    folder = module.split(".")[1] if "." in module else "__init__"
    levels = [level for level, folders in enumerate(order) if folder in folders]
    assert levels, f"{module} lies in no folder of the order; add it there"
    return levels[0], folder


@pytest.mark.parametrize("package", ORDERS)
def test_packages_import_those_below_them_only(package: str) -> None:
    order, wrong = ORDERS[package], []
    for module, others in graph().items():
        if module.split(".")[0] != package or module == "benchmark":
            continue
        level, folder = place_of(module, order)
        for other in others:
            if other.split(".")[0] == package and other != "benchmark":
                lower, place = place_of(other, order)
                if place != folder and lower <= level:
                    wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_what_is_made_of_records_imports_neither_torch_nor_what_reads_audio() -> None:
    allowed = {f"benchmark.{name}" for name in ("records", "errors", "files", *FROM_RECORDS)} | {*METRICS}
    for module, path in modules().items():
        if module in METRICS or module.startswith(tuple(f"benchmark.{name}" for name in FROM_RECORDS)):
            for other in imported_by(path):
                ours = other.split(".")[0] in PACKAGES
                assert not ours or ".".join(other.split(".")[:2]) in allowed, f"{module} imports {other}"
                assert other.split(".")[0] not in ("torch", "torchaudio", "soundfile", "soxr"), f"{module}: {other}"


def test_no_folder_holds_more_than_about_fifteen_modules() -> None:
    for folder in {path.parent for path in modules().values()}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert count <= 16 or folder.name in ("corpora", "families"), f"{folder} holds {count} modules"
