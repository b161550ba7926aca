"""What planning needs to know of each head, looked up once and kept without importing torch again."""

from __future__ import annotations

import inspect
from typing import Any

from benchmark.errors import unknown
from benchmark.files import code_stamps, digest, remembered
from benchmark.values import HeadCard, Setup


def head_card(name: str, setup: Setup) -> HeadCard:
    """What planning needs to know of a head, without importing torch every time."""
    key = digest([code_stamps("downstreams"), HeadCard._fields])
    table = remembered(setup.home / "cards" / "heads.json", key, _head_cards)
    if name not in table:
        raise unknown("head", name, table)
    return HeadCard(*table[name])


def _head_cards() -> dict[str, list[Any]]:
    from downstreams import HEADS

    return {
        name: [head.view, head.judged_on, dict(head.metrics), head.trained, head.closed, _options(head)]
        for name, head in HEADS.items()
    }


def _options(head: type) -> list[str]:
    return [name for name in inspect.signature(head).parameters if name not in ("layers", "dim", "targets")]
