"""One label per clip: keyword, language, emotion, speaker, single events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from downstreams.base import HeadError, matched
from downstreams.metrics import accuracy, macro_f1, micro_f1, unweighted_average_recall
from downstreams.probe import Probe


class Classification(Probe):
    """SUPERB's utterance probe with softmax cross-entropy (Yang et al., 2021).

    Classes are those of the training targets. A label of the references that is not among them counts as an error.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "micro_f1": True, "macro_f1": True, "uar": True}

    @staticmethod
    def classes_of(targets: Sequence[str]) -> list[str]:
        """Sorted labels of the training clips; raises HeadError where there are fewer than two."""
        classes = sorted(set(targets))
        if len(classes) < 2:
            raise HeadError(f"classification needs at least two labels in the training clips, not {classes}")
        return classes

    def encode(self, targets: Sequence[str]) -> Tensor:
        """Class numbers (B,)."""
        unknown = sorted(set(targets) - set(self.index))
        if unknown:
            raise HeadError(f"label {unknown[0]!r} is in no training clip; the labels are {self.classes}")
        return torch.tensor([self.index[target] for target in targets])

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats."""
        return nn.functional.cross_entropy(outputs, encoded)

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[str]:
        """The likeliest label of each clip."""
        return [self.classes[number] for number in outputs.argmax(1).tolist()]

    @classmethod
    def score(
        cls, predictions: Mapping[str, str], references: Mapping[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Percentages, and per clip id, reference, prediction and whether they agree. micro_f1 equals accuracy."""
        rows = matched(predictions, references)
        truth, said = [row[2] for row in rows], [row[1] for row in rows]
        rates = {
            "accuracy": accuracy(truth, said),
            "micro_f1": micro_f1(truth, said),
            "macro_f1": macro_f1(truth, said),
            "uar": unweighted_average_recall(truth, said),
        }
        outcomes = [
            {"id": key, "reference": reference, "prediction": prediction, "correct": prediction == reference}
            for key, prediction, reference in rows
        ]
        return {name: 100 * rate for name, rate in rates.items()}, outcomes
