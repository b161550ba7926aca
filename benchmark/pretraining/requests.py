"""What the commands that train encoders were asked for, and what is settled before their first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.files import digest
from benchmark.pretraining.label_weights import Weights
from benchmark.pretraining.segments import SegmentOrder
from benchmark.pretraining.sources import TrainingAudio
from benchmark.tasks import Task
from benchmark.values import Setup

if TYPE_CHECKING:
    from upstreams.pretraining.aam_softmax import Tuning
    from upstreams.pretraining.methods import Method, Recipe


LARGEST = 50  # clips in a cluster that is kept, at most
NEAREST = 0.75  # share of a cluster that is kept


@dataclass(frozen=True)
class PretrainingRequest:
    """What `bench pretrain` was asked for; None stands for what the method's recipe says.

    corpus: name of a registered one or of one in `data`, or a folder. hours: of audio to hear, in place of steps.
    accumulate: parts of a step. half: weights are stored in half precision. readers: threads that read audio; 0: as
    many as there are cores, but 16 at most. save_every: seconds. metadata: weights of the kinds of labels to learn
    from, () for none; None: those that the method learns from by itself. only: kind of label without which clips are
    left out. strength: of the term on labels beside the method's own.
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
    metadata: Weights | None = None
    only: str | None = None
    strength: float | None = None

    @property
    def output(self) -> Path:
        """Where the weights go, as the user would write it."""
        letters = (letter if letter.isalnum() else "-" for letter in f"{self.method}-{self.size}-{self.seed}")
        return self.out or Path("pretrained") / f"{''.join(letters)}.safetensors"


class Training(NamedTuple):
    """All that is settled before the first step.

    identity: what decides the weights, by name. metadata: weights of the kinds of labels that are learnt from. remarks:
    what is to be told of them.
    """

    request: PretrainingRequest
    out: Path
    pool: TrainingAudio
    method: Method
    recipe: Recipe
    crops: SegmentOrder
    identity: dict[str, Any]
    metadata: dict[str, float]
    remarks: list[str]


@dataclass(frozen=True)
class PseudoLabelRequest:
    """What `bench pseudo-label` was asked for; None stands for what follows from the corpus or the encoder's size.

    start: file of weights. training: corpus, output and how each round trains; its method is the upstream that reads
    the weights. clusters: to make. smallest, largest: clips in one that is kept. nearest: share of it that is. scale,
    margin: of the softmax. verify: a task judged on trials that is told before and after; nothing depends on it.
    protocol: the file that names it, if it is not built in.
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
    """All that is settled before the first round. out: weights to be. clusters, smallest: as in Request, settled.

    identity: what decides the weights after a round, beside its number.
    """

    request: PseudoLabelRequest
    out: Path
    pool: TrainingAudio
    clusters: int
    smallest: int
    tuning: Tuning
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the upstream that reads the weights."""
        return self.request.training.method

    @property
    def setup(self) -> Setup:
        """Where embeddings are kept, and trials judged."""
        asked = self.request.training
        return Setup(asked.home, asked.home / "pseudo_labels", asked.data, asked.device, skip_bad=asked.skip_bad)

    def weights(self, number: int) -> Path:
        """Those after a round; before the first one those that it starts from."""
        return self.out.with_suffix(".rounds") / f"{number}.safetensors" if number else self.request.start

    def seed(self, number: int) -> int:
        """Of all that is random in a round."""
        return int(digest([self.request.training.seed, number])[:8], 16)
