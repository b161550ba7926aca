"""Requests of the commands that train encoders, and the plans made from them before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.files import digest
from benchmark.pretraining.label_weights import LabelWeights
from benchmark.pretraining.segments import SegmentOrder
from benchmark.pretraining.sources import TrainingAudio
from benchmark.tasks import Task
from benchmark.values import Setup

if TYPE_CHECKING:
    from upstreams.pretraining.aam_softmax import Tuning
    from upstreams.pretraining.methods import Method, Recipe


LARGEST = 50  # default greatest number of clips in a cluster that is kept
NEAREST = 0.75  # default share of a cluster's clips that is kept: those nearest to its centre


@dataclass(frozen=True)
class PretrainingRequest:
    """The options of `bench pretrain`; None stands for the default of the method's recipe.

    corpus: name of a registered corpus or of one in `data`, or a folder. hours: amount of audio to train on, instead
    of steps. accumulate: number of parts that a step is computed in. half: whether weights are stored in half
    precision. readers: number of threads that read audio; 0: the number of cores, but at most 16. save_every: seconds
    between states. metadata: weights of the kinds of labels to learn from, () for none; None: the method's default.
    only: a kind of label; clips without one are left out. strength: factor of the loss term on labels.
    """

    method: str
    corpus: str
    home: Path
    out: Path | None = None
    size: str = "mini"
    seed: int = 0
    steps: int | None = None
    hours: float | None = None
    batch: int | None = None
    lr: float | None = None
    precision: str | None = None
    accumulate: int = 1
    half: bool = False
    data: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    readers: int = 0
    save_every: float | None = None
    skip_bad: bool = False
    metadata: LabelWeights | None = None
    only: str | None = None
    strength: float | None = None

    @property
    def output(self) -> Path:
        """The path of the weights, relative to the current folder if the user wrote it so."""
        letters = (letter if letter.isalnum() else "-" for letter in f"{self.method}-{self.size}-{self.seed}")
        return self.out or Path("pretrained") / f"{''.join(letters)}.safetensors"


class Training(NamedTuple):
    """The plan of a training, complete before its first step.

    identity: the settings that decide the weights, by name. metadata: weights of the kinds of labels to learn from.
    remarks: sentences about these labels for the user.
    """

    request: PretrainingRequest
    out: Path
    audio: TrainingAudio
    method: Method
    recipe: Recipe
    segments: SegmentOrder
    identity: dict[str, Any]
    metadata: dict[str, float]
    remarks: list[str]


@dataclass(frozen=True)
class PseudoLabelRequest:
    """The options of `bench pseudo-label`; None stands for a default that depends on the corpus or the encoder's size.

    start: file of weights. training: corpus, output and how each round trains; its method is the upstream that reads
    the weights. clusters: number of clusters. smallest, largest: number of clips in a cluster that is kept. nearest:
    share of its clips that is kept. scale, margin: parameters of AAM-softmax. verify: a task with trials, which is
    scored before and after each round for information only. protocol: the file of that task, if it is not built in.
    """

    start: Path
    training: PretrainingRequest
    rounds: int = 1
    clusters: int | None = None
    smallest: int | None = None
    largest: int = LARGEST
    nearest: float = NEAREST
    scale: float | None = None
    margin: float | None = None
    verify: Task | None = None
    protocol: Path | None = None


class Refinement(NamedTuple):
    """The plan of the rounds, complete before the first one.

    out: path of the final weights. clusters, smallest: as in PseudoLabelRequest, with defaults filled in. identity: the
    settings that decide the weights after a round, besides its number.
    """

    request: PseudoLabelRequest
    out: Path
    audio: TrainingAudio
    clusters: int
    smallest: int
    tuning: Tuning
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the upstream that reads the weights."""
        return self.request.training.method

    @property
    def setup(self) -> Setup:
        """The setup for extracting embeddings and scoring trials."""
        training = self.request.training
        results = training.home / "pseudo_labels"
        return Setup(training.home, results, training.data, training.device, skip_bad=training.skip_bad)

    def weights(self, number: int) -> Path:
        """The path of the weights after round `number`; for 0, of the initial weights."""
        return self.out.with_suffix(".rounds") / f"{number}.safetensors" if number else self.request.start

    def seed(self, number: int) -> int:
        """The random seed of round `number`."""
        return int(digest([self.request.training.seed, number])[:8], 16)
