"""README's tables are what the code produced."""

from __future__ import annotations

import re
from pathlib import Path

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
    assert len(produced) == 58
    assert scores(ROOT / "README.md") == produced
