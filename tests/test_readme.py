"""README's tables are what the code produced."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent


def scores(path: Path) -> dict[tuple[str, str], str]:
    """Cells of the leaderboards in a Markdown file, by upstream and heading."""
    found: dict[tuple[str, str], str] = {}
    heading: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "upstream":
            heading = cells
        elif line.startswith("| `") and heading:
            found |= {(cells[0], name): cell for name, cell in zip(heading[1:], cells[1:], strict=True)}
        elif not line.startswith("|"):
            heading = []
    return found


def test_readme_shows_the_leaderboard_in_results_whole() -> None:
    shown, produced = scores(ROOT / "README.md"), scores(ROOT / "results" / "leaderboard.md")
    assert len(produced) == 50
    assert shown == produced
