"""Plain values that the stages exchange: clips, trials, selections, cards, extractions, jobs and sweeps.

The code in this module reads no files and computes only digests and counts of these values.
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
    """Calls a module-level function on each of many small picklable items, and returns the results in order.

    title: shown with the progress, "" for no progress. weight: relative duration of an item.
    """

    def __call__(
        self, function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = ...
    ) -> list[Y]: ...


def equal_weight(item: Any) -> float:
    """Return 1.0, the weight of items that all take equally long."""
    return 1.0


@dataclass(frozen=True)
class Utterance:
    """A labelled stretch of an audio file.

    id: unique in its corpus. audio: the file. split: "train", "valid", "test", or another name that no task reads.
    labels: label by the target of a task; several labels of one target are joined by "|".
    start, duration: seconds; a duration of None extends to the end of the file.
    """

    id: str
    audio: Path
    split: str
    labels: dict[str, str] = field(default_factory=dict)
    start: float = 0.0
    duration: float | None = None


class SplitTrial(NamedTuple):
    """A verification trial of a split: two utterance ids, and whether one speaker said both (`target`)."""

    split: str
    enroll: str
    test: str
    target: bool


class Stretch(NamedTuple):
    """Samples [first, first + samples) of an audio file with `rate` samples per second."""

    audio: str
    first: int
    samples: int
    rate: int


class Clip(NamedTuple):
    """An utterance whose audio file was inspected.

    digest: digest of the file's bytes and of the position of the stretch. problem: why it cannot be used, or "".
    content: digest of the audio of the whole file, see `audio.Inspection`. It identifies copies, and no key uses it.
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
        """The length in seconds, 0 if the audio could not be read."""
        return self.stretch.samples / self.stretch.rate if self.stretch.rate else 0.0


class Manifest(NamedTuple):
    """A corpus as plain values. digest: of everything except paths, so it does not change if the corpus is moved."""

    corpus: str
    digest: str
    clips: list[Clip]
    trials: list[SplitTrial]


SPLITS = ("train", "valid", "test")


class Selection(NamedTuple):
    """The clips of a task by split in a fixed order, its trials by split, and the numbers left out by reason."""

    clips: dict[str, list[Clip]]
    trials: dict[str, list[SplitTrial]]
    skipped: dict[str, int]

    @property
    def digest(self) -> str:
        """The digest of ids, labels, audio and trials, which are all that can change a score."""
        clips = {split: [[clip.id, clip.labels, clip.digest] for clip in clips] for split, clips in self.clips.items()}
        return digest([clips, self.trials])

    def targets(self, split: str, target: str) -> dict[str, str]:
        """Return the label of `target` by id, for the clips of a split."""
        return {clip.id: clip.labels[target] for clip in self.clips[split]}


GridPoint = tuple[float | None, int, int | None]  # learning rate, seed, layer


@dataclass(frozen=True)
class Setup:
    """The folders of a run and the options of its computation.

    home: folder of files that can be computed again. results: folder of records. data: corpora and their folders.
    budget: largest size of one store of frames, GB. limit: most clips per split. skip_bad: leave out bad clips and
    trials instead of stopping. per_layer: probe each layer alone too.
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
    """The properties of an upstream that are needed for planning, and for checking that features on disk are its own.

    name: the reference with which the user named it. hop, window: samples. parameters: number of weights. cost: cost of
    encoding, see `cost_of` in features/descriptions.py. origin: SHA-256 of each of its files by name, and the
    "revision" of files from a hub.
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
        """The fields on which features, and so the ids of jobs, depend: all except cost and origin."""
        return {name: value for name, value in self._asdict().items() if name not in ("cost", "origin")}

    def frames(self, samples: int) -> int:
        """Return the number of frames of a clip with this number of samples."""
        return max(0, samples - self.window) // self.hop + 1


class HeadCard(NamedTuple):
    """The properties of a head that are needed for planning, see `Head`. options: the keys allowed in `head_args`."""

    view: str
    judged_on: str
    metrics: dict[str, bool]
    trained: bool
    closed: bool
    options: list[str]


class Extraction(NamedTuple):
    """The features that one upstream computes for a set of clips, for all jobs that use them. key: cache address."""

    card: Card
    view: str
    clips: tuple[Clip, ...]
    key: str


class Job(NamedTuple):
    """One training of one head.

    id: hash of everything that can change its result. layer: the single layer that it uses, None for the layer sum.
    """

    id: str
    lr: float | None
    seed: int
    layer: int | None = None

    @property
    def point(self) -> GridPoint:
        """Learning rate, seed and layer of the job."""
        return self.lr, self.seed, self.layer


class Sweep(NamedTuple):
    """The jobs with one task, upstream and fold, which train together; jobs of single layers are a sweep of their own.

    group: hash of what the jobs have in common. content: digest of the selection. limit: most clips per split, None if
    no clips were left out because of it.
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
        """All clips of all splits without duplicates, in the order of their ids."""
        return tuple(sorted({clip.id: clip for split in SPLITS for clip in self.selection.clips[split]}.values()))

    @property
    def by_layer(self) -> bool:
        """Whether each of its jobs uses a single layer."""
        return any(job.layer is not None for job in self.jobs)
