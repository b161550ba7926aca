"""The metadata loss of MASR (Raj et al., 2023): a triplet loss on utterance vectors for any pre-training method.

Only the abstract of the paper is public: sources of knowledge are pair-wise similarity matrices of samples, which a
hard-mining loss uses in addition to any self-supervised loss. How sources are combined, the distance and the mining
are our interpretation, after the triplets of its predecessor LASR (Vashishth et al., 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from upstreams.base import UpstreamError
from upstreams.pretraining.methods import UNKNOWN, AudioBatch, Method, Step
from upstreams.safety.allow_list import short_repr

VERSION = 1  # raised by each commit that changes the value of the loss
MARGIN = 0.3  # cosine distance between clips of similarity 1 and of similarity 0
STRENGTH = 0.3  # weight of the loss relative to the method's own; with 1, masked prediction does not begin to learn
RAMP = 0.15  # share of the training over which the weight rises from 0: early, untrained vectors would collapse
SMALLEST = 1e-5  # variance added in the standardisation


class WithMetadata(Method):
    """A method with an additional loss that brings utterance vectors of clips with similar metadata closer together.

    The loss is that of the method, reported as "own", plus strength * `triplet_loss`, whose weight rises linearly over
    the first 15 % of the training. The term "paired" is the share of vectors that have a pair to be compared with.
    Pairs are formed within a micro-batch. Everything else is delegated to the method.

    weights: by source, where a source is a kind of label; language families are a further kind. Raises UpstreamError
    for weights that are not positive, and in `forward` for batches without labels of one of the kinds.
    """

    def __init__(
        self, method: Method, weights: Mapping[str, float], margin: float = MARGIN, strength: float = STRENGTH
    ) -> None:
        super().__init__()
        refuse_impossible_weights(weights, margin, strength)
        self.method, self.margin, self.strength = method, margin, strength
        self.metadata = dict(weights)
        self.sample_rate, self.recipe, self.origin = method.sample_rate, method.recipe, method.origin
        self.version = method.version + VERSION  # rises when either rises

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        self.method.prepare(batches)

    def forward(self, batch: AudioBatch, done: float) -> Step:
        terms, vectors = self.method(batch, done)
        alike = similarity(self.labels(batch, len(vectors)), self.metadata)
        with torch.autocast(vectors.device.type, enabled=False):
            loss, paired = triplet_loss(vectors.float(), alike, self.margin)
        own, strength = terms["loss"], self.strength * min(done / RAMP, 1.0)
        return Step({**terms, "loss": own + strength * loss, "own": own, "triplet": loss, "paired": paired}, vectors)

    def labels(self, batch: AudioBatch, number: int) -> dict[str, Tensor]:
        """Return the labels of `number` vectors by kind, one vector for each view of each clip."""
        absent = [kind for kind in self.metadata if kind not in batch.labels]
        if absent:
            raise UpstreamError(f"the clips have no labels '{absent[0]}'; leave it out of the metadata to learn from")
        return {kind: batch.labels[kind].repeat(number // len(batch.lengths)) for kind in self.metadata}

    def stepped(self, done: float) -> None:
        self.method.stepped(done)

    def exported(self) -> dict[str, Tensor]:
        return self.method.exported()


def refuse_impossible_weights(weights: Mapping[str, float], margin: float, strength: float) -> None:
    for kind, weight in weights.items():
        if not 0 < weight < math.inf:
            raise UpstreamError(f"the weight of '{kind}' is {short_repr(weight)}; it must be above 0, or leave it out")
    if math.isinf(sum(weights.values())):
        raise UpstreamError(f"the weights of {' and '.join(weights)} are too large to be added up; give smaller ones")
    if not weights:
        raise UpstreamError("there is no metadata to learn from; name kinds of labels, such as language=1")
    if not (0 <= margin <= 2 and 0 <= strength < math.inf):
        raise UpstreamError(
            f"margin and strength of metadata are {short_repr(margin)} and {short_repr(strength)}; a margin of "
            "cosine distances is from 0 to 2, a strength 0 or more"
        )


def similarity(labels: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the similarity of clips (N, N) in [0, 1]: the weighted share of sources with equal labels.

    Only sources for which both clips have labels count. The result is NaN if there are none, and on the diagonal.
    labels: (N,) by source, UNKNOWN if a clip has none.
    """
    total, known = [], []
    for kind, weight in weights.items():
        labelled = labels[kind] != UNKNOWN
        both = (labelled[:, None] & labelled).double() * weight
        known.append(both)
        total.append(both * (labels[kind][:, None] == labels[kind]))
    alike = (torch.stack(total).sum(0) / torch.stack(known).sum(0)).round(decimals=9)  # so that 0.1 + 0.2 equals 0.3
    return alike.fill_diagonal_(math.nan)


def triplet_loss(vectors: Tensor, alike: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the mean violation over the vectors (N, D) that have a pair, and the share of such vectors, each ().

    Let S be the similarity `alike` (N, N) and d the cosine distance after each channel is standardised over the
    vectors (without this, all vectors collapse to one). The violation of an anchor i is

        mean over p of max(0, max over n with S_in < S_ip of margin (S_ip - S_in) + d_ip - d_in)

    over all p that are more similar to i than at least one n, each compared with its hardest n. This is the batch-hard
    loss (Hermans et al., 2017) if each clip has one positive in one source. With more positives, using the hardest p
    alone kept masked prediction from learning. Pairs with S = NaN are ignored; without any pair the loss is 0.
    """
    directions = F.normalize(standardized(vectors), dim=1)
    scores = 1.0 - directions @ directions.T + margin * alike.nan_to_num().to(vectors.dtype)
    violations, compared = hardest(scores, alike)
    number = compared.sum(1)
    paired = number > 0
    loss = (violations.sum(1) / number.clamp(min=1)).sum() / paired.sum().clamp(min=1)
    return loss, paired.float().mean()


def standardized(vectors: Tensor) -> Tensor:
    """Return vectors (N, D) with zero mean and unit variance in each channel."""
    centered = vectors - vectors.mean(0)
    return centered * torch.rsqrt(centered.square().mean(0) + SMALLEST)


def hardest(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much each score (N, N) exceeds the least score of the less similar clips of its row, at least 0.

    The second result is whether there are less similar clips (N, N). Both are sorted by similarity within each row, so
    that the least score is a running minimum, which takes N^2 log N steps instead of N^3.
    """
    ranked, order = alike.nan_to_num(math.inf).sort(dim=1)
    scores, known = scores.gather(1, order), ~ranked.isinf()
    lowest = scores.masked_fill(~known, math.inf).cummin(dim=1).values
    less = torch.searchsorted(ranked, ranked)  # number of less similar clips in the row
    compared = known & (less > 0)
    before = lowest.gather(1, (less - 1).clamp(min=0))
    return (scores - before).masked_fill(~compared, 0.0).relu(), compared
