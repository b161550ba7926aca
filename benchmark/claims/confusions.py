"""Count which languages are mistaken for which, and how often for related ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from benchmark.statistics.outcomes import Row

Groups = tuple[frozenset[str], ...]
Mark = Callable[[Row], tuple[float, float]]  # the mark and the size of a clip; (0, 0) leaves it out

# Languages of the embedded corpus; Finnish, Mandarin, Swahili and Turkish have no relative among them.
BRANCHES: Groups = (frozenset({"de", "en-us"}), frozenset({"es", "fr"}))  # Germanic, Romance
FAMILY: Groups = (frozenset({"de", "en-us", "es", "fr", "hi", "ru"}),)  # Indo-European


def mistaken_for(groups: Groups, related: bool = True) -> Mark:
    """Mark clips whose language is in a group and that are mistaken for another one in it, or outside (not related)."""
    group_of = {language: group for group in groups for language in group}

    def mark(row: Row) -> tuple[float, float]:
        truth, predicted = row["reference"], row["prediction"]
        if truth not in group_of:
            return 0.0, 0.0
        return float(predicted != truth and (predicted in group_of[truth]) == related), 1.0

    return mark


def mixed_up_within(groups: Groups) -> Mark:
    """Mark clips that are mistaken for another language of their group, among those predicted to be in the group."""
    group_of = {language: group for group in groups for language in group}

    def mark(row: Row) -> tuple[float, float]:
        truth, predicted = row["reference"], row["prediction"]
        if truth not in group_of:
            return 0.0, 0.0
        within = predicted in group_of[truth]
        return float(predicted != truth and within), float(within)

    return mark


CONFUSION_KINDS: dict[str, Mark] = {
    "taken for another of its branch": mistaken_for(BRANCHES),
    "mixed up within its branch": mixed_up_within(BRANCHES),
    "taken for one outside its branch": mistaken_for(BRANCHES, related=False),
    "taken for another Indo-European": mistaken_for(FAMILY),
}


def confusion_matrix(runs: Iterable[Sequence[Row]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of the percentage of each language's clips that is predicted to be each.

    runs: the outcomes of each run; percentages are means over runs.
    """
    shares = [_shares(rows) for rows in runs]
    names = sorted({name for run in shares for pair in run for name in pair})
    truths = [name for name in names if any(truth == name for run in shares for truth, _ in run)]
    return ["language \\ taken for", *names], [[truth, *_percentages(shares, truth, names)] for truth in truths]


def _percentages(shares: Sequence[dict[tuple[str, str], float]], truth: str, names: Sequence[str]) -> list[str]:
    return [f"{100 * fmean(run.get((truth, predicted), 0.0) for run in shares):.1f}" for predicted in names]


def _shares(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """The share of the clips of each language that is predicted to be each."""
    pairs = Counter((row["reference"], row["prediction"]) for row in rows)
    totals = Counter(row["reference"] for row in rows)
    return {pair: count / totals[pair[0]] for pair, count in pairs.items()}
