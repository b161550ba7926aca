"""Tests of the LaTeX table: it compiles, text is escaped, and only the best scores are bold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmark.tables.latex import TASKS_PER_TABLE, escaped, latex, latex_cell
from benchmark.tables.leaderboard import Board, leaderboard
from benchmark.tables.published import Published
from tests.benchmark.made import record

CELL = leaderboard([record(seed=0), record(seed=1)])["fbank", "words"]


def made(tasks: int = 3) -> Board:
    names = [f"task_{number}" for number in range(tasks)]
    table = leaderboard([record(name, task) for name in ("my_up&stream", "v{1}") for task in names])
    cells = {
        key: cell._replace(low=38.0, high=42.0, unit="speakers", clusters=9, best=key[0].startswith("my"), rank=1)
        for key, cell in table.items()
    }
    return Board(cells, {"my_up&stream": 3.0, "v{1}": 0.0}, names)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"low": 37.0, "high": 43.0}, r"$40.0 \pm 3.0$"),
        ({"low": 36.9, "high": 42.7}, r"$40.0 \pm 3.1$"),
        ({"low": 36.0, "high": 43.0}, "$40.0^{+3.0}_{-4.0}$"),
        ({"low": 37.0, "high": 43.0, "best": True}, r"$\mathbf{40.0} \pm 3.0$"),
        ({}, "$40.0$"),
        ({"edge": True, "limit": 5}, r"$40.0$\textsuperscript{\textdagger}\textsuperscript{\textdaggerdbl}"),
        ({"value": float("nan")}, "diverged"),
        ({"metric": "min_dcf", "value": 0.5, "low": 0.41, "high": 0.59}, r"$0.500 \pm 0.090$"),
    ],
)
def test_a_cell_shows_its_interval_and_is_bold_only_when_best(change: dict[str, object], text: str) -> None:
    assert latex_cell(CELL._replace(**change)) == text  # type: ignore[arg-type]


def test_a_missing_cell_is_a_dash() -> None:
    assert latex_cell(None) == "--"


def test_special_characters_of_latex_are_escaped() -> None:
    assert escaped(r"a_b&c%d$e#f{g}h~i^j\k") == (
        r"a\_b\&c\%d\$e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )


def test_tables_are_no_wider_than_a_page_and_rules_are_booktabs() -> None:
    text = latex(made(2 * TASKS_PER_TABLE + 1))
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{table*}") == 3
    assert len(set(re.findall(r"\\label\{.*\}", text))) == 3
    for line in text.splitlines():
        assert line.count(" & ") <= TASKS_PER_TABLE + 1
    assert r"\hline" not in text
    assert text.count("Borda & ") + text.count("Borda \\\\") == 1


def test_published_rows_are_italic_and_footnoted_with_one_number_for_one_source() -> None:
    facts = [("Some_system", f"task_{number}") for number in (0, TASKS_PER_TABLE)]
    beside = [Published(*fact, 12.5, "accuracy", "SUPERB", "Somebody, 2020", "A", False) for fact in facts]
    text = latex(made(TASKS_PER_TABLE + 1), beside=beside)
    assert text.count(r"\textit{12.5}\textsuperscript{1}") == 2
    assert text.count(r"\textit{Some\_system}") == 2
    assert len(re.findall(r"^\\textsuperscript\{1\}SUPERB", text, re.MULTILINE)) == 1
    assert "rank" not in text
    same = latex(made(), beside=[beside[0]._replace(same_protocol=True, value=45.0)])
    assert r"\textit{45 (rank 1)}" in same
    assert r"\textit{35 (rank 3)}" in latex(made(), beside=[beside[0]._replace(same_protocol=True, value=35.0)])


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine to compile the table with")
def test_the_table_compiles(tmp_path: Path) -> None:
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{textcomp}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{latex(made(8))}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
