"""What a recogniser mishears: kinds of errors, frequent ones, and the worst utterances word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmark.statistics.outcomes import Row
from benchmark.tables.pages.figures import note
from benchmark.tables.pages.markup import Markup, element, joined, listing

LISTED = 10  # misheard words, and worst utterances
WORST = "Worst utterances of the first job: reference, what was heard, and S(ubstituted), D(eleted), I(nserted)."


class Edit(NamedTuple):
    """A word (or character) of the reference against one of the hypothesis; "" where there is none."""

    truth: str
    said: str

    @property
    def kind(self) -> str:
        """S, D or I as in sclite, "" where they agree."""
        return "" if self.truth == self.said else "D" if not self.said else "I" if not self.truth else "S"


class Heard(NamedTuple):
    """An utterance and how its hypothesis differs."""

    id: str
    edits: list[Edit]

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return sum(bool(edit.kind) for edit in self.edits)

    @property
    def length(self) -> int:
        """Words of the reference."""
        return sum(bool(edit.truth) for edit in self.edits)


def rates(rows: Sequence[Row], unit: str) -> list[str]:
    """Errors in percent of the reference: all, substituted, deleted, inserted; unit: "word" or "character"."""
    counts = {
        name: sum(int(row[f"{unit}_{name}"]) for row in rows)
        for name in ("substitutions", "deletions", "insertions", "hits")
    }
    edits = [counts["substitutions"], counts["deletions"], counts["insertions"]]
    length = counts["substitutions"] + counts["deletions"] + counts["hits"]
    return [f"{100 * count / length:.1f}" if length else "–" for count in (sum(edits), *edits)]


def misheard(jobs: Sequence[Sequence[Row]], unit: str) -> Markup:
    """Frequent errors over all jobs, and the utterances of the first one with the most errors."""
    heard = [_aligned(job, unit) for job in jobs]
    edits = Counter((e.truth, e.said) for job in heard for each in job for e in each.edits if e.kind)
    often = sorted(edits.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    rows = [[truth or "(nothing)", said or "(nothing)", str(count)] for (truth, said), count in often]
    worst = sorted(heard[0], key=lambda each: (-each.errors, each.length, each.id))[:LISTED]
    return joined(
        note(f"Most frequent {unit} errors:"),
        listing(["reference", "heard", "times"], rows, "Most frequent errors"),
        note(WORST),
        (_utterance(each) for each in worst if each.errors),
    )


def _aligned(rows: Sequence[Row], unit: str) -> list[Heard]:
    """By the alignment that the error rates count."""
    import jiwer

    align = jiwer.process_characters if unit == "character" else jiwer.process_words
    found = align([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    parts = zip(rows, found.references, found.hypotheses, found.alignments, strict=True)
    return [Heard(row["id"], _edits(truth, said, chunks)) for row, truth, said, chunks in parts]


def _edits(truth: Sequence[str], said: Sequence[str], chunks: Iterable[object]) -> list[Edit]:
    edits: list[Edit] = []
    for chunk in chunks:
        here = [getattr(chunk, name) for name in ("ref_start_idx", "ref_end_idx", "hyp_start_idx", "hyp_end_idx")]
        left, right = truth[here[0] : here[1]], said[here[2] : here[3]]
        width = max(len(left), len(right))
        pad = [""] * width
        edits += map(Edit, [*left, *pad][:width], [*right, *pad][:width])
    return edits


def _utterance(heard: Heard) -> Markup:
    steps = (
        element(
            "span",
            element("span", edit.truth or "·"),
            element("span", edit.said or "·"),
            element("b", edit.kind or "\u00a0"),
            class_="wrong" if edit.kind else "step",
        )
        for edit in heard.edits
    )
    title = element("small", f"{heard.id}: {heard.errors} errors in {heard.length}")
    return element("div", title, element("div", steps, class_="steps"), class_="utterance")
