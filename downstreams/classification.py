"""Classification head: one label per clip, such as a keyword, language, emotion, speaker or sound event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from downstreams.base import match_references
from downstreams.errors import HeadError
from downstreams.metrics import accuracy, macro_f1, micro_f1, unweighted_average_recall
from downstreams.probe import Probe


class Classification(Probe):
    """SUPERB's utterance probe with softmax cross-entropy (Yang et al., 2021).

    The classes are the labels of the training targets. A clip whose reference is another label counts as an error.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "micro_f1": True, "macro_f1": True, "uar": True}

    @staticmethod
    def classes_of(targets: Sequence[str]) -> list[str]:
        """Return the sorted labels of the training clips. Raises HeadError where there are fewer than two."""
        classes = sorted(set(targets))
        if len(classes) < 2:
            raise HeadError(f"classification needs at least two labels in the training clips, not {classes}")
        return classes

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Return the class numbers (B,). Raises HeadError on unknown labels."""
        unknown = sorted(set(targets) - set(self.index))
        if unknown:
            raise HeadError(f"label {unknown[0]!r} is in no training clip; the labels are {self.classes}")
        return torch.tensor([self.index[target] for target in targets])

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Return the cross-entropy in nats, averaged over clips."""
        return nn.functional.cross_entropy(outputs, encoded)

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[str]:
        """Return the likeliest label of each clip."""
        return [self.classes[number] for number in outputs.argmax(1).tolist()]

    @classmethod
    def score(
        cls, predictions: Mapping[str, str], references: Mapping[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the metrics in percent, and each clip's id, reference, prediction and whether it is correct.

        With one label per clip, micro_f1 equals accuracy.
        """
        rows = match_references(predictions, references)
        labels, predicted = [reference for _, _, reference in rows], [prediction for _, prediction, _ in rows]
        rates = {
            "accuracy": accuracy(labels, predicted),
            "micro_f1": micro_f1(labels, predicted),
            "macro_f1": macro_f1(labels, predicted),
            "uar": unweighted_average_recall(labels, predicted),
        }
        outcomes = [
            {"id": key, "reference": reference, "prediction": prediction, "correct": prediction == reference}
            for key, prediction, reference in rows
        ]
        return {name: 100 * rate for name, rate in rates.items()}, outcomes
