"""Heads: features in, predictions and scores out. One file per kind of problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstreams.base import Head

_HOMES = {
    "classification": "classification:Classification",
    "tagging": "tagging:Tagging",
    "transcription": "transcription:Transcription",
    "cosine": "verification:Cosine",
    "xvector": "verification:XVector",
}


class _Heads(Mapping[str, "type[Head]"]):
    """Classes by name, imported when asked for: listing them does not import torch."""

    def __getitem__(self, name: str) -> type[Head]:
        module, _, kind = _HOMES[name].partition(":")
        return getattr(import_module(f"downstreams.{module}"), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


HEADS: Mapping[str, type[Head]] = _Heads()
