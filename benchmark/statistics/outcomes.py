"""From records and the outcomes of their test clips to samples that can be resampled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.resampling import Classes, Folds, Integers, Sample, Shares, Tags, Trials

Row = Mapping[str, str]  # of outcomes
Outcomes = Callable[[Record], Sequence[Row]]
Run = tuple[str, int]  # upstream and seed
Key = tuple[str, ...]  # id, or those of a trial

UNBOUNDED = ("wer", "cer")  # may exceed 100 %
FRACTIONS = ("min_dcf",)  # the others are percentages
UNITS = {"speaker": "speakers", "session": "sessions", "": "clips", None: "clips"}


class Evidence(NamedTuple):
    """What runs answered on one test set.

    runs: upstream and seed of each of the M columns. sample: their answers. unit: what is resampled, as "speakers".
    """

    runs: list[Run]
    sample: Sample
    unit: str

    def columns(self, upstream: str) -> list[int]:
        """Those of an upstream."""
        return [place for place, (name, _) in enumerate(self.runs) if name == upstream]


class Answers(NamedTuple):
    """One fold: what was asked and what each run said, clip by clip or trial by trial.

    clusters: names of one or both sides, in the order of the first run's rows.
    """

    first: Sequence[Row]
    rows: Sequence[Sequence[Row]]
    clusters: tuple[list[str], ...]


def evidence(records: Iterable[Record], outcomes: Outcomes) -> Evidence:
    """Of records of one task, one for each upstream, seed and fold, that were tested on the same clips.

    Raises UserError naming what differs where they were not.
    """
    folds: dict[str | None, dict[Run, Record]] = {}
    for record in records:
        folds.setdefault(record.fold, {})[record.upstream["name"], record.seed] = record
    runs = sorted(set.intersection(*(set(some) for some in folds.values())))
    some = [[fold[run] for run in runs] for _, fold in sorted(folds.items(), key=lambda item: item[0] or "")]
    first = some[0][0]
    answered = [_answers(fold, outcomes) for fold in some]
    names = sorted({name for each in answered for side in each.clusters for name in side})
    index = {name: number for number, name in enumerate(names)}
    parts = [_sample(first, each, index) for each in answered]
    for fold, (sample, _) in zip(some, parts, strict=True):
        _refuse_contradictions(fold, sample.values() * scale_of(first.metric))
    return Evidence(runs, _together(parts, len(names)), unit_of(record for fold in some for record in fold))


def unit_of(records: Iterable[Record]) -> str:
    """What is resampled."""
    known = next((record for record in records if record.clustered_by is not None), None)
    if known is None:
        return UNITS[None]
    return "speakers" if known.trials else UNITS.get(known.clustered_by, f"values of {known.clustered_by}")


def scale_of(metric: str) -> float:
    """By what values are multiplied to be scores."""
    return 1.0 if metric in FRACTIONS else 100.0


def _answers(records: Sequence[Record], outcomes: Outcomes) -> Answers:
    rows = [list(outcomes(record)) for record in records]
    keys = [[key_of(row) for row in some] for some in rows]
    for record, some in zip(records, keys, strict=True):
        if some != keys[0]:
            raise UserError(f"{_pair(records[0], record)} were tested on different clips: {_odd(keys[0], some)}")
    if not keys[0]:
        raise UserError(f"the outcomes of {_pair(records[0], records[-1])} are empty; delete them and run it again")
    if "enroll" not in rows[0][0] and len(set(keys[0])) < len(keys[0]):
        twice = next(key for key, count in Counter(keys[0]).items() if count > 1)
        raise UserError(f"the outcomes of {_pair(records[0], records[-1])} hold {twice[0]!r} twice; run it again")
    _same_truth(records, rows)
    sides = ("enroll", "test") if "enroll" in rows[0][0] else ("",)
    return Answers(rows[0], rows, tuple(_clusters(records, rows, side) for side in sides))


def _clusters(records: Sequence[Record], rows: Sequence[Sequence[Row]], side: str) -> list[str]:
    """As those outcomes tell that do; older ones do not, and if none does each clip stands for itself."""
    column = f"{side}_cluster" if side else "cluster"
    told = [
        (record, [row[column] for row in some]) for record, some in zip(records, rows, strict=True) if column in some[0]
    ]
    for record, names in told:
        if names != told[0][1]:
            raise UserError(
                f"{_pair(told[0][0], record)} do not agree on which clips depend on each other; run both again"
            )
    return told[0][1] if told else [f"clip {row[side or 'id']}" for row in rows[0]]


def _same_truth(records: Sequence[Record], rows: Sequence[Sequence[Row]]) -> None:
    for record, some in zip(records, rows, strict=True):
        for row, first in zip(some, rows[0], strict=True):
            told = [each.get("reference", each.get("target")) for each in (first, row)]
            if told[0] != told[1]:
                raise UserError(
                    f"{_pair(records[0], record)} were tested with different labels: {' '.join(key_of(row))} has"
                    f" {told[0]!r} and {told[1]!r}; run both on the same corpus"
                )


def _pair(first: Record, other: Record) -> str:
    return f"{first.upstream['name']} and {other.upstream['name']} on {first.task['name']}"


def _refuse_contradictions(records: Sequence[Record], values: Iterable[float]) -> None:
    """Raise UserError where outcomes do not give the score of their record."""
    for record, value in zip(records, values, strict=True):
        told = record.test[record.metric]
        if told is None or not abs(told - value) <= 1e-6:
            whose = f"record {record.id} of {record.upstream['name']} on {record.task['name']}"
            raise UserError(
                f"{whose} says {record.metric} {told}, but its outcomes give {value:.6g}; delete both and run it again"
            )


def _odd(first: Sequence[Key], second: Sequence[Key]) -> str:
    for one, other in ((first, second), (second, first)):
        if lost := set(one) - set(other):
            return f"{' '.join(min(lost))} is in one test set only ({len(lost)} such); run both on the same corpus"
    return "the same ones in another order or number; run both on the same corpus"


def key_of(row: Row) -> Key:
    """What a row of outcomes is about: a clip, or two."""
    return (row["enroll"], row["test"]) if "enroll" in row else (row["id"],)


def _together(parts: Sequence[tuple[Sample, Integers]], size: int) -> Sample:
    if len(parts) == 1:
        return parts[0][0]
    return Folds([sample for sample, _ in parts], [own for _, own in parts], size)


def _sample(record: Record, answers: Answers, index: Mapping[str, int]) -> tuple[Sample, Integers]:
    """Of one fold, and which clusters of all it has."""
    places = [np.array([index[name] for name in side]) for side in answers.clusters]
    own, flat = np.unique(np.concatenate(places), return_inverse=True)
    sides = np.split(flat, len(places))
    try:
        return KINDS[record.metric](answers, sides, len(own)), own
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"outcomes of {record.task['name']} do not hold what {record.metric} needs ({error}), those of"
            f" {record.upstream['name']} or of another upstream; delete them with their records and run it again"
        ) from error


def _trials(rate: Any) -> Callable[[Answers, list[Integers], int], Sample]:
    def build(answers: Answers, sides: list[Integers], size: int) -> Sample:
        truth = np.array([row["target"] == "True" for row in answers.first])
        scores = np.array([[float(row["score"]) for row in rows] for rows in answers.rows])
        return Trials(sides[0], sides[1], size, truth, scores, rate)

    return build


def _right(answers: Answers, sides: list[Integers], size: int) -> Sample:
    marks = [[float(row["correct"] == "True") for row in rows] for rows in answers.rows]
    return _shares(marks, [1.0] * len(answers.first), sides[0], size)


def _edits(unit: str) -> Callable[[Answers, list[Integers], int], Sample]:
    def build(answers: Answers, sides: list[Integers], size: int) -> Sample:
        marks = [[errors_of(row, unit) for row in rows] for rows in answers.rows]
        return _shares(marks, [length_of(row, unit) for row in answers.first], sides[0], size)._replace(closed=False)

    return build


def errors_of(row: Row, unit: str) -> float:
    """Edits of a transcript, in words or characters."""
    return float(sum(int(row[f"{unit}_{kind}"]) for kind in ("substitutions", "deletions", "insertions")))


def length_of(row: Row, unit: str) -> float:
    """Words or characters of its reference."""
    return float(sum(int(row[f"{unit}_{kind}"]) for kind in ("substitutions", "deletions", "hits")))


def _shares(marks: Sequence[Sequence[float]], sizes: Sequence[float], places: Integers, size: int) -> Shares:
    sums = np.array([np.bincount(places, row, size) for row in marks])
    return Shares(sums, np.bincount(places, np.array(sizes), size).astype(np.float64))


def _classes(average: Any) -> Callable[[Answers, list[Integers], int], Sample]:
    def build(answers: Answers, sides: list[Integers], size: int) -> Sample:
        truth = [row["reference"] for row in answers.first]
        said = [[row["prediction"] for row in rows] for rows in answers.rows]
        names = {name: number for number, name in enumerate(sorted({*truth, *(name for row in said for name in row)}))}
        numbers = [np.array([names[name] for name in row]) for row in (truth, *said)]
        return Classes(sides[0], size, numbers[0], np.stack(numbers[1:]), len(names), average)

    return build


def _tags(answers: Answers, sides: list[Integers], size: int) -> Sample:
    scores = [[json.loads(row["scores"]) for row in rows] for rows in answers.rows]
    names = sorted(scores[0][0])
    truth = np.array([[name in tags_of(row) for name in names] for row in answers.first])
    values = np.array([[[said[name] for name in names] for said in rows] for rows in scores])
    return Tags(sides[0], size, truth, values)


def tags_of(row: Row) -> set[str]:
    """The labels of a clip that has several."""
    return {name.strip() for name in row["reference"].split("|")}


KINDS: dict[str, Callable[[Answers, list[Integers], int], Sample]] = {
    "accuracy": _right,
    "micro_f1": _right,  # the same, where every clip has one label
    "macro_f1": _classes("macro_f1"),
    "uar": _classes("uar"),
    "map": _tags,
    "wer": _edits("word"),
    "cer": _edits("character"),
    "eer": _trials("eer"),
    "min_dcf": _trials("min_dcf"),
}
