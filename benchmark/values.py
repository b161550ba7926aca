"""Plain values that every stage exchanges: clips, trials, selections, cards, extractions, jobs and sweeps.

Nothing here acts: no audio is read, no file is opened, nothing is computed but digests and counts of what is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from benchmark.files import digest
from benchmark.tasks import Task

X = TypeVar("X")


Y = TypeVar("Y")


class Engine(Protocol):
    """Maps a module-level function over small picklable items, in order."""

    def __call__(
        self, function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = ...
    ) -> list[Y]: ...


def equal(item: Any) -> float:
    """The weight of items that take equally long."""
    return 1.0


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


class Stretch(NamedTuple):
    """Samples [first, first + samples) of a file with `rate` samples a second."""

    audio: str
    first: int
    samples: int
    rate: int


class Clip(NamedTuple):
    """An utterance that was looked over.

    digest: of its file's bytes and of where in it the stretch lies. problem: why it cannot be used, or "".
    content: digest of what its whole file sounds like, see `audio.Inspection`: it tells copies, and is part of no key.
    """

    id: str
    split: str
    labels: dict[str, str]
    stretch: Stretch
    digest: str
    problem: str
    content: str = ""

    @property
    def seconds(self) -> float:
        """Length."""
        return self.stretch.samples / self.stretch.rate if self.stretch.rate else 0.0


class Manifest(NamedTuple):
    """A corpus as plain values. digest: of everything but the paths, so a moved corpus is the same corpus."""

    corpus: str
    digest: str
    clips: list[Clip]
    trials: list[Trial]


SPLITS = ("train", "valid", "test")


class Selection(NamedTuple):
    """Clips by split in a fixed order, the trials of each split, and what was left out, by reason."""

    clips: dict[str, list[Clip]]
    trials: dict[str, list[Trial]]
    skipped: dict[str, int]

    @property
    def digest(self) -> str:
        """Of ids, labels, audio and trials: of everything that can change a score."""
        clips = {split: [[clip.id, clip.labels, clip.digest] for clip in clips] for split, clips in self.clips.items()}
        return digest([clips, self.trials])

    def targets(self, split: str, target: str) -> dict[str, str]:
        """Label by id."""
        return {clip.id: clip.labels[target] for clip in self.clips[split]}


GridPoint = tuple[float | None, int, int | None]  # of a grid: learning rate, seed, layer


@dataclass(frozen=True)
class Setup:
    """Where a run reads and writes, and how it computes.

    home: disposable files. results: precious ones. data: corpus -> folder. budget: GB for one store of frames.
    per_layer: each layer is probed alone too.
    """

    home: Path
    results: Path
    data: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    precision: str = "fp32"
    budget: float = 20.0
    limit: int | None = None
    skip_bad: bool = False
    per_layer: bool = False


class Card(NamedTuple):
    """An upstream in plain values: enough to plan with, and to tell whether features on disk are its own.

    name: the reference it was asked for by. hop, window: samples. parameters: number of weights. cost: of encoding, see
    `cards.cost_of`. origin: SHA-256 of each file that it came from by name, and the "revision" of a hub's.
    """

    name: str
    fingerprint: str
    precision: str
    sample_rate: int
    hop: int
    window: int
    layers: int
    dim: int
    summary_layers: int
    summary_dim: int
    parameters: int
    cost: dict[str, int | float | None] = {}  # noqa: RUF012 (never changed)
    origin: dict[str, str] = {}  # noqa: RUF012

    @property
    def identity(self) -> dict[str, Any]:
        """What features, and so the ids of jobs, depend on; cost and origin are facts beside it."""
        return {name: value for name, value in self._asdict().items() if name not in ("cost", "origin")}

    def frames(self, samples: int) -> int:
        """Frames of a clip of so many samples."""
        return max(0, samples - self.window) // self.hop + 1


class HeadCard(NamedTuple):
    """What planning needs to know of a head. options: what `head_args` may hold."""

    view: str
    judged_on: str
    metrics: dict[str, bool]
    trained: bool
    closed: bool
    options: list[str]


class Extraction(NamedTuple):
    """Features of some clips of a corpus by one upstream, shared by all jobs that can use them. key: cache address."""

    card: Card
    view: str
    clips: tuple[Clip, ...]
    key: str


class Job(NamedTuple):
    """One head trained once. id: hash of everything that can change its result. layer: the only one it is fed."""

    id: str
    lr: float | None
    seed: int
    layer: int | None = None

    @property
    def point(self) -> GridPoint:
        """Where in the grid it is."""
        return self.lr, self.seed, self.layer


class Sweep(NamedTuple):
    """The jobs that share task, upstream and fold, and so train side by side; those of single layers by themselves.

    content: digest of the selection. limit: clips per split, if it cut any.
    """

    task: Task
    card: Card
    head: HeadCard
    fold: str | None
    features: str
    group: str
    jobs: tuple[Job, ...]
    selection: Selection
    content: str
    limit: int | None = None

    @property
    def clips(self) -> tuple[Clip, ...]:
        """Every clip of every split once, in order of id."""
        return tuple(sorted({clip.id: clip for split in SPLITS for clip in self.selection.clips[split]}.values()))

    @property
    def by_layer(self) -> bool:
        """Whether its jobs are fed one layer each."""
        return any(job.layer is not None for job in self.jobs)
