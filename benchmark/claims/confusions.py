"""Which languages are taken for which, and how often for related ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from benchmark.claims.predictions import Mark, Row, TaskPredictions

Groups = tuple[frozenset[str], ...]

# Of the embedded corpus; Finnish, Mandarin, Swahili and Turkish have no relative among its languages.
BRANCHES: Groups = (frozenset({"de", "en-us"}), frozenset({"es", "fr"}))  # Germanic, Romance
FAMILY: Groups = (frozenset({"de", "en-us", "es", "fr", "hi", "ru"}),)  # Indo-European


def taken_for(groups: Groups, related: bool = True) -> Mark:
    """Whether a clip of a language in a group is taken for another one in it, or for one outside (not related)."""
    group_of = {language: group for group in groups for language in group}

    def mark(row: Row) -> tuple[float, float] | None:
        truth, said = row["reference"], row["prediction"]
        if truth not in group_of:
            return None
        return float(said != truth and (said in group_of[truth]) == related), 1.0

    return mark


def mixed_up(groups: Groups) -> Mark:
    """Whether a clip of a language in a group is taken for another one in it, if it is taken for one in it at all."""
    group_of = {language: group for group in groups for language in group}

    def mark(row: Row) -> tuple[float, float] | None:
        truth, said = row["reference"], row["prediction"]
        if truth not in group_of:
            return None
        return float(said != truth and said in group_of[truth]), float(said in group_of[truth])

    return mark


KINDS: dict[str, Mark] = {
    "taken for another of its branch": taken_for(BRANCHES),
    "mixed up within its branch": mixed_up(BRANCHES),
    "taken for one outside its branch": taken_for(BRANCHES, related=False),
    "taken for another Indo-European": taken_for(FAMILY),
}


def matrix(cells: Iterable[TaskPredictions]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: of the clips of each language, the percentage taken for each; means over cells."""
    found = [_shares(rows) for cell in cells for rows in cell.heads]
    names = sorted({name for shares in found for pair in shares for name in pair})
    truths = [name for name in names if any(truth == name for shares in found for truth, _ in shares)]
    return ["language \\ taken for", *names], [[truth, *_percentages(found, truth, names)] for truth in truths]


def _percentages(found: Sequence[dict[tuple[str, str], float]], truth: str, names: Sequence[str]) -> list[str]:
    return [f"{100 * fmean(shares.get((truth, said), 0.0) for shares in found):.1f}" for said in names]


def _shares(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Of the clips of each language, the share that is taken for each."""
    pairs = Counter((row["reference"], row["prediction"]) for row in rows)
    totals = Counter(row["reference"] for row in rows)
    return {pair: count / totals[pair[0]] for pair, count in pairs.items()}
