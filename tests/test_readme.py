"""README's tables are what the code produced."""

from __future__ import annotations

import re
from pathlib import Path

from benchmark.comparison.pairs import compare_upstreams
from benchmark.comparison.summary import summary_sentence
from benchmark.records import Record, Results
from benchmark.tables.leaderboard import current_records

ROOT = Path(__file__).parent.parent
SOURCE = re.compile(r"<!-- (results/\S+\.md)")  # before each table, the file that it is taken from


def scores(path: Path, source: str = "") -> dict[tuple[str, str, str], str]:
    """Cells of the leaderboards in a Markdown file, by the file they come from, upstream and heading."""
    found: dict[tuple[str, str, str], str] = {}
    heading: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if told := SOURCE.search(line):
            source = told.group(1)
        if cells[0] == "upstream":
            heading = cells
        elif line.startswith("| `") and heading:
            found |= {(source, cells[0], name): cell for name, cell in zip(heading[1:], cells[1:], strict=True)}
        elif not line.startswith("|"):
            heading = []
    return found


def test_readme_shows_the_leaderboards_in_results_whole() -> None:
    names = ("results/leaderboard.md", "results/bf16/leaderboard.md")
    produced = {key: cell for name in names for key, cell in scores(ROOT / name, name).items()}
    assert len(produced) == 166 + 15 + 2, "and points of 15 and of 2 upstreams"
    assert scores(ROOT / "README.md") == produced


def test_readme_tells_what_a_comparison_concludes() -> None:
    results = Results(ROOT / "results")
    sides: dict[str, list[Record]] = {"pms_mini": [], "masr_mini": []}
    for record in current_records(results.read_all()[0]):
        if record.layer is None and record.upstream["name"] in sides:
            sides[record.upstream["name"]].append(record)
    (pair,) = compare_upstreams(sides, results.outcomes)
    assert summary_sentence(pair) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_readme_tells_what_became_of_each_claim() -> None:
    told = (ROOT / "results/claims/claims.md").read_text(encoding="utf-8").splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("<!-- results/claims/claims.md -->")[2].partition("\n## ")[0].splitlines()
    sentences = [line for line in told if line.startswith("- ") and "the paper:" in line]
    start = told.index("## Scores") + 2
    scored = told[start : told.index("", start)]
    assert len(sentences) >= 17
    assert [line for line in section if line.startswith("- ")] == sentences
    assert [line for line in section if line.startswith("|")] == scored
