"""Cards of upstreams: shapes, fingerprint, cost and origin, computed once and cached under the home folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from benchmark.environment import cores, device_name, package_versions
from benchmark.files import PACKAGES, cached_json, code_stamps, digest, stamp
from benchmark.values import Card, Setup
from upstreams import FAMILIES, is_user_file, split_reference

WEIGHTS = PACKAGES / "upstreams" / "weights"  # NAME.safetensors of the registered names whose weights are shipped


def describe(name: str, setup: Setup) -> Card:
    """Load an upstream, check that it runs and return its card, which is cached until one of its files changes."""
    path = setup.home / "cards" / f"{digest([name, setup.precision])[:16]}.json"
    sources = [stamp(path) for path in local_files(name)]
    key = digest([name, setup.precision, Card._fields, code_stamps("upstreams"), sources, package_versions()])
    cacheable = bool(sources) or (name.endswith("@random") and not is_user_file(name))
    value = cached_json(
        path, key, lambda: list(_describe(name, setup.precision)), lambda card: cacheable or _weightless(card)
    )
    card = Card(*value)
    return card._replace(cost=cost_of(card, setup))


def _weightless(card: list[Any]) -> bool:
    """Whether the features depend on the code of this project alone: no weights, and no file of the user's."""
    return Card(*card).parameters == 0 and not is_user_file(Card(*card).name)


def _describe(name: str, precision: str) -> Card:
    from benchmark.features.encoding import load_upstream, summary_shape
    from upstreams.base import fingerprint

    upstream = load_upstream(name, "cpu", "fp32")
    summary_layers, summary_dim = summary_shape(upstream, name)
    return Card(
        name, fingerprint(upstream), precision, upstream.sample_rate, upstream.hop, upstream.window, upstream.layers,
        upstream.dim, summary_layers, summary_dim, sum(weight.numel() for weight in upstream.parameters()),
        origin=dict(upstream.origin),
    )  # fmt: skip


def local_files(reference: str) -> list[Path]:
    """Return the local files that a reference names: checkpoints, folders' files, argument values, shipped weights.

    The list is empty for a user's own file.py:function, which may read any file.
    """
    plain = reference.removesuffix("@random")
    family, colon, rest = plain.partition(":")
    if colon and family in FAMILIES:
        return family_files(family, rest)
    if is_user_file(plain):
        return []
    name, file, _ = split_reference(plain)
    paths = [Path(os.path.expanduser(file or "")), WEIGHTS / f"{name}.safetensors"]
    return [path for path in paths if os.path.isfile(path)]


def family_files(family: str, rest: str) -> list[Path]:
    """Return the local files in the part of a reference after FAMILY:, and those in the folders it names."""
    named, query = rest, ""
    if family == "s3prl":
        _, file, query = split_reference(rest)
        named = file or ""
    values = [unquote(pair.partition("=")[2]) for pair in query.split("&")]
    paths = [Path(os.path.expanduser(text)) for text in (named, *values) if text]
    candidates = [file for path in paths for file in (sorted(path.rglob("*")) if os.path.isdir(path) else [path])]
    return [path for path in candidates if os.path.isfile(path)]


def cost_of(card: Card, setup: Setup) -> dict[str, int | float | None]:
    """Return the cost of encoding on this machine, measured once; see `upstreams.contract.cost`.

    real_time_factor is computing time over duration of the audio.
    """
    machine = [device_name(setup.device), cores(), os.environ.get("OMP_NUM_THREADS")]
    key = digest([card.fingerprint, setup.precision, machine, package_versions()])
    path = setup.home / "cards" / f"{key[:16]}-cost.json"
    return dict(cached_json(path, key, lambda: _measure(card, setup)))


def _measure(card: Card, setup: Setup) -> dict[str, int | float | None]:
    import torch

    from benchmark.features.encoding import load_upstream
    from upstreams.contract.cost import macs_per_second, real_time_factor

    upstream = load_upstream(card.name, setup.device, setup.precision)
    cost: dict[str, int | float | None] = {"parameters": card.parameters}
    for name, measure in (("macs_per_second", macs_per_second), ("real_time_factor", real_time_factor)):
        cost[name] = None
        with suppress(Exception):  # a run does not need the cost, and torch's counter cannot trace all code
            cost[name] = float(f"{measure(upstream):.4g}")
    return cost | {"threads": torch.get_num_threads()}
