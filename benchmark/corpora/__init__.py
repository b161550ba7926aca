"""Corpora: for each, a generator that reads a folder of audio and yields utterances and trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmark.values import Engine, SplitTrial, Utterance

CorpusReader = Callable[[Path], Iterator[Utterance | SplitTrial]]


@dataclass(frozen=True)
class Corpus:
    """A corpus.

    generate: yields the utterances and trials of a folder. make: writes the audio into the folder first, for corpora
    that need no download.
    """

    name: str
    generate: CorpusReader
    make: Callable[[Path, Engine], None] | None = None

    @property
    def datasheet(self) -> str:
        """The docstring of `generate`: a title in the first line, then licence, source, size and folder tree."""
        return (self.generate.__doc__ or "").strip()


CORPORA: dict[str, Corpus] = {}
MODULES = ("tiny", "fsdd")


def register_corpus(make: Callable[[Path, Engine], None] | None = None) -> Callable[[CorpusReader], CorpusReader]:
    """Register a generator under its function's name."""

    def register(generate: CorpusReader) -> CorpusReader:
        name = getattr(generate, "__name__", "")
        CORPORA[name] = Corpus(name, generate, make)
        return generate

    return register


def registered_corpora() -> dict[str, Corpus]:
    """Return every registered corpus by name."""
    for module in MODULES:
        import_module(f"benchmark.corpora.{module}")
    return CORPORA
