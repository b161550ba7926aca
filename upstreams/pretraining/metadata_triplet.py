"""MASR's use of metadata (Raj et al., 2023): a triplet term on utterance vectors that any method of pre-training takes.

Only the paper's abstract is public: sources of knowledge are pair-wise similarity matrices of samples, which a
hard-mining loss uses beside any self-supervised one. The rest is our reading, after the triplets of its predecessor
LASR (Vashishth et al., 2023): how sources are combined, the distance, and what is mined.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from upstreams.base import UpstreamError
from upstreams.pretraining.methods import UNKNOWN, AudioBatch, Method, Step
from upstreams.safety.allow_list import shown

VERSION = 1  # raised by the commit that changes what the term comes to
MARGIN = 0.3  # cosine distance between clips that are alike in all and those alike in nothing
STRENGTH = 0.3  # of the term beside the method's own; with 1, masked prediction never begins to learn
RAMP = 0.15  # share of the training over which the term is brought in: vectors that mean little yet would collapse
SMALLEST = 1e-5  # variance, of which less is not blown up to one


class WithMetadata(Method):
    """A method whose utterance vectors are also to be near each other where their clips' metadata is alike.

    Its loss is that of the method, shown as "own", plus strength * `triplet`, brought in over the first 15 % of the
    training; "paired" is the share of vectors that have others to be compared with. All else is the method's. Pairs
    are within a micro-batch.

    weights: of sources, which are kinds of labels; families of languages are one more kind. Raises UpstreamError for
    weights that are not positive, and later for batches without labels of such a kind.
    """

    def __init__(
        self, method: Method, weights: Mapping[str, float], margin: float = MARGIN, strength: float = STRENGTH
    ) -> None:
        super().__init__()
        refuse_impossible(weights, margin, strength)
        self.method, self.margin, self.strength = method, margin, strength
        self.metadata = dict(weights)
        self.sample_rate, self.recipe, self.origin = method.sample_rate, method.recipe, method.origin
        self.version = method.version + VERSION  # rises with either

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        self.method.prepare(batches)

    def forward(self, batch: AudioBatch, done: float) -> Step:
        terms, vectors = self.method(batch, done)
        alike = similarity(self.labels(batch, len(vectors)), self.metadata)
        with torch.autocast(vectors.device.type, enabled=False):
            loss, paired = triplet(vectors.float(), alike, self.margin)
        own, brought_in = terms["loss"], self.strength * min(done / RAMP, 1.0)
        return Step({**terms, "loss": own + brought_in * loss, "own": own, "triplet": loss, "paired": paired}, vectors)

    def labels(self, batch: AudioBatch, number: int) -> dict[str, Tensor]:
        """Those of each of the vectors, of which there is one for each view of a clip."""
        absent = [kind for kind in self.metadata if kind not in batch.labels]
        if absent:
            raise UpstreamError(f"the clips have no labels '{absent[0]}'; leave it out of the metadata to learn from")
        return {kind: batch.labels[kind].repeat(number // len(batch.lengths)) for kind in self.metadata}

    def stepped(self, done: float) -> None:
        self.method.stepped(done)

    def exported(self) -> dict[str, Tensor]:
        return self.method.exported()


def refuse_impossible(weights: Mapping[str, float], margin: float, strength: float) -> None:
    for kind, weight in weights.items():
        if not 0 < weight < math.inf:
            raise UpstreamError(f"the weight of '{kind}' is {shown(weight)}; it must be above 0, or leave it out")
    if math.isinf(sum(weights.values())):
        raise UpstreamError(f"the weights of {' and '.join(weights)} are too large to be added up; give smaller ones")
    if not weights:
        raise UpstreamError("there is no metadata to learn from; name kinds of labels, such as language=1")
    if not (0 <= margin <= 2 and 0 <= strength < math.inf):
        raise UpstreamError(
            f"margin and strength of metadata are {shown(margin)} and {shown(strength)}; a margin of cosine distances "
            "is from 0 to 2, a strength 0 or more"
        )


def similarity(labels: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """How alike clips are (N, N), in [0, 1]: the weighted share of sources, known of both, that say they are the same.

    labels: numbers (N,) by source, UNKNOWN where there is none. NaN where no source is known of both, and on the
    diagonal.
    """
    total, known = [], []
    for kind, weight in weights.items():
        there = labels[kind] != UNKNOWN
        both = (there[:, None] & there).double() * weight
        known.append(both)
        total.append(both * (labels[kind][:, None] == labels[kind]))
    alike = (torch.stack(total).sum(0) / torch.stack(known).sum(0)).round(decimals=9)  # 0.1 + 0.2 is as much as 0.3
    return alike.fill_diagonal_(math.nan)


def triplet(vectors: Tensor, alike: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Mean violation over the vectors (N, D) that have any pair, and their share among all, each ().

    With S how `alike` (N, N) two are, and d their cosine distance after each channel was brought to zero mean and unit
    variance over the vectors, without which they collapse into one, that of an anchor i is

        mean over p of max(0, max over n with S_in < S_ip of margin (S_ip - S_in) + d_ip - d_in)

    over all p that are more alike than some n is, each against the hardest of these; the batch-hard loss (Hermans et
    al., 2017) where every clip has one like it in one source. With more, the hardest p alone kept masked prediction
    from learning anything. Pairs of which S is NaN take no part; without any, the loss is 0.
    """
    directions = F.normalize(standardized(vectors), dim=1)
    scores = 1.0 - directions @ directions.T + margin * alike.nan_to_num().to(vectors.dtype)
    violations, compared = hardest(scores, alike)
    number = compared.sum(1)
    paired = number > 0
    loss = (violations.sum(1) / number.clamp(min=1)).sum() / paired.sum().clamp(min=1)
    return loss, paired.float().mean()


def standardized(vectors: Tensor) -> Tensor:
    """(N, D) with zero mean and unit variance of each channel."""
    centered = vectors - vectors.mean(0)
    return centered * torch.rsqrt(centered.square().mean(0) + SMALLEST)


def hardest(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """How much each score of a row of (N, N) exceeds the least score of those less alike, 0 if it does not, (N, N).

    Beside it where there are any less alike (N, N); both are in the order of likeness, in which the least score before
    a place is a running minimum: N^2 log N steps, not N^3.
    """
    ranked, order = alike.nan_to_num(math.inf).sort(dim=1)
    scores, known = scores.gather(1, order), ~ranked.isinf()
    lowest = scores.masked_fill(~known, math.inf).cummin(dim=1).values
    less = torch.searchsorted(ranked, ranked)  # how many of the row are less alike
    compared = known & (less > 0)
    before = lowest.gather(1, (less - 1).clamp(min=0))
    return (scores - before).masked_fill(~compared, 0.0).relu(), compared
