"""Errors of speech recognition: their kinds, the most frequent ones, and alignments of the worst utterances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmark.statistics.outcomes import Row
from benchmark.tables.pages.figures import note
from benchmark.tables.pages.markup import Markup, element, joined_markup, listing

LISTED = 10  # frequent errors, and worst utterances, that are listed
WORST_NOTE = "Worst utterances of the first job: reference, hypothesis, and S(ubstituted), D(eleted), I(nserted)."


class Edit(NamedTuple):
    """A word (or character) of the reference aligned with one of the hypothesis; "" where there is none."""

    reference: str
    hypothesis: str

    @property
    def kind(self) -> str:
        """S, D or I as in sclite; "" where the two are equal."""
        if self.reference == self.hypothesis:
            return ""
        return "D" if not self.hypothesis else "I" if not self.reference else "S"


class AlignedUtterance(NamedTuple):
    """An utterance with the alignment of its hypothesis."""

    id: str
    edits: list[Edit]

    @property
    def errors(self) -> int:
        """The number of substitutions, deletions and insertions."""
        return sum(bool(edit.kind) for edit in self.edits)

    @property
    def length(self) -> int:
        """The number of words (or characters) of the reference."""
        return sum(bool(edit.reference) for edit in self.edits)


def error_rates(rows: Sequence[Row], unit: str) -> list[str]:
    """Return errors in percent of the reference's length: all, substituted, deleted, inserted.

    unit: "word" or "character".
    """
    counts = {
        name: sum(int(row[f"{unit}_{name}"]) for row in rows)
        for name in ("substitutions", "deletions", "insertions", "hits")
    }
    edits = [counts["substitutions"], counts["deletions"], counts["insertions"]]
    length = counts["substitutions"] + counts["deletions"] + counts["hits"]
    return [f"{100 * count / length:.1f}" if length else "–" for count in (sum(edits), *edits)]


def transcript_errors(jobs: Sequence[Sequence[Row]], unit: str) -> Markup:
    """Return the most frequent errors over all jobs, and the utterances of the first job with the most errors."""
    aligned = [_aligned(job, unit) for job in jobs]
    edits = Counter(
        (e.reference, e.hypothesis) for job in aligned for utterance in job for e in utterance.edits if e.kind
    )
    frequent = sorted(edits.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    rows = [
        [reference or "(nothing)", hypothesis or "(nothing)", str(count)] for (reference, hypothesis), count in frequent
    ]
    worst = sorted(aligned[0], key=lambda utterance: (-utterance.errors, utterance.length, utterance.id))[:LISTED]
    return joined_markup(
        note(f"Most frequent {unit} errors:"),
        listing(["reference", "hypothesis", "times"], rows, "Most frequent errors"),
        note(WORST_NOTE),
        (_alignment(utterance) for utterance in worst if utterance.errors),
    )


def _aligned(rows: Sequence[Row], unit: str) -> list[AlignedUtterance]:
    """Align hypotheses with references as jiwer does for the error rates."""
    import jiwer

    align = jiwer.process_characters if unit == "character" else jiwer.process_words
    alignment = align([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    parts = zip(rows, alignment.references, alignment.hypotheses, alignment.alignments, strict=True)
    return [
        AlignedUtterance(row["id"], _edits(reference, hypothesis, chunks))
        for row, reference, hypothesis, chunks in parts
    ]


def _edits(reference: Sequence[str], hypothesis: Sequence[str], chunks: Iterable[object]) -> list[Edit]:
    edits: list[Edit] = []
    for chunk in chunks:
        ends = [getattr(chunk, name) for name in ("ref_start_idx", "ref_end_idx", "hyp_start_idx", "hyp_end_idx")]
        left, right = reference[ends[0] : ends[1]], hypothesis[ends[2] : ends[3]]
        width = max(len(left), len(right))
        pad = [""] * width
        edits += map(Edit, [*left, *pad][:width], [*right, *pad][:width])
    return edits


def _alignment(utterance: AlignedUtterance) -> Markup:
    steps = (
        element(
            "span",
            element("span", edit.reference or "·"),
            element("span", edit.hypothesis or "·"),
            element("b", edit.kind or "\u00a0"),
            class_="wrong" if edit.kind else "step",
        )
        for edit in utterance.edits
    )
    title = element("small", f"{utterance.id}: {utterance.errors} errors in {utterance.length}")
    return element("div", title, element("div", steps, class_="steps"), class_="utterance")
