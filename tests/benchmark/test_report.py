"""Tables as CSV, Markdown and on a terminal show what there is and hide nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.leaderboard import leaderboard
from benchmark.records import Record
from benchmark.report import drawn, markdown, notes, rows_of, text_of, write
from tests.benchmark.made import record

GRID = [record("u", "words", lr, seed, lr * 1000, 40.0 + seed) for lr in (1e-3, 1e-2) for seed in (0, 1)]
OTHER = [record("v", "texts", 1e-2, 0, 20.0, 12.34567, metric="wer", higher=False)]


def cells(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_wide_table_has_a_row_per_upstream_and_leaves_missing_cells_empty(tmp_path: Path) -> None:
    paths = write(tmp_path, leaderboard(GRID + OTHER), GRID + OTHER)
    assert [path.name for path in paths] == ["leaderboard.csv", "leaderboard.md", "results.csv"]
    assert cells(paths[0]) == [["upstream", "texts wer", "words accuracy"], ["u", "", "40.5"], ["v", "12.3457", ""]]
    rows = [line for line in paths[1].read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows == ["| `u` | – | 40.5 ± 0.7† |", "| `v` | 12.3 | – |"]


def test_rows_and_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    paths = write(tmp_path, leaderboard(GRID + OTHER), GRID + OTHER, ["v", "absent", "u", "v"], ["words", "texts"])
    assert cells(paths[0])[0] == ["upstream", "words accuracy", "texts wer"]
    assert [row[0] for row in cells(paths[0])[1:]] == ["v", "u"]
    assert rows_of(leaderboard(GRID + OTHER), ["v"]) == ["v", "u"]


def test_the_long_table_has_a_row_per_job_and_says_which_were_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, leaderboard(GRID + OTHER), GRID + OTHER)[2]
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert len(rows) == 5
    assert [row["chosen"] for row in rows] == ["False", "False", "True", "True", "True"]
    assert [row["test"] for row in rows] == ["40.0", "41.0", "40.0", "41.0", "12.34567"]
    assert rows[0]["test_accuracy"] == "40.0"
    assert rows[0]["test_wer"] == ""
    assert {row["job"] for row in rows} == {each.id for each in GRID + OTHER}


def test_the_long_table_tells_what_upstreams_cost_and_which_revision_they_are(tmp_path: Path) -> None:
    cost = {"parameters": 7, "macs_per_second": 7.2e9, "real_time_factor": 0.125, "threads": 2}
    records = [record(), record(seed=1, cost=cost, origin={"model.pt": "a" * 64, "revision": "c0ffee"})]
    path = write(tmp_path, leaderboard(records), records)[2]
    older, newer = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    names = ("macs_per_second", "real_time_factor", "threads", "revision")
    assert [older[name] for name in names] == [""] * 4
    assert [float(newer[name]) for name in names[:3]] == [7.2e9, 0.125, 2]
    assert newer["revision"] == "c0ffee"


def test_headings_say_which_direction_is_better() -> None:
    head = markdown(leaderboard(GRID + OTHER)).splitlines()[0]
    assert head == "| upstream | texts WER ↓ | words acc ↑ |"


@pytest.mark.parametrize(
    ("records", "mark", "sentence"),
    [
        (GRID, "†", "at the edge"),
        ([record(limit=3)], "‡", "--limit"),
        ([record(skipped={"bad audio": 3})], "", "words: 3 clips or trials were left out"),
        ([record(metric="min_dcf", higher=False)], "", "minDCF is normalised"),
    ],
)
def test_marks_are_explained_where_they_occur(records: list[Record], mark: str, sentence: str) -> None:
    table = leaderboard(records)
    assert mark in text_of(next(iter(table.values())))
    assert sentence in " ".join(notes(table))
    plain = leaderboard([record()])
    assert sentence not in " ".join(notes(plain))
    assert text_of(next(iter(plain.values()))) == "40.0"


def test_a_cell_that_diverged_everywhere_is_shown_as_such_and_has_no_number(tmp_path: Path) -> None:
    records = [record(valid=None, test=3.0, seed=seed) for seed in (0, 1)]
    table = leaderboard(records)
    assert text_of(table["fbank", "words"]) == "diverged"
    paths = write(tmp_path, table, records)
    assert cells(paths[0])[1] == ["fbank", ""]
    assert "diverged" in paths[1].read_text()
    assert [board.row_count for board in drawn(table)] == [1]


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_a_table_too_wide_for_a_terminal_is_cut_between_tasks_and_never_within(width: int) -> None:
    names = [f"task_number_{number}" for number in range(9)]
    boards = drawn(leaderboard([record(task=name, seed=seed) for name in names for seed in (0, 1)]), width=width)
    text = io.StringIO()
    for board in boards:
        Console(file=text, width=max(width, 40)).print(board)
    assert [name for name in names if f" {name} " in text.getvalue()] == names
    assert text.getvalue().count("40.0 ± 0.0") == len(names)
    assert len(boards) == {20: 9, 60: 3, 80: 3, 200: 1}[width]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name, records in (("one", GRID + OTHER), ("two", [*OTHER, *GRID[::-1]])):
        write(tmp_path / name, leaderboard(records), records)
    for name in ("leaderboard.csv", "leaderboard.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
