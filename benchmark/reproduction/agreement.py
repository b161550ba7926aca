"""Compare a recorded job with its rerun: scores, outcomes, and differences in the environment. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.outcomes import score_task

Row = dict[str, str]  # one outcome: column to value
CLUSTERS = ("cluster", "enroll_cluster", "test_cluster")  # columns that outcomes of older versions lack


class RecordedJob(NamedTuple):
    """A record with its test outcomes, None where they are lost. siblings: the upstream's records on the same task."""

    record: Record
    outcomes: list[Row] | None
    siblings: Sequence[Record] = ()


class Rerun(NamedTuple):
    """A recorded job (`then`) and its rerun (`now`)."""

    then: RecordedJob
    now: RecordedJob


class ScorePair(NamedTuple):
    """A number in the record and in the rerun."""

    name: str
    then: float | None
    now: float | None


def score_pairs(rerun: Rerun) -> list[ScorePair]:
    """Return all scores on test and validation, and the chosen epoch."""
    then, now = rerun.then.record, rerun.now.record
    pairs = [("test", then.test, now.test), ("valid", then.valid, now.valid)]
    scores = [
        ScorePair(f"{split} {name}", old.get(name), new.get(name))
        for split, old, new in pairs
        for name in dict.fromkeys([*old, *new])
    ]
    return [*scores, ScorePair("epoch", then.epoch, now.epoch)]


def changed_outcomes(rerun: Rerun) -> int:
    """Return the number of test clips or trials with different outcomes, even if only in the last bit."""
    pairs = zip_longest(rerun.then.outcomes or [], rerun.now.outcomes or [])
    return 0 if rerun.then.outcomes is None else sum(_outcome(old) != _outcome(new) for old, new in pairs)


def _outcome(row: Row | None) -> Row | None:
    return row and {name: value for name, value in row.items() if name not in CLUSTERS}


def agreement_rows(rerun: Rerun) -> list[list[str]]:
    """Return rows of name, recorded value, new value, and whether they differ."""
    return [[pair.name, *_value_texts(pair), "" if pair.then == pair.now else "differs"] for pair in score_pairs(rerun)]


def _value_texts(pair: ScorePair) -> tuple[str, str]:
    """Both values, rounded to six digits unless they differ and would then look equal."""
    texts = ["none" if value is None else f"{value:.6g}" for value in (pair.then, pair.now)]
    if texts[0] == texts[1] and pair.then != pair.now:
        texts = [repr(pair.then), repr(pair.now)]
    return texts[0], texts[1]


def identical(rerun: Rerun) -> bool:
    """Whether scores, epoch and outcomes are identical to the last bit."""
    return all(pair.then == pair.now for pair in score_pairs(rerun)) and not changed_outcomes(rerun)


def agrees_within_interval(rerun: Rerun) -> bool:
    """Whether the test score is equal to the recorded one, or lies within its interval."""
    then, now = rerun.then.record, rerun.now.record
    same = then.test.get(then.metric) == now.test.get(now.metric)
    return same or score_within_interval(then, rerun.then.outcomes, now)


def score_within_interval(record: Record, outcomes: Sequence[Row] | None, rerun: Record) -> bool:
    """Whether the test score of `rerun` lies in the 95 % interval of the recorded one."""
    then, now = record.test.get(record.metric), rerun.test.get(record.metric)
    if then is None or now is None or not outcomes:
        return False
    try:
        interval = score_task([record], lambda _: outcomes).interval([0])
    except UserError:  # the record contradicts its outcomes
        return False
    return interval.low <= now <= interval.high


def agreement_sentence(rerun: Rerun) -> str:
    """Return the result of the comparison as one sentence."""
    pairs, changed = score_pairs(rerun), changed_outcomes(rerun)
    count = len(rerun.then.outcomes or [])
    if identical(rerun):
        outcomes = f" and {count} outcomes" if rerun.then.outcomes is not None else "; its outcomes are lost"
        return f"identical to the last bit: {len(pairs) - 1} scores, the epoch{outcomes}"
    record = rerun.then.record
    score, *_ = [pair for pair in pairs if pair.name == f"test {record.metric}"]
    if score.then == score.now:
        sentence = f"the same score, test {record.metric} {_value_texts(score)[0]}"
    else:
        position = "within" if agrees_within_interval(rerun) else "outside"
        then, now = _value_texts(score)
        sentence = f"test {record.metric} is {now}, {position} the interval of the recorded {then}"
    others = [pair.name for pair in pairs if pair.then != pair.now and pair is not score]
    parts = [f"{', '.join(others)} differ"] * bool(others) + [f"{changed} of {count} outcomes differ"] * bool(changed)
    return "; ".join([sentence, *parts])


def environment_differences(rerun: Rerun) -> list[str]:
    """Return the differences between the recorded environment and that of the rerun, as far as it was recorded."""
    then, now = rerun.then.record, rerun.now.record
    single = [("device", then.device, now.device), ("commit", _short(then.commit), _short(now.commit))]
    texts = [_difference(name, old, new) for name, old, new in single if old and old != new]
    if then.commit and then.commit == now.commit and now.commit.endswith("+"):
        texts.append(f"code changed since commit {_short(now.commit)[:-1]}, perhaps not in the same way")
    for title, old, new in (
        ("", then.versions, now.versions),
        ("", then.machine, now.machine),
        ("threads of ", then.threads, now.threads),
    ):
        texts += _differences(title, old, new)
    missing = [name for name in ("commit", "machine", "threads") if not getattr(then, name)]
    return texts + [f"{', '.join(missing)} not recorded then"] * bool(missing)


def _short(code: str) -> str:
    return code[:12] + "+" * code.endswith("+")


def _differences(title: str, old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """The entries that differ; `old` is empty where nothing was recorded."""
    keys = sorted({*old, *new}) if old else []
    return [
        _difference(title + key, old.get(key, "none"), new.get(key, "none"))
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _difference(name: str, old: object, new: object) -> str:
    return f"{name} {old} then, {new} now"
