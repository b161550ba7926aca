"""Cards: what planning needs to know of an upstream, what it costs and where it came from, looked up once."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from benchmark.environment import cores, device_name, installed
from benchmark.files import PACKAGES, code_stamps, digest, remembered, stamp
from benchmark.values import Card, Setup
from upstreams import FAMILIES, in_own_file, parted

WEIGHTS = PACKAGES / "upstreams" / "weights"  # NAME.safetensors of the registered names whose weights are shipped


def describe(name: str, setup: Setup) -> Card:
    """Load an upstream, see that it runs, and keep its card for as long as the files behind it stay the same."""
    kept = setup.home / "cards" / f"{digest([name, setup.precision])[:16]}.json"
    sources = [stamp(path) for path in files(name)]
    key = digest([name, setup.precision, Card._fields, code_stamps("upstreams"), sources, installed()])
    lasting = bool(sources) or (name.endswith("@random") and not in_own_file(name))
    value = remembered(
        kept, key, lambda: list(_describe(name, setup.precision)), lambda card: lasting or _weightless(card)
    )
    card = Card(*value)
    return card._replace(cost=cost_of(card, setup))


def _weightless(card: list[Any]) -> bool:
    """Nothing but this package's code makes its features, unless a user's file does."""
    return Card(*card).parameters == 0 and not in_own_file(Card(*card).name)


def _describe(name: str, precision: str) -> Card:
    from benchmark.features.encoding import summary_shape, upstream_of
    from upstreams.base import fingerprint

    upstream = upstream_of(name, "cpu", "fp32")
    summary_layers, summary_dim = summary_shape(upstream, name)
    return Card(
        name, fingerprint(upstream), precision, upstream.sample_rate, upstream.hop, upstream.window, upstream.layers,
        upstream.dim, summary_layers, summary_dim, sum(weight.numel() for weight in upstream.parameters()),
        origin=dict(upstream.origin),
    )  # fmt: skip


def files(reference: str) -> list[Path]:
    """The local files behind a reference: a checkpoint, those in its folder, values of arguments, shipped weights.

    None for a user's own file.py:function, which may read whatever it likes.
    """
    plain = reference.removesuffix("@random")
    family, colon, rest = plain.partition(":")
    if colon and family in FAMILIES:
        return files_of_family(family, rest)
    if in_own_file(plain):
        return []
    name, file, _ = parted(plain)
    paths = [Path(os.path.expanduser(file or "")), WEIGHTS / f"{name}.safetensors"]
    return [path for path in paths if os.path.isfile(path)]


def files_of_family(family: str, rest: str) -> list[Path]:
    named, query = rest, ""
    if family == "s3prl":
        _, file, query = parted(rest)
        named = file or ""
    values = [unquote(pair.partition("=")[2]) for pair in query.split("&")]
    paths = [Path(os.path.expanduser(text)) for text in (named, *values) if text]
    found = [each for path in paths for each in (sorted(path.rglob("*")) if os.path.isdir(path) else [path])]
    return [path for path in found if os.path.isfile(path)]


def cost_of(card: Card, setup: Setup) -> dict[str, int | float | None]:
    """What encoding costs on this machine, measured once: see `contract.cost`; real_time_factor is time / audio."""
    machine = [device_name(setup.device), cores(), os.environ.get("OMP_NUM_THREADS")]
    key = digest([card.fingerprint, setup.precision, machine, installed()])
    kept = setup.home / "cards" / f"{key[:16]}-cost.json"
    return dict(remembered(kept, key, lambda: _measure(card, setup)))


def _measure(card: Card, setup: Setup) -> dict[str, int | float | None]:
    import torch

    from benchmark.features.encoding import upstream_of
    from upstreams.contract.cost import macs_per_second, real_time_factor

    upstream = upstream_of(card.name, setup.device, setup.precision)
    cost: dict[str, int | float | None] = {"parameters": card.parameters}
    for name, measure in (("macs_per_second", macs_per_second), ("real_time_factor", real_time_factor)):
        cost[name] = None
        with suppress(Exception):  # a run does not depend on it: code may be such that torch's counter cannot look in
            cost[name] = float(f"{measure(upstream):.4g}")
    return cost | {"threads": torch.get_num_threads()}
