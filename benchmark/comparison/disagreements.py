"""Find the clips or trials on which the predictions of two upstreams differ in quality."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from benchmark.records import Record
from benchmark.statistics.outcomes import Key, Outcomes, Row, errors_of, key_of, tags_of
from benchmark.statistics.resampling import RocCurve

Loss = Callable[[Row], float]  # the loss of one prediction; lower is better


class UpstreamPrediction(NamedTuple):
    """An upstream's prediction for one clip or trial. loss: mean over its runs. text: see `_prediction`."""

    loss: float
    text: str


class Disagreement(NamedTuple):
    """A clip or trial on which two upstreams have different losses. id: that of the clip, or both ids of a trial."""

    id: str
    reference: str
    first: UpstreamPrediction
    second: UpstreamPrediction


class Disagreements(NamedTuple):
    """The clips or trials on which two upstreams have different losses.

    gained, lost: how many have a lower and a higher loss with the first upstream, as means over all pairs of a run of
    the first and a run of the second. total: all clips or trials. rows: those with different mean losses, the largest
    difference first.
    """

    gained: float
    lost: float
    total: int
    rows: list[Disagreement]


def disagreements_of(first: str, second: str, records: Sequence[Record], outcomes: Outcomes) -> Disagreements:
    """Find the disagreements of two upstreams that were tested on the same clips."""
    sides = [
        _runs([record for record in records if record.upstream["name"] == name], outcomes) for name in (first, second)
    ]
    keys = list(sides[0][0])
    losses = [np.array([[run[key][0] for key in keys] for run in side]) for side in sides]
    gained = (losses[0][:, None] < losses[1][None]).sum(-1).mean()
    lost = (losses[0][:, None] > losses[1][None]).sum(-1).mean()
    rows = [_disagreement(key, sides) for key in keys]
    different = [row for row in rows if row.first.loss != row.second.loss]
    different.sort(key=lambda row: (-abs(row.first.loss - row.second.loss), row.id))
    return Disagreements(float(gained), float(lost), len(keys), different)


LossAndRow = tuple[float, Row]


def _runs(records: Sequence[Record], outcomes: Outcomes) -> list[dict[Key, LossAndRow]]:
    """Return the loss and row of each clip or trial, over all folds, for each seed."""
    seeds: dict[int, dict[Key, LossAndRow]] = {}
    for record in records:
        rows = outcomes(record)
        loss = LOSSES[record.metric](rows)
        seeds.setdefault(record.seed, {}).update({key_of(row): (loss(row), row) for row in rows})
    return list(seeds.values())


def _disagreement(key: Key, sides: Sequence[Sequence[Mapping[Key, LossAndRow]]]) -> Disagreement:
    first, second = (_prediction([run[key] for run in side]) for side in sides)
    return Disagreement(" ".join(key), reference_text(sides[0][0][key][1]), first, second)


def reference_text(row: Row) -> str:
    """Return the reference of a row: its text or class, or "target" or "non-target" for a trial; else ""."""
    return row.get("reference") or (
        "target" if row.get("target") == "True" else "non-target" if "target" in row else ""
    )


def _prediction(runs: Sequence[LossAndRow]) -> UpstreamPrediction:
    """Combine the predictions of several runs for one clip or trial.

    The text is the most frequent prediction, with its share of the runs if they differ. For a trial it is the mean
    score and whether the decision is right.
    """
    loss, rows = fmean(loss for loss, _ in runs), [row for _, row in runs]
    if "score" in rows[0]:
        word = "right" if loss < 0.5 else "wrong"
        return UpstreamPrediction(loss, f"{fmean(float(row['score']) for row in rows):.3f}, {word}")
    counts = Counter(row["hypothesis"] if "hypothesis" in row else row["prediction"] for row in rows)
    text, count = counts.most_common(1)[0]
    return UpstreamPrediction(loss, (text or "–") if count == len(rows) else f"{text or '–'} ({count}/{len(rows)})")


def _wrong(rows: Sequence[Row]) -> Loss:
    return lambda row: float(row["correct"] != "True")


def _edits(unit: str) -> Callable[[Sequence[Row]], Loss]:
    return lambda rows: lambda row: errors_of(row, unit)


def _misranked(rows: Sequence[Row]) -> Loss:
    """One minus the average precision of a clip's own labels among all labels; 0 if the clip has none."""

    def loss(row: Row) -> float:
        scores: dict[str, float] = json.loads(row["scores"])
        own = [scores[name] for name in tags_of(row) if name in scores]
        shares = [
            sum(other >= score for other in own) / sum(value >= score for value in scores.values()) for score in own
        ]
        return round(1 - fmean(shares), 9) if shares else 0.0

    return loss


def _misjudged(rows: Sequence[Row]) -> Loss:
    """1 if a trial is on the wrong side of the run's own threshold at the EER, else 0."""
    truth = np.array([row["target"] == "True" for row in rows])
    threshold, _, _ = RocCurve.of(np.array([float(row["score"]) for row in rows]), truth).crossing(0.0)
    return lambda row: float((float(row["score"]) >= threshold) != (row["target"] == "True"))


LOSSES: dict[str, Callable[[Sequence[Row]], Loss]] = {
    **dict.fromkeys(("accuracy", "micro_f1", "macro_f1", "uar"), _wrong),
    "map": _misranked,
    "wer": _edits("word"),
    "cer": _edits("character"),
    "eer": _misjudged,
    "min_dcf": _misjudged,
}
