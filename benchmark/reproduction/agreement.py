"""One job done twice: what came out otherwise the second time, by how much, and what may be why. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.tables.ranking import judge

Row = dict[str, str]  # of outcomes
CLUSTERS = ("cluster", "enroll_cluster", "test_cluster")  # columns that older outcomes do not have


class Found(NamedTuple):
    """A record with its outcomes, None where they are lost."""

    record: Record
    outcomes: list[Row] | None


class Rerun(NamedTuple):
    """One job twice."""

    then: Found
    now: Found


class ScorePair(NamedTuple):
    """A number of the record and what it is now."""

    name: str
    then: float | None
    now: float | None


def compared(repeat: Rerun) -> list[ScorePair]:
    """Every score on test and on validation, and the epoch that was chosen."""
    then, now = repeat.then.record, repeat.now.record
    pairs = [("test", then.test, now.test), ("valid", then.valid, now.valid)]
    scores = [
        ScorePair(f"{split} {name}", old.get(name), new.get(name))
        for split, old, new in pairs
        for name in dict.fromkeys([*old, *new])
    ]
    return [*scores, ScorePair("epoch", then.epoch, now.epoch)]


def changed_outcomes(repeat: Rerun) -> int:
    """Test clips or trials that were answered in another way, be it in the last bit."""
    pairs = zip_longest(repeat.then.outcomes or [], repeat.now.outcomes or [])
    return 0 if repeat.then.outcomes is None else sum(_answer(old) != _answer(new) for old, new in pairs)


def _answer(row: Row | None) -> Row | None:
    return row and {name: value for name, value in row.items() if name not in CLUSTERS}


def table(repeat: Rerun) -> list[list[str]]:
    """Rows of name, recorded, now, and whether they differ."""
    return [[each.name, *_shown(each), "" if each.then == each.now else "differs"] for each in compared(repeat)]


def _shown(each: ScorePair) -> tuple[str, str]:
    """Rounded, unless it takes every digit to tell the two apart."""
    texts = ["none" if value is None else f"{value:.6g}" for value in (each.then, each.now)]
    if texts[0] == texts[1] and each.then != each.now:
        texts = [repr(each.then), repr(each.now)]
    return texts[0], texts[1]


def same(repeat: Rerun) -> bool:
    """Whether scores, epoch and outcomes are the same to the last bit."""
    return all(each.then == each.now for each in compared(repeat)) and not changed_outcomes(repeat)


def agrees(repeat: Rerun) -> bool:
    """Whether the score is the same, or as near as its interval says it may be."""
    then, now = repeat.then.record, repeat.now.record
    return then.test.get(then.metric) == now.test.get(now.metric) or within(*repeat.then, now)


def within(record: Record, outcomes: Sequence[Row] | None, again: Record) -> bool:
    """Whether a test score lies in the 95 % interval of the recorded one."""
    then, now = record.test.get(record.metric), again.test.get(record.metric)
    if then is None or now is None or not outcomes:
        return False
    try:
        told = judge([record], lambda _: outcomes).interval([0])
    except UserError:  # the record contradicts its outcomes
        return False
    return told.low <= now <= told.high


def verdict(repeat: Rerun) -> str:
    """In one sentence what came out."""
    every, lost = compared(repeat), changed_outcomes(repeat)
    count = len(repeat.then.outcomes or [])
    if same(repeat):
        answers = f" and {count} outcomes" if repeat.then.outcomes is not None else "; its outcomes are lost"
        return f"the same to the last bit: {len(every) - 1} scores, the epoch{answers}"
    record = repeat.then.record
    score, *_ = [each for each in every if each.name == f"test {record.metric}"]
    if score.then == score.now:
        told = f"the same score, test {record.metric} {_shown(score)[0]}"
    else:
        where = "within" if agrees(repeat) else "outside"
        told = f"test {record.metric} is {_shown(score)[1]}, {where} the interval of the recorded {_shown(score)[0]}"
    others = [each.name for each in every if each.then != each.now and each is not score]
    parts = [f"{', '.join(others)} differ"] * bool(others) + [f"{lost} of {count} outcomes differ"] * bool(lost)
    return "; ".join([told, *parts])


def differences(repeat: Rerun) -> list[str]:
    """What of the environment is not as it was, as far as it was recorded."""
    then, now = repeat.then.record, repeat.now.record
    single = [("device", then.device, now.device), ("commit", _short(then.commit), _short(now.commit))]
    found = [_told(*each) for each in single if each[1] and each[1] != each[2]]
    if then.commit and then.commit == now.commit and now.commit.endswith("+"):
        found.append(f"code changed since commit {_short(now.commit)[:-1]}, perhaps not in the same way")
    for title, old, new in (
        ("", then.versions, now.versions),
        ("", then.machine, now.machine),
        ("threads of ", then.threads, now.threads),
    ):
        found += _unlike(title, old, new)
    untold = [name for name in ("commit", "machine", "threads") if not getattr(then, name)]
    return found + [f"{', '.join(untold)} not recorded then"] * bool(untold)


def _short(code: str) -> str:
    return code[:12] + "+" * code.endswith("+")


def _unlike(title: str, old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """old: empty where it was not recorded."""
    keys = sorted({*old, *new}) if old else []
    return [
        _told(title + key, old.get(key, "none"), new.get(key, "none")) for key in keys if old.get(key) != new.get(key)
    ]


def _told(name: str, old: object, new: object) -> str:
    return f"{name} {old} then, {new} now"
