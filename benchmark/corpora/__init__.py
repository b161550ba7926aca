"""Corpora: one generator each, from a folder of audio to plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")
Engine = Callable[[Callable[[X], Y], Iterable[X]], list[Y]]  # `map`, in process or on many


@dataclass(frozen=True)
class Utterance:
    """A labelled stretch of audio.

    id: unique in its corpus. audio: the file. split: "train", "valid", "test", or another name that no task reads.
    labels: task target -> label; several labels of one target are joined by "|".
    start, duration: seconds; a duration of None reaches to the end of the file.
    """

    id: str
    audio: Path
    split: str
    labels: dict[str, str] = field(default_factory=dict)
    start: float = 0.0
    duration: float | None = None


class Trial(NamedTuple):
    """Whether one speaker said both utterances, a question of the split's trial list."""

    split: str
    enroll: str
    test: str
    target: bool


Generator = Callable[[Path], Iterator["Utterance | Trial"]]


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
