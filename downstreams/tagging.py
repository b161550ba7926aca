"""Tagging head: any number of labels per clip, such as audio events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from downstreams.base import match_references
from downstreams.errors import HeadError
from downstreams.metrics import mean_average_precision
from downstreams.probe import Probe


class Tagging(Probe):
    """SUPERB's utterance probe with a sigmoid per class and binary cross-entropy.

    A target holds the labels of a clip joined by "|"; it is empty for a clip without labels. Predictions are the
    log-odds of each class, which rank like probabilities but never saturate.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"map": True}

    @staticmethod
    def classes_of(targets: Sequence[str]) -> list[str]:
        """Return the sorted labels of the training clips. Raises HeadError where there are none."""
        classes = sorted(set().union(*map(split_labels, targets)))
        if not classes:
            raise HeadError("tagging needs a label in some training clip; there is none in any")
        return classes

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Return (B, C), float: 1 where a clip has the class, 0 elsewhere. Raises HeadError on unknown labels."""
        encoded = torch.zeros(len(targets), len(self.classes))
        for row, target in zip(encoded, targets, strict=True):
            for name in split_labels(target):
                if name not in self.index:
                    raise HeadError(f"label {name!r} is in no training clip; the labels are {self.classes}")
                row[self.index[name]] = 1
        return encoded

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Return the binary cross-entropy in nats, averaged over clips and classes."""
        return nn.functional.binary_cross_entropy_with_logits(outputs, encoded.to(outputs.dtype))

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[dict[str, float]]:
        """Return B predictions: log-odds by class name, rounded to five decimals."""
        return [
            {name: round(value, 5) for name, value in zip(self.classes, row, strict=True)} for row in outputs.tolist()
        ]

    @classmethod
    def score(
        cls, predictions: Mapping[str, Mapping[str, float]], references: Mapping[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return macro mAP in percent, and each clip's id, reference, prediction and log-odds.

        The prediction holds the labels with positive log-odds. `classes_without_positives` is the number of classes
        that the mean leaves out; it is a count, not a metric. Raises HeadError where a clip's log-odds are not one
        finite number per class, and where a reference holds an unknown label.
        """
        rows = match_references(predictions, references)
        classes = list(next(iter(predictions.values()), {}))
        known = set(classes)
        for key, scores, _ in rows:
            if scores.keys() != known or not all(map(math.isfinite, scores.values())):
                raise HeadError(f"the scores of {key!r} are not one finite number for each of {sorted(known)}")
        truth = [split_labels(reference) for _, _, reference in rows]
        unknown = sorted(set().union(*truth) - known)
        if unknown:
            raise HeadError(f"label {unknown[0]!r} is in no training clip, so no score for it can exist")
        values = [[scores[name] for name in classes] for _, scores, _ in rows]
        precision = mean_average_precision(values, [[name in names for name in classes] for names in truth])
        outcomes = [
            {"id": key, "reference": reference, "prediction": _predicted_labels(scores), "scores": dict(scores)}
            for key, scores, reference in rows
        ]
        return {"map": 100 * precision.value, "classes_without_positives": float(precision.skipped)}, outcomes


def split_labels(target: str) -> set[str]:
    """Return the names in a target such as "dog|rain", without white space around them."""
    return {name.strip() for name in target.split("|") if name.strip()}


def _predicted_labels(scores: Mapping[str, float]) -> str:
    return "|".join(name for name, value in scores.items() if value > 0)
