"""Tests of the leaderboard as CSV, as Markdown and on a terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.records import Record
from benchmark.tables.cells import cell_text, ordered_upstreams, ranking_notes, table_notes
from benchmark.tables.leaderboard import Board, Cell, leaderboard
from benchmark.tables.published import Published
from benchmark.tables.report import markdown_leaderboard, stored_order, terminal_tables, write_leaderboard
from tests.benchmark.made import record

GRID = [record("u", "words", lr, seed, lr * 1000, 40.0 + seed) for lr in (1e-3, 1e-2) for seed in (0, 1)]
OTHER = [record("v", "texts", 1e-2, 0, 20.0, 12.34567, metric="wer", higher=False)]


def board(records: list[Record]) -> Board:
    """Return a board without intervals, as if outcomes were missing."""
    return Board(leaderboard(records), {}, [])


def lost(record: Record) -> list[dict[str, str]]:
    raise FileNotFoundError(record.id)


def judged(change: dict[str, object] | None = None) -> Board:
    """Return a board of two upstreams on a task, where the first is better."""
    table = leaderboard([record("u", test=60.0), record("v", test=40.0)])
    placed = {"unit": "speakers", "clusters": 9, "rank": 1, "best": True, "low": 55.5, "high": 64.25}
    table["u", "words"] = table["u", "words"]._replace(**placed | (change or {}))  # type: ignore[arg-type]
    placed |= {"rank": 2, "best": False, "low": 33.0, "high": 47.0}
    table["v", "words"] = table["v", "words"]._replace(**placed)  # type: ignore[arg-type]
    return Board(table, {"u": 1.0, "v": 0.0}, ["words"], {"words-u-0.001-0-None": (55.0, 65.0)})


def cells(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_wide_table_has_a_row_per_upstream_and_leaves_missing_cells_empty(tmp_path: Path) -> None:
    paths = write_leaderboard(tmp_path, board(GRID + OTHER), GRID + OTHER, lost)
    names = [f"leaderboard.{kind}" for kind in ("csv", "md", "tex", "html")]
    assert [path.name for path in paths] == [*names, "results.csv"]
    texts, words = (
        [title, f"{title} low", f"{title} high", f"{title} rank"] for title in ("texts wer", "words accuracy")
    )
    assert cells(paths[0]) == [
        ["upstream", *texts, *words, "borda"],
        ["u", "", "", "", "", "40.5", "", "", "", ""],
        ["v", "12.3457", "", "", "", "", "", "", "", ""],
    ]
    rows = [line for line in paths[1].read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows == ["| `u` | – | 40.5 ± 0.7† |", "| `v` | 12.3 | – |"]


def test_rows_and_columns_come_in_the_requested_order(tmp_path: Path) -> None:
    paths = write_leaderboard(
        tmp_path, board(GRID + OTHER), GRID + OTHER, lost, ["v", "absent", "u", "v"], ["words", "texts"]
    )
    assert cells(paths[0])[0][1:8:4] == ["words accuracy", "texts wer"]
    assert [row[0] for row in cells(paths[0])[1:]] == ["v", "u"]
    assert ordered_upstreams(leaderboard(GRID + OTHER), ["v"]) == ["v", "u"]


def test_the_long_table_has_a_row_per_job_and_says_which_were_chosen(tmp_path: Path) -> None:
    path = write_leaderboard(tmp_path, board(GRID + OTHER), GRID + OTHER, lost)[-1]
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert len(rows) == 5
    assert [row["chosen"] for row in rows] == ["False", "False", "True", "True", "True"]
    assert [row["test"] for row in rows] == ["40.0", "41.0", "40.0", "41.0", "12.34567"]
    assert rows[0]["test_accuracy"] == "40.0"
    assert rows[0]["test_wer"] == ""
    assert {row["job"] for row in rows} == {job.id for job in GRID + OTHER}


def test_the_long_table_has_costs_and_revisions_of_upstreams(tmp_path: Path) -> None:
    cost = {"parameters": 7, "macs_per_second": 7.2e9, "real_time_factor": 0.125, "threads": 2}
    records = [record(), record(seed=1, cost=cost, origin={"model.pt": "a" * 64, "revision": "c0ffee"})]
    path = write_leaderboard(tmp_path, board(records), records, lost)[-1]
    older, newer = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    names = ("macs_per_second", "real_time_factor", "threads", "revision")
    assert [older[name] for name in names] == [""] * 4
    assert [float(newer[name]) for name in names[:3]] == [7.2e9, 0.125, 2]
    assert newer["revision"] == "c0ffee"


def test_headings_say_which_direction_is_better() -> None:
    head = markdown_leaderboard(board(GRID + OTHER)).splitlines()[0]
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
    assert mark in cell_text(next(iter(table.values())))
    assert sentence in " ".join(table_notes(table))
    plain = leaderboard([record()])
    assert sentence not in " ".join(table_notes(plain))
    assert cell_text(next(iter(plain.values()))) == "40.0"


def test_a_cell_that_diverged_everywhere_is_shown_as_such_and_has_no_number(tmp_path: Path) -> None:
    records = [record(valid=None, test=3.0, seed=seed) for seed in (0, 1)]
    table = leaderboard(records)
    assert cell_text(table["fbank", "words"]) == "diverged"
    paths = write_leaderboard(tmp_path, board(records), records, lost)
    assert cells(paths[0])[1] == ["fbank", *[""] * 5]
    assert "diverged" in paths[1].read_text()
    assert [board.row_count for board in terminal_tables(table)] == [1]


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_a_table_too_wide_for_a_terminal_is_cut_between_tasks_and_never_within(width: int) -> None:
    names = [f"task_number_{number}" for number in range(9)]
    boards = terminal_tables(
        leaderboard([record(task=name, seed=seed) for name in names for seed in (0, 1)]), width=width
    )
    text = io.StringIO()
    for board in boards:
        Console(file=text, width=max(width, 40)).print(board)
    assert [name for name in names if f" {name} " in text.getvalue()] == names
    assert text.getvalue().count("40.0 ± 0.0") == len(names)
    assert len(boards) == {20: 9, 60: 3, 80: 3, 200: 1}[width]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name, records in (("one", GRID + OTHER), ("two", [*OTHER, *GRID[::-1]])):
        write_leaderboard(tmp_path / name, board(records), records, lost)
    for name in (f"leaderboard.{kind}" for kind in ("csv", "md", "tex")):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_cell_shows_its_interval_and_the_best_is_bold(tmp_path: Path) -> None:
    paths = write_leaderboard(tmp_path, judged(), [record("u", test=60.0), record("v", test=40.0)], lost)
    assert cells(paths[0])[1:] == [
        ["u", "60.0", "55.5", "64.25", "1", "1.0"],
        ["v", "40.0", "33.0", "47.0", "2", "0.0"],
    ]
    rows = [line for line in paths[1].read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows == ["| `u` | **60.0** [55.5, 64.2] | 1 |", "| `v` | 40.0 [33.0, 47.0] | 0 |"]
    jobs = list(csv.DictReader(io.StringIO(paths[-1].read_text(encoding="utf-8"))))
    assert [(row["low"], row["high"]) for row in jobs] == [("55.0", "65.0"), ("", "")]
    text = " ".join(ranking_notes(judged()))
    assert "bold: better than every other row" in text
    assert "Borda: over words" in text


def test_notes_name_what_was_resampled_and_tasks_with_one_seed() -> None:
    text = " ".join(table_notes(judged().table))
    assert "[ ]: 95 % interval over other test data and seeds; resampled were speakers: words 9" in text
    assert "words: one seed each, so that the intervals do not cover the variation between seeds" in text
    untrained = leaderboard([record("u", lr=None)])
    assert "seed each" not in " ".join(table_notes(untrained))
    spread = leaderboard([record("u", seed=0), record("u", seed=1)])
    assert "±: standard deviation over seeds, where there is no interval" in " ".join(table_notes(spread))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"low": 33.26, "high": 47.0}, "40.0 [33.3, 47.0]"),
        ({"low": 33.26, "high": 47.0, "edge": True}, "40.0 [33.3, 47.0]†"),
        ({"metric": "min_dcf", "value": 0.5, "low": 0.4567, "high": 0.6}, "0.500 [0.457, 0.600]"),
    ],
)
def test_intervals_are_shown_with_the_digits_of_their_metric(change: dict[str, object], text: str) -> None:
    cell: Cell = leaderboard([record()])["fbank", "words"]
    assert cell_text(cell._replace(**change)) == text  # type: ignore[arg-type]


def test_published_rows_are_below_in_italics_with_notes_and_have_a_rank_only_by_the_same_protocol() -> None:
    other = Published("Theirs", "words", 70.25, "accuracy", "SUPERB", "Somebody, 2020", "A", False)
    same = Published("Same", "words", 50.0, "accuracy", "ours", "Somebody, 2021", "B", True)
    text = markdown_leaderboard(judged(), beside=[other, same])
    assert "| *Theirs* | *70.25* [1] | – |" in text
    assert "| *Same* | *50 (rank 2)* [2] | – |" in text
    assert "- [1] SUPERB; Somebody, 2020 [A: " in text
    assert text.index("`v`") < text.index("*Theirs*")
    odd = markdown_leaderboard(judged(), beside=[other._replace(system="a_b*<b>", source="<script>")])
    assert r"*a\_b\*\<b>*" in odd
    assert "<script>" not in odd.replace(r"\<script>", "")


def test_the_order_on_disk_is_read_from_the_wide_table(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, board(GRID + OTHER), GRID + OTHER, lost, ["v"], ["words"])
    assert stored_order(tmp_path) == (["v", "u"], ["words", "texts"])
    (tmp_path / "leaderboard.csv").write_text("upstream,words accuracy,texts wer\nv,1,2\n")
    assert stored_order(tmp_path) == (["v"], ["words", "texts"]), "as older versions wrote it"
    assert stored_order(tmp_path / "nowhere") == ([], [])


def test_columns_of_the_long_table_do_not_depend_on_which_task_comes_first(tmp_path: Path) -> None:
    titles = [
        cells(write_leaderboard(tmp_path, board(records), records, lost, [], order)[-1])[0]
        for records in (GRID + OTHER, OTHER + GRID)
        for order in (["words", "texts"], ["texts", "words"])
    ]
    assert titles[0] == titles[1] == titles[2] == titles[3]
    at = titles[0].index("high") + 1
    assert titles[0][at : at + 5] == ["valid_accuracy", "valid_wer", "test_accuracy", "test_wer", "epoch"]
