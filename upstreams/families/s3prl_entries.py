"""The upstreams of s3prl's hub, known without importing s3prl or torch: their names, and why some cannot run here."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

GIVEN = ("_local", "_url", "_gdriveid", "_custom")  # how s3prl names what takes a checkpoint
SCORES = "it gives a score or phone posteriors of another upstream, which is no encoder; name that upstream instead"
TIMM = "it needs timm 0.4.5: pip install --no-deps timm==0.4.5"
REASONS = {
    "example": "it is s3prl's template for an upstream of one's own; write path/file.py:function instead",
    "mos_prediction": SCORES,
    "timit_phone": SCORES,
}
PACKAGES = {  # what a family or an entry imports that s3prl does not install
    "ast": ("timm", "0.4.5", TIMM),
    "ssast": ("timm", "0.4.5", TIMM),
    "byol_s_cvt": ("einops", "", "it needs einops: pip install einops"),
    "espnet_hubert": ("espnet", "", "it needs espnet: pip install espnet"),
    "pase": ("pase", "", "it needs PASE's own code, which upstream/pase/README.md of s3prl says how to install"),
    "vggish": ("resampy", "", "it needs resampy: pip install resampy"),
}


class HubEntry(NamedTuple):
    """An upstream of s3prl's hub, known without importing s3prl; reason says why it cannot run here, "" if it can."""

    name: str
    family: str  # its folder in s3prl
    needs_checkpoint: bool
    url: bool  # whether it knows where to download a checkpoint
    reason: str


@cache
def entries() -> dict[str, HubEntry]:
    """Every upstream of s3prl's hub by name; empty where s3prl is not installed."""
    spec = importlib.util.find_spec("s3prl")
    if spec is None or spec.origin is None:
        return {}
    root = Path(spec.origin).parent
    found: dict[str, HubEntry] = {}
    for node in parsed(root / "hub.py"):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith(".hubconf"):
            parts = node.module.split(".")[1:]
            every = entries_of(root.joinpath(*parts).with_suffix(".py"), parts[-2])
            wanted = [alias.name for alias in node.names]
            found |= {each.name: each for each in every if "*" in wanted or each.name in wanted}
    return dict(sorted(found.items()))


def parsed(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def entries_of(path: Path, family: str) -> list[HubEntry]:
    found = []
    for node in parsed(path):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            required = len(node.args.args) > len(node.args.defaults)
            found.append(entry(node.name, family, required or node.name.endswith(GIVEN)))
        if isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
            found += [entry(name, family, True) for name in names if name.endswith(GIVEN) and not name.startswith("_")]
    return found


def entry(name: str, family: str, needs_checkpoint: bool) -> HubEntry:
    url = not needs_checkpoint and family not in ("baseline", "example")
    return HubEntry(name, family, needs_checkpoint, url, REASONS.get(family) or missing(family) or missing(name))


@cache
def missing(what: str) -> str:
    """Why a family or an entry cannot run for want of a package, "" where there is nothing wanting."""
    package, release, advice = PACKAGES.get(what, ("", "", ""))
    if not package:
        return ""
    if importlib.util.find_spec(package) is None:
        return advice
    return advice if release and metadata.version(package) != release else ""


def import_timm() -> None:
    """Import timm 0.4.5 without its data sets, which need torchvision and a torch of 2021; models do not."""
    if missing("ssast") or "timm" in sys.modules:
        return
    root = Path(importlib.util.find_spec("timm").origin).parent  # type: ignore[union-attr, arg-type]
    data = ModuleType("timm.data")
    vars(data).update(runpy.run_path(str(root / "data" / "constants.py")))  # all that its models want of timm.data
    sys.modules["timm.data"] = data
    try:
        importlib.import_module("timm")
    finally:
        del sys.modules["timm.data"]
