"""Are two recordings of one speaker? Embeddings compared by cosine, untrained or from an x-vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from downstreams.base import Head, HeadError, LayerSum, Trial, lengths_of, masked_mean, valid
from downstreams.metrics import eer, min_dcf


class Verification(Head):
    """What heads judged on trials share: one embedding (E,) per clip, the cosine of two of them as the score."""

    judged_on = "trials"
    metrics: ClassVar[Mapping[str, bool]] = {"eer": False, "min_dcf": False}

    @classmethod
    def score(
        cls, predictions: Mapping[str, Any], references: Sequence[Trial]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """EER in percent, minDCF normalised at prior 0.01, and per trial both ids, the truth and the cosine.

        predictions: embedding (E,) by utterance id.
        """
        scores, targets = cosines(predictions, references), [trial.target for trial in references]
        outcomes = [
            {"enroll": trial.enroll, "test": trial.test, "target": trial.target, "score": score}
            for trial, score in zip(references, scores.tolist(), strict=True)
        ]
        return {"eer": 100 * eer(scores, targets).rate, "min_dcf": min_dcf(scores, targets)}, outcomes


class Cosine(Verification):
    """Cosine of the summaries of one layer, without training.

    The layer is that with the lowest EER on the validation trials, the lower one if equal.
    """

    view = "summary"
    trained = False
    mean: Tensor

    def __init__(
        self, layers: int, dim: int, targets: Sequence[str], center: bool = False, layer: int | None = None
    ) -> None:
        """center: subtract each layer's mean over the training clips; layer: use this one instead of choosing."""
        super().__init__(layers, dim, targets)
        self.center, self.layer = center, layer
        self.layer_sum = LayerSum(layers).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(layers, dim))
        if layer is not None:
            self.use(layer)

    def use(self, layer: int) -> None:
        """Use this layer instead of choosing."""
        super().use(layer)
        self.layer = layer

    def select(self, train: Iterable[Tensor], valid: Mapping[str, Tensor], references: Any) -> None:
        """Centre on the training summaries, a few (n, L, D) at a time, and choose the layer on validation trials."""
        if self.center:
            total, clips = torch.zeros_like(self.mean, dtype=torch.float64), 0
            for summaries in train:
                total, clips = total + summaries.double().sum(0), clips + len(summaries)
            if not clips:
                raise HeadError("centring needs training clips, and there are none")
            self.mean.copy_(total / clips)
        if self.layer is None:
            errors = [self._error(layer, valid, references) for layer in range(len(self.mean))]
            self.layer_sum.use(int(np.argmin(errors)))

    def _error(self, layer: int, valid: Mapping[str, Tensor], references: Sequence[Trial]) -> float:
        embeddings = {key: summary[layer] - self.mean[layer] for key, summary in valid.items()}
        return eer(cosines(embeddings, references), [trial.target for trial in references]).rate

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings (B, D) of summaries (B, L, D), or of frames (B, T, L, D) with their lengths (B,)."""
        if inputs.dim() == 4:
            inputs = masked_mean(inputs, lengths_of(inputs, lengths))
        return self.layer_sum(inputs - self.mean)

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Raises HeadError: there is nothing to train."""
        raise HeadError("the cosine head is not trained, so it has no use for targets")

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Raises HeadError: there is nothing to train."""
        raise HeadError("the cosine head is not trained, so it has no loss")

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Embeddings (D,), not normalised."""
        return list(outputs)


class XVector(Verification):
    """SUPERB's speaker verification (Yang et al., 2021): an x-vector (Snyder et al., 2018) with AM-softmax.

    Layer sum, Linear, five TDNN layers, mean and standard deviation over time, Linear, ReLU, which is the embedding; in
    training Linear, ReLU and the additive-margin softmax (Wang et al., 2018) follow. No batch norm, no dropout. Unlike
    SUPERB's code the standard deviation has an epsilon, and no padded frame enters the statistics.
    """

    view = "frames"

    def __init__(
        self,
        layers: int,
        dim: int,
        targets: Sequence[str],
        channels: int = 512,
        pooled: int = 1500,
        embedding: int = 512,
        scale: float = 30.0,
        margin: float = 0.4,
        crop: int | None = None,
    ) -> None:
        """channels, pooled: widths of the first four and the last TDNN layer; embedding: E; scale, margin: AM-softmax.

        crop: frames of a random stretch that stands for a longer clip in training.
        """
        super().__init__(layers, dim, targets)
        self.speakers = sorted(set(targets))
        if len(self.speakers) < 2:
            raise HeadError(f"an x-vector needs at least two training speakers, not {self.speakers}")
        if min(channels, pooled, embedding, 1 if crop is None else crop) < 1:
            raise HeadError("channels, pooled, embedding and crop must be at least 1")
        self.index = {name: number for number, name in enumerate(self.speakers)}
        self.scale, self.margin, self.crop = scale, margin, crop
        self.layer_sum = LayerSum(layers)
        self.projection = nn.Linear(dim, channels)
        shapes = [(channels, 5, 1), (channels, 3, 2), (channels, 3, 3), (channels, 1, 1), (pooled, 1, 1)]
        self.frames = nn.ModuleList(TimeDelay(channels, *shape) for shape in shapes)
        self.context = 1 + sum(dilation * (taps - 1) for _, taps, dilation in shapes)
        self.embedding = nn.Linear(2 * pooled, embedding)
        self.second = nn.Linear(embedding, embedding)
        self.prototypes = nn.Parameter(torch.empty(len(self.speakers), embedding))
        nn.init.xavier_normal_(self.prototypes)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings (B, E), not normalised; clips shorter than the TDNN's context are extended with zeros."""
        lengths = lengths_of(inputs, lengths)
        if self.crop is not None and self.training:
            inputs, lengths = random_crop(inputs, lengths, self.crop)
        hidden = self.projection(self.layer_sum(inputs)) * valid(lengths, inputs.shape[1])[:, :, None]
        hidden = nn.functional.pad(hidden, (0, 0, 0, max(0, self.context - hidden.shape[1])))
        for layer in self.frames:
            hidden = layer(hidden)
        return self.embedding(mean_and_deviation(hidden, lengths.clamp(min=self.context) - self.context + 1)).relu()

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Speaker numbers (B,)."""
        unknown = sorted(set(targets) - set(self.index))
        if unknown:
            raise HeadError(f"speaker {unknown[0]!r} is in no training clip")
        return torch.tensor([self.index[target] for target in targets])

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Additive-margin softmax in nats: cross-entropy of scale * (cosine - margin at the true speaker)."""
        sides = nn.functional.normalize(self.second(outputs).relu()), nn.functional.normalize(self.prototypes)
        logits = nn.functional.linear(*sides)
        margins = self.margin * nn.functional.one_hot(encoded, len(self.speakers))
        return nn.functional.cross_entropy(self.scale * (logits - margins), encoded)

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Embeddings (E,) of length one."""
        return list(nn.functional.normalize(outputs))


class TimeDelay(nn.Module):
    """One TDNN layer with ReLU: a dilated convolution over time, as a product over unfolded frames."""

    def __init__(self, dim: int, out: int, taps: int, dilation: int) -> None:
        super().__init__()
        self.dilation, self.reach = dilation, dilation * (taps - 1)
        self.linear = nn.Linear(taps * dim, out)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, D) to (B, T - reach, out)."""
        size = frames.shape[1] - self.reach
        steps = range(0, self.reach + 1, self.dilation)
        return self.linear(torch.cat([frames[:, step : step + size] for step in steps], 2)).relu()


def mean_and_deviation(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean and unbiased standard deviation over the valid frames of (B, T, D), as (B, 2 D)."""
    mask = valid(lengths, frames.shape[1])[:, :, None]
    mean = masked_mean(frames, lengths)
    squares = (mask * (frames - mean[:, None]) ** 2).sum(1)
    # Without an epsilon the gradient of a constant channel, such as a dead ReLU, is not a number.
    return torch.cat([mean, (squares / (lengths - 1).clamp(min=1)[:, None] + 1e-12).sqrt()], 1)


def random_crop(frames: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A random stretch of at most `size` valid frames of each clip of (B, T, ...), and its lengths (B,)."""
    room = (lengths - size + 1).clamp(min=1)
    start = (torch.rand(len(frames), device=frames.device) * room).long()
    place = start[:, None] + torch.arange(min(size, frames.shape[1]), device=frames.device)
    clips = torch.arange(len(frames), device=frames.device)[:, None]
    return frames[clips, place.clamp(max=frames.shape[1] - 1)], lengths.clamp(max=size)


def cosines(embeddings: Mapping[str, Any], trials: Sequence[Trial]) -> np.ndarray:
    """Cosine (N,) of the two embeddings of each trial, float64.

    Raises HeadError where one is missing, is of a clip that no trial names, or is not finite.
    """
    if not trials:
        raise HeadError("verification needs trials, and there are none")
    wanted = {key: None for trial in trials for key in (trial.enroll, trial.test)}
    missing = [key for key in wanted if key not in embeddings]
    if missing:
        raise HeadError(f"no embedding for {len(missing)} of {len(wanted)} clips in trials, such as {missing[0]!r}")
    extra = [key for key in embeddings if key not in wanted]
    if extra:
        raise HeadError(f"{len(extra)} of {len(embeddings)} embeddings are of clips in no trial, such as {extra[0]!r}")
    row = {key: number for number, key in enumerate(wanted)}
    stacked = torch.stack([torch.as_tensor(embeddings[key], dtype=torch.float64).detach().cpu() for key in wanted])
    strange = [key for key, finite in zip(wanted, stacked.isfinite().all(1).tolist(), strict=True) if not finite]
    if strange:
        raise HeadError(f"{len(strange)} of {len(wanted)} embeddings are not finite, such as that of {strange[0]!r}")
    unit = nn.functional.normalize(stacked).numpy()
    enroll, test = [row[trial.enroll] for trial in trials], [row[trial.test] for trial in trials]
    return np.einsum("nd,nd->n", unit[enroll], unit[test])
