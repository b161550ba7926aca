"""Corpora: one generator each, from a folder of audio to plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmark.values import Engine, Trial, Utterance

Generator = Callable[[Path], Iterator[Utterance | Trial]]


@dataclass(frozen=True)
class Corpus:
    """generate: reads a folder. make: writes the audio into the folder first, for corpora that need no download."""

    name: str
    generate: Generator
    make: Callable[[Path, Engine], None] | None = None

    @property
    def datasheet(self) -> str:
        """Licence, source, size and expected tree."""
        return (self.generate.__doc__ or "").strip()


CORPORA: dict[str, Corpus] = {}
MODULES = ("tiny", "fsdd")


def corpus(make: Callable[[Path, Engine], None] | None = None) -> Callable[[Generator], Generator]:
    """Register a generator under its function's name."""

    def register(generate: Generator) -> Generator:
        name = getattr(generate, "__name__", "")
        CORPORA[name] = Corpus(name, generate, make)
        return generate

    return register


def corpora() -> dict[str, Corpus]:
    """Every registered corpus by name."""
    for module in MODULES:
        import_module(f"benchmark.corpora.{module}")
    return CORPORA
