"""Names of the upstreams in s3prl's hub, and why some cannot run here, without importing s3prl or torch."""

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

CHECKPOINT_SUFFIXES = ("_local", "_url", "_gdriveid", "_custom")  # suffixes of entries that take a checkpoint
SCORES = "it gives a score or phone posteriors of another upstream, which is no encoder; name that upstream instead"
TIMM = "it needs timm 0.4.5: pip install --no-deps timm==0.4.5"
REASONS = {
    "example": "it is s3prl's template for a new upstream; write path/file.py:function instead",
    "mos_prediction": SCORES,
    "timit_phone": SCORES,
}
PACKAGES = {  # package, release and advice by family or entry, for packages that s3prl does not install
    "ast": ("timm", "0.4.5", TIMM),
    "ssast": ("timm", "0.4.5", TIMM),
    "byol_s_cvt": ("einops", "", "it needs einops: pip install einops"),
    "espnet_hubert": ("espnet", "", "it needs espnet: pip install espnet"),
    "pase": ("pase", "", "it needs PASE's own code, which upstream/pase/README.md of s3prl says how to install"),
    "vggish": ("resampy", "", "it needs resampy: pip install resampy"),
}


class HubEntry(NamedTuple):
    """An upstream of s3prl's hub; reason says why it cannot run here, "" if it can."""

    name: str
    family: str  # its folder in s3prl
    needs_checkpoint: bool
    url: bool  # whether it knows where to download a checkpoint
    reason: str


@cache
def s3prl_entries() -> dict[str, HubEntry]:
    """Return every upstream of s3prl's hub by name, an empty dict if s3prl is not installed."""
    spec = importlib.util.find_spec("s3prl")
    if spec is None or spec.origin is None:
        return {}
    root = Path(spec.origin).parent
    by_name: dict[str, HubEntry] = {}
    for node in parsed_statements(root / "hub.py"):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith(".hubconf"):
            parts = node.module.split(".")[1:]
            entries = entries_of(root.joinpath(*parts).with_suffix(".py"), parts[-2])
            wanted = [alias.name for alias in node.names]
            by_name |= {entry.name: entry for entry in entries if "*" in wanted or entry.name in wanted}
    return dict(sorted(by_name.items()))


def parsed_statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def entries_of(path: Path, family: str) -> list[HubEntry]:
    """Return the entries that a hubconf.py of s3prl defines or imports, read from its syntax tree."""
    entries = []
    for node in parsed_statements(path):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            required = len(node.args.args) > len(node.args.defaults)
            entries.append(hub_entry(node.name, family, required or node.name.endswith(CHECKPOINT_SUFFIXES)))
        if isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
            entries += [
                hub_entry(name, family, True)
                for name in names
                if name.endswith(CHECKPOINT_SUFFIXES) and not name.startswith("_")
            ]
    return entries


def hub_entry(name: str, family: str, needs_checkpoint: bool) -> HubEntry:
    url = not needs_checkpoint and family not in ("baseline", "example")
    return HubEntry(
        name, family, needs_checkpoint, url, REASONS.get(family) or missing_package(family) or missing_package(name)
    )


@cache
def missing_package(name: str) -> str:
    """Return advice if a package that a family or an entry needs is missing or of another release, otherwise ""."""
    package, release, advice = PACKAGES.get(name, ("", "", ""))
    if not package:
        return ""
    if importlib.util.find_spec(package) is None:
        return advice
    return advice if release and metadata.version(package) != release else ""


def import_timm() -> None:
    """Import timm 0.4.5 without its data sets, which need torchvision and a torch of 2021; its models do not."""
    if missing_package("ssast") or "timm" in sys.modules:
        return
    root = Path(importlib.util.find_spec("timm").origin).parent  # type: ignore[union-attr, arg-type]
    data = ModuleType("timm.data")
    # The models import only these constants from timm.data.
    vars(data).update(runpy.run_path(str(root / "data" / "constants.py")))
    sys.modules["timm.data"] = data
    try:
        importlib.import_module("timm")
    finally:
        del sys.modules["timm.data"]
