"""Which clips or trials two upstreams answer differently."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from benchmark.records import Record
from benchmark.statistics.outcomes import Key, Outcomes, Row, errors_of, key_of, tags_of
from benchmark.statistics.resampling import Curve

Loss = Callable[[Row], float]  # of one answer; the lower the better


class Said(NamedTuple):
    """What an upstream answered to one clip or trial. loss: mean over its runs."""

    loss: float
    answer: str


class Disagreement(NamedTuple):
    """A clip or trial that two upstreams answer differently well. id: both ids of a trial."""

    id: str
    reference: str
    first: Said
    second: Said


class Disagreements(NamedTuple):
    """How many clips or trials the first upstream answers better, and worse, of how many.

    Means over pairs of a run of each. rows: those answered differently well, the largest differences first.
    """

    gained: float
    lost: float
    total: int
    rows: list[Disagreement]


def disagreements_of(first: str, second: str, records: Sequence[Record], outcomes: Outcomes) -> Disagreements:
    """Of two upstreams that were tested on the same clips."""
    sides = [
        _runs([record for record in records if record.upstream["name"] == name], outcomes) for name in (first, second)
    ]
    keys = list(sides[0][0])
    losses = [np.array([[run[key][0] for key in keys] for run in side]) for side in sides]
    less = (losses[0][:, None] < losses[1][None]).sum(-1).mean()
    more = (losses[0][:, None] > losses[1][None]).sum(-1).mean()
    rows = [_flip(key, sides) for key in keys]
    unlike = [row for row in rows if row.first.loss != row.second.loss]
    unlike.sort(key=lambda row: (-abs(row.first.loss - row.second.loss), row.id))
    return Disagreements(float(less), float(more), len(keys), unlike)


LossAndRow = tuple[float, Row]


def _runs(records: Sequence[Record], outcomes: Outcomes) -> list[dict[Key, LossAndRow]]:
    """Of each seed: loss and row by clip or trial, all folds together."""
    seeds: dict[int, dict[Key, LossAndRow]] = {}
    for record in records:
        rows = outcomes(record)
        loss = LOSSES[record.metric](rows)
        seeds.setdefault(record.seed, {}).update({key_of(row): (loss(row), row) for row in rows})
    return list(seeds.values())


def _flip(key: Key, sides: Sequence[Sequence[Mapping[Key, LossAndRow]]]) -> Disagreement:
    first, second = (_said([run[key] for run in side]) for side in sides)
    return Disagreement(" ".join(key), reference_of(sides[0][0][key][1]), first, second)


def reference_of(row: Row) -> str:
    """What is right."""
    return row.get("reference") or (
        "target" if row.get("target") == "True" else "non-target" if "target" in row else ""
    )


def _said(answers: Sequence[LossAndRow]) -> Said:
    """The most frequent answer of some runs, and how many of them gave it if not all did; of trials the mean score."""
    loss, rows = fmean(loss for loss, _ in answers), [row for _, row in answers]
    if "score" in rows[0]:
        word = "right" if loss < 0.5 else "wrong"
        return Said(loss, f"{fmean(float(row['score']) for row in rows):.3f}, {word}")
    given = Counter(row["hypothesis"] if "hypothesis" in row else row["prediction"] for row in rows)
    answer, count = given.most_common(1)[0]
    return Said(loss, (answer or "–") if count == len(rows) else f"{answer or '–'} ({count}/{len(rows)})")


def _wrong(rows: Sequence[Row]) -> Loss:
    return lambda row: float(row["correct"] != "True")


def _edits(unit: str) -> Callable[[Sequence[Row]], Loss]:
    return lambda rows: lambda row: errors_of(row, unit)


def _misranked(rows: Sequence[Row]) -> Loss:
    """One minus the average precision of a clip's own labels among all; 0 where it has none."""

    def loss(row: Row) -> float:
        scores: dict[str, float] = json.loads(row["scores"])
        own = [scores[name] for name in tags_of(row) if name in scores]
        shares = [
            sum(other >= score for other in own) / sum(any_ >= score for any_ in scores.values()) for score in own
        ]
        return round(1 - fmean(shares), 9) if shares else 0.0

    return loss


def _misjudged(rows: Sequence[Row]) -> Loss:
    """Whether a trial is on the wrong side of the run's own threshold at the EER."""
    truth = np.array([row["target"] == "True" for row in rows])
    threshold, _, _ = Curve.of(np.array([float(row["score"]) for row in rows]), truth).crossing(0.0)
    return lambda row: float((float(row["score"]) >= threshold) != (row["target"] == "True"))


LOSSES: dict[str, Callable[[Sequence[Row]], Loss]] = {
    **dict.fromkeys(("accuracy", "micro_f1", "macro_f1", "uar"), _wrong),
    "map": _misranked,
    "wer": _edits("word"),
    "cer": _edits("character"),
    "eer": _misjudged,
    "min_dcf": _misjudged,
}
