"""Speaker verification heads: the score of a trial is the cosine of two embeddings, untrained or from an x-vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from downstreams.base import Head, LayerSum, Trial, length_mask, lengths_of, masked_mean
from downstreams.errors import HeadError
from downstreams.metrics import eer, min_dcf


class Verification(Head):
    """Base class of the heads judged on trials: one embedding (E,) per clip, and the cosine of two as the score."""

    judged_on = "trials"
    metrics: ClassVar[Mapping[str, bool]] = {"eer": False, "min_dcf": False}

    @classmethod
    def score(
        cls, predictions: Mapping[str, Any], references: Sequence[Trial]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return EER in percent and minDCF normalised at prior 0.01, and each trial's ids, target and cosine.

        predictions: an embedding (E,) by utterance id. Raises HeadError as `cosine_scores` does.
        """
        scores, targets = cosine_scores(predictions, references), [trial.target for trial in references]
        outcomes = [
            {"enroll": trial.enroll, "test": trial.test, "target": trial.target, "score": score}
            for trial, score in zip(references, scores.tolist(), strict=True)
        ]
        return {"eer": 100 * eer(scores, targets).rate, "min_dcf": min_dcf(scores, targets)}, outcomes


class Cosine(Verification):
    """Scores trials by the cosine of the summaries of one layer, without training.

    It selects the layer with the lowest EER on the validation trials, and the lowest such layer if several are equal.
    """

    view = "summary"
    trained = False
    mean: Tensor

    def __init__(
        self, layers: int, dim: int, targets: Sequence[str], center: bool = False, layer: int | None = None
    ) -> None:
        """center: subtract each layer's mean over the training clips; layer: use this layer instead of selecting one.

        See `Head` for the others.
        """
        super().__init__(layers, dim, targets)
        self.center, self.layer = center, layer
        self.layer_sum = LayerSum(layers).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(layers, dim))
        if layer is not None:
            self.use(layer)

    def use(self, layer: int) -> None:
        """Use this layer instead of selecting one."""
        super().use(layer)
        self.layer = layer

    def select(self, train: Iterable[Tensor], valid: Mapping[str, Tensor], references: Any) -> None:
        """Compute the mean of the training summaries, if asked to centre, and select the layer on validation trials.

        See `Head.select`. Raises HeadError where centring has no training clips.
        """
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
        return eer(cosine_scores(embeddings, references), [trial.target for trial in references]).rate

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return embeddings (B, D) of summaries (B, L, D), or of frames (B, T, L, D) with their lengths (B,)."""
        if inputs.dim() == 4:
            inputs = masked_mean(inputs, lengths_of(inputs, lengths))
        return self.layer_sum(inputs - self.mean)

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Raise HeadError, because this head has nothing to train."""
        raise HeadError("the cosine head is not trained, so it has no use for targets")

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Raise HeadError, because this head has nothing to train."""
        raise HeadError("the cosine head is not trained, so it has no loss")

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Return B embeddings (D,), not normalised."""
        return list(outputs)


class XVector(Verification):
    """SUPERB's speaker verification (Yang et al., 2021): an x-vector (Snyder et al., 2018) with AM-softmax.

    The embedding is the output of a layer sum, a Linear, five TDNN layers, the mean and standard deviation over time,
    a Linear and a ReLU. In training, a Linear, a ReLU and the additive-margin softmax (Wang et al., 2018) follow.
    There is neither batch norm nor dropout. Unlike in SUPERB's code, the standard deviation has an epsilon, and padded
    frames are left out of the statistics.
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
        """channels, pooled: widths of the first four and the last TDNN layer; embedding: E.

        scale, margin: those of the AM-softmax; crop: frames of the random segment that replaces a longer clip in
        training, None for whole clips. See `Head` for the others.
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
        """Return embeddings (B, E), not normalised; clips shorter than the TDNN's context are padded with zeros."""
        lengths = lengths_of(inputs, lengths)
        if self.crop is not None and self.training:
            inputs, lengths = random_frame_segments(inputs, lengths, self.crop)
        hidden = self.projection(self.layer_sum(inputs)) * length_mask(lengths, inputs.shape[1])[:, :, None]
        hidden = nn.functional.pad(hidden, (0, 0, 0, max(0, self.context - hidden.shape[1])))
        for layer in self.frames:
            hidden = layer(hidden)
        return self.embedding(
            mean_and_standard_deviation(hidden, lengths.clamp(min=self.context) - self.context + 1)
        ).relu()

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Return the speaker numbers (B,). Raises HeadError where a speaker is in no training clip."""
        unknown = sorted(set(targets) - set(self.index))
        if unknown:
            raise HeadError(f"speaker {unknown[0]!r} is in no training clip")
        return torch.tensor([self.index[target] for target in targets])

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Return the AM-softmax loss in nats: the cross-entropy of scale * (cosine - margin at the true speaker)."""
        embeddings, prototypes = self.second(outputs).relu(), self.prototypes
        cosines = nn.functional.linear(nn.functional.normalize(embeddings), nn.functional.normalize(prototypes))
        margins = self.margin * nn.functional.one_hot(encoded, len(self.speakers))
        return nn.functional.cross_entropy(self.scale * (cosines - margins), encoded)

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Return B embeddings (E,) of norm one."""
        return list(nn.functional.normalize(outputs))


class TimeDelay(nn.Module):
    """One TDNN layer with ReLU: a dilated convolution over time, computed as a Linear over unfolded frames."""

    def __init__(self, dim: int, out: int, taps: int, dilation: int) -> None:
        super().__init__()
        self.dilation, self.reach = dilation, dilation * (taps - 1)
        self.linear = nn.Linear(taps * dim, out)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T - reach, out)."""
        size = frames.shape[1] - self.reach
        steps = range(0, self.reach + 1, self.dilation)
        return self.linear(torch.cat([frames[:, step : step + size] for step in steps], 2)).relu()


def mean_and_standard_deviation(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean and unbiased standard deviation (B, 2 D) over the valid frames of (B, T, D)."""
    mask = length_mask(lengths, frames.shape[1])[:, :, None]
    mean = masked_mean(frames, lengths)
    squares = (mask * (frames - mean[:, None]) ** 2).sum(1)
    # Without an epsilon the gradient of a constant channel, such as a dead ReLU, is NaN.
    return torch.cat([mean, (squares / (lengths - 1).clamp(min=1)[:, None] + 1e-12).sqrt()], 1)


def random_frame_segments(frames: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return a random segment of at most `size` valid frames of each clip (B, T, ...), and the lengths (B,)."""
    starts_possible = (lengths - size + 1).clamp(min=1)
    start = (torch.rand(len(frames), device=frames.device) * starts_possible).long()
    positions = start[:, None] + torch.arange(min(size, frames.shape[1]), device=frames.device)
    clips = torch.arange(len(frames), device=frames.device)[:, None]
    return frames[clips, positions.clamp(max=frames.shape[1] - 1)], lengths.clamp(max=size)


def cosine_scores(embeddings: Mapping[str, Any], trials: Sequence[Trial]) -> np.ndarray:
    """Return the cosine (N,), float64, of the two embeddings of each trial.

    Raises HeadError where an embedding is missing, belongs to a clip in no trial, or is not finite.
    """
    if not trials:
        raise HeadError("verification needs trials, and there are none")
    clip_ids = {key: None for trial in trials for key in (trial.enroll, trial.test)}
    missing = [key for key in clip_ids if key not in embeddings]
    if missing:
        raise HeadError(f"no embedding for {len(missing)} of {len(clip_ids)} clips in trials, such as {missing[0]!r}")
    extra = [key for key in embeddings if key not in clip_ids]
    if extra:
        raise HeadError(f"{len(extra)} of {len(embeddings)} embeddings are of clips in no trial, such as {extra[0]!r}")
    row = {key: number for number, key in enumerate(clip_ids)}
    stacked = torch.stack([torch.as_tensor(embeddings[key], dtype=torch.float64).detach().cpu() for key in clip_ids])
    not_finite = [key for key, finite in zip(clip_ids, stacked.isfinite().all(1).tolist(), strict=True) if not finite]
    if not_finite:
        raise HeadError(
            f"{len(not_finite)} of {len(clip_ids)} embeddings are not finite, such as that of {not_finite[0]!r}"
        )
    unit = nn.functional.normalize(stacked).numpy()
    enroll, test = [row[trial.enroll] for trial in trials], [row[trial.test] for trial in trials]
    return np.einsum("nd,nd->n", unit[enroll], unit[test])
