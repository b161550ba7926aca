"""Fine-tune an encoder's embedding by AAM-softmax, with cluster numbers in place of speaker labels."""

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

KIND = "cluster"  # key of the labels that serve as classes


@dataclass(frozen=True)
class Tuning:
    """The fine-tuning settings for encoders of one size. scale, margin: of AAM-softmax; the margin is in radians."""

    recipe: Recipe
    scale: float
    margin: float


# The authors' second stage (their recipe ssl.v1) has two sub-centres, an inter-top-k penalty and SGD, and first trains
# the last layer alone; the paper's own settings are not public. The plain margin and AdamW replace them here.
BASE = Tuning(Recipe(steps=60_000, batch=256, seconds=4.0, lr=1e-4, warmup=1000, weight_decay=1e-4), 30.0, 0.2)
MINI = Tuning(Recipe(steps=500, batch=32, seconds=1.5, lr=3e-3, warmup=20, weight_decay=1e-4, clip=5.0), 20.0, 0.1)
SMALL = 1_500_000  # weights; smaller encoders use the settings MINI


class MarginTuning(Method):
    """AAM-softmax (Xiang et al., 2019) with the classes `batch.labels["cluster"]`.

    All segments are augmented by synthetic noise and reverberation, independently of how the encoder was pre-trained.
    The term "accuracy" is the share of clips whose class has the nearest centre.
    """

    def __init__(
        self, network: nn.Module, classes: int, tuning: Tuning, exported: Callable[[Any], dict[str, Tensor]]
    ) -> None:
        """network: maps waveforms (B, S) and lengths (B,) to embeddings (B, dim); it is trained in place.

        exported: returns its weights under the names of a checkpoint.
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
    """Return the mean loss () in nats for cosines (B, 1, C) and classes (B, 1), by SpeechBrain's AdditiveAngularMargin.

    It is the cross-entropy with the logit scale * cos(angle + margin) for the true class and scale * cos(angle) for
    the others.
    """
    guard()
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    return cast(Callable[[Tensor, Tensor], Tensor], LogSoftmaxWrapper(AdditiveAngularMargin(margin, scale)))


def tuning_of(network: nn.Module) -> Tuning:
    """Return the default fine-tuning settings for an encoder of this size."""
    return MINI if sum(weight.numel() for weight in network.parameters()) < SMALL else BASE
