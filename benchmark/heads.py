"""The cards of heads, cached so that planning does not import torch."""

from __future__ import annotations

import inspect
from typing import Any

from benchmark.errors import unknown_name
from benchmark.files import cached_json, code_stamps, digest
from benchmark.values import HeadCard, Setup


def head_card(name: str, setup: Setup) -> HeadCard:
    """Return the card of a head, from a cache until the code in `downstreams` changes. Raises UserError if unknown."""
    key = digest([code_stamps("downstreams"), HeadCard._fields])
    cards = cached_json(setup.home / "cards" / "heads.json", key, _head_cards)
    if name not in cards:
        raise unknown_name("head", name, cards)
    return HeadCard(*cards[name])


def _head_cards() -> dict[str, list[Any]]:
    from downstreams import HEADS

    return {
        name: [head.view, head.judged_on, dict(head.metrics), head.trained, head.closed, _options(head)]
        for name, head in HEADS.items()
    }


def _options(head: type) -> list[str]:
    return [name for name in inspect.signature(head).parameters if name not in ("layers", "dim", "targets")]
