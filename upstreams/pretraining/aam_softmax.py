"""Fine-tuning an encoder's embedding by an additive angular margin: on clusters in place of speakers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.pretraining.augmentation import augmented
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step
from upstreams.torchaudio_guard import guard

KIND = "cluster"  # of the labels that are learnt from


@dataclass(frozen=True)
class Tuning:
    """How an encoder of some size is tuned. scale, margin: of the softmax, the margin in radians."""

    recipe: Recipe
    scale: float
    margin: float


# The authors' second stage (their recipe ssl.v1) has two sub-centres, an inter-top-k penalty and SGD, and first trains
# the last layer alone; the paper's own settings are not public. Here the plain margin and AdamW stand for both.
BASE = Tuning(Recipe(steps=60_000, batch=256, seconds=4.0, lr=1e-4, warmup=1000, weight_decay=1e-4), 30.0, 0.2)
MINI = Tuning(Recipe(steps=500, batch=32, seconds=1.5, lr=3e-3, warmup=20, weight_decay=1e-4, clip=5.0), 20.0, 0.1)
SMALL = 1_500_000  # weights, below which an encoder is tuned as one of size mini


class MarginTuning(Method):
    """AAM-softmax (Xiang et al., 2019) on the numbers `batch.labels["cluster"]`, of stretches with synthetic
    noise and rooms, whatever the encoder was pre-trained in.

    Beside the loss is shown the share of clips whose own class has the nearest centre.
    """

    def __init__(
        self, network: nn.Module, classes: int, tuning: Tuning, exported: Callable[[Any], dict[str, Tensor]]
    ) -> None:
        """network: gives embeddings (B, dim) of waveforms (B, S) and lengths (B,), and is changed in place.

        exported: names its weights as in a checkpoint.
        """
        super().__init__()
        self.recipe, self.network, self.name_weights = tuning.recipe, network, exported
        self.centres = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, cast(Any, network).dim)))
        self.loss = angular_margin(tuning.scale, tuning.margin)

    def forward(self, batch: AudioBatch, done: float) -> Step:
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            waveforms = augmented(batch.waveforms, batch.lengths)
        vectors = self.network(waveforms, batch.lengths)
        labels = batch.labels[KIND]
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            cosines = F.normalize(vectors.float(), dim=1) @ F.normalize(self.centres, dim=1).T
            loss = self.loss(cosines[:, None], labels[:, None])
        return Step({"loss": loss, "accuracy": (cosines.argmax(1) == labels).float().mean()}, vectors)

    def exported(self) -> dict[str, Tensor]:
        return self.name_weights(self.network)


def angular_margin(scale: float, margin: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean loss (), in nats, of cosines (B, 1, C) and classes (B, 1): SpeechBrain's AdditiveAngularMargin.

    Cross-entropy of scale * cos(angle + margin) of the own class against scale * cos(angle) of the others.
    """
    guard()
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    return cast(Callable[[Tensor, Tensor], Tensor], LogSoftmaxWrapper(AdditiveAngularMargin(margin, scale)))


def tuning_of(network: nn.Module) -> Tuning:
    """How an encoder of its size is tuned unless the user says otherwise."""
    return MINI if sum(weight.numel() for weight in network.parameters()) < SMALL else BASE
