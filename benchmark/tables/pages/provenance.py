"""The provenance of each cell of the leaderboard: jobs, code, data and machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmark.records import Record
from benchmark.tables.leaderboard import Cell
from benchmark.tables.pages.figures import Column, interval_text, score_number, score_text
from benchmark.tables.pages.markup import Markup, breakable, element, listing


def anchor(task: Column, place: int) -> str:
    """Return the HTML id of the provenance of an upstream's cell."""
    return f"{task.key}-{place}"


def uncertainty_in_words(cell: Cell) -> str:
    """Return in words what is known of the uncertainty of a score."""
    if not math.isfinite(cell.value):
        return "no learning rate gave a score on validation"
    spread = "" if cell.spread is None else f"; ± {score_number(cell.spread, cell.metric)} over {cell.seeds} seeds"
    if not interval_text(cell):
        return f"interval not known{spread}"
    over = f" over {cell.clusters} {cell.unit}" if cell.unit else ""
    return f"95 % interval{over}{spread}"


def provenance(task: Column, name: str, place: int) -> Markup:
    """Return a collapsible box with the jobs, code, data and machine of an upstream's cell."""
    cell, records = task.cells[name], task.chosen(name)
    summary = element("summary", breakable(name), " ", element("small", f"{score_text(cell)} {interval_text(cell)}"))
    facts = ((element("dt", key), element("dd", value)) for key, value in _facts(cell, records) if value)
    details = element("dl", (part for fact in facts for part in fact), id=anchor(task, place))
    return element("details", summary, details, _jobs(records))


def _facts(cell: Cell, records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return titled facts on a cell; where its jobs differ, all their values are given."""
    upstreams = [record.upstream for record in records]
    return [
        ("score", f"{score_text(cell)} {interval_text(cell)}, {uncertainty_in_words(cell)}"),
        ("learning rate", "" if cell.lr is None else f"{cell.lr:g}, chosen on validation"),
        ("commit", _distinct(record.commit or "unknown" for record in records)),
        ("corpus", _distinct(record.corpus for record in records)),
        ("selection", _distinct(record.selection for record in records)),
        ("upstream", _distinct(upstream.get("fingerprint", "") for upstream in upstreams)),
        ("from", _distinct(f"{file} {digest}" for record in records for file, digest in record.origin.items())),
        ("features", _distinct(f"{record.features}, {record.upstream.get('precision', '')}" for record in records)),
        ("clips", _distinct(_pairs(record.clips) for record in records)),
        ("left out", _distinct(_pairs(record.skipped) for record in records)),
        ("limit", "" if cell.limit is None else f"{cell.limit} clips of each split"),
        ("device", _distinct(record.device for record in records)),
        ("machine", _distinct(_pairs(record.machine) or "unknown" for record in records)),
        ("threads", _distinct(_pairs(record.threads) for record in records)),
        ("versions", _distinct(_pairs(record.versions) for record in records)),
        ("protocol", _distinct(str(record.protocol) for record in records)),
    ]


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(value for value in dict.fromkeys(values) if value)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _jobs(records: Sequence[Record]) -> Markup:
    head = ["job", "seed", "fold", "epoch", "validation", "test", "created"]
    return listing(head, [_job(record) for record in records], "Jobs")


def _job(record: Record) -> list[str]:
    scores = [_score(record.valid.get(record.metric), record), _score(record.test.get(record.metric), record)]
    return [record.id, str(record.seed), record.fold or "–", str(record.epoch), *scores, record.created]


def _score(value: float | None, record: Record) -> str:
    return "–" if value is None else score_number(value, record.metric)
