"""Several labels per clip: audio events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from downstreams.base import HeadError, matched
from downstreams.metrics import mean_average_precision
from downstreams.probe import Probe


class Tagging(Probe):
    """SUPERB's utterance probe with a sigmoid per class and binary cross-entropy.

    Targets are labels joined by "|"; the empty string is a clip without any. Predictions are the log-odds of each
    class, which rank like probabilities but never saturate.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"map": True}

    @staticmethod
    def classes_of(targets: Sequence[str]) -> list[str]:
        """Sorted labels of the training clips; raises HeadError where there are none."""
        classes = sorted(set().union(*map(labels, targets)))
        if not classes:
            raise HeadError("tagging needs a label in some training clip; there is none in any")
        return classes

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Ones and zeros (B, C), float."""
        encoded = torch.zeros(len(targets), len(self.classes))
        for row, target in zip(encoded, targets, strict=True):
            for name in labels(target):
                if name not in self.index:
                    raise HeadError(f"label {name!r} is in no training clip; the labels are {self.classes}")
                row[self.index[name]] = 1
        return encoded

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Binary cross-entropy in nats, mean over clips and classes."""
        return nn.functional.binary_cross_entropy_with_logits(outputs, encoded.to(outputs.dtype))

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[dict[str, float]]:
        """Log-odds by class name, to five decimals."""
        return [
            {name: round(value, 5) for name, value in zip(self.classes, row, strict=True)} for row in outputs.tolist()
        ]

    @classmethod
    def score(
        cls, predictions: Mapping[str, Mapping[str, float]], references: Mapping[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Macro mAP in percent, and per clip id, reference, prediction (labels likelier than not) and log-odds.

        `classes_without_positives` says how many classes the mean had to leave out; it is a count, not a metric.
        """
        rows = matched(predictions, references)
        classes = list(next(iter(predictions.values()), {}))
        known = set(classes)
        for key, scores, _ in rows:
            if scores.keys() != known or not all(map(math.isfinite, scores.values())):
                raise HeadError(f"the scores of {key!r} are not one finite number for each of {sorted(known)}")
        truth = [labels(reference) for _, _, reference in rows]
        unknown = sorted(set().union(*truth) - known)
        if unknown:
            raise HeadError(f"label {unknown[0]!r} is in no training clip, so no score for it can exist")
        values = [[scores[name] for name in classes] for _, scores, _ in rows]
        found = mean_average_precision(values, [[name in names for name in classes] for names in truth])
        outcomes = [
            {"id": key, "reference": reference, "prediction": _likely(scores), "scores": dict(scores)}
            for key, scores, reference in rows
        ]
        return {"map": 100 * found.value, "classes_without_positives": float(found.skipped)}, outcomes


def labels(target: str) -> set[str]:
    """Names in a target such as "dog|rain"; white space around a name is not part of it."""
    return {name.strip() for name in target.split("|") if name.strip()}


def _likely(scores: Mapping[str, float]) -> str:
    return "|".join(name for name, value in scores.items() if value > 0)
