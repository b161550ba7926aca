"""The main job, whole: `bench run fbank` on the embedded corpus, as a new user would start it."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas
import pytest

CHANCE = {
    "keyword": 100 / 12,
    "language": 10.0,
    "emotion": 25.0,
    "event": 100 / 14,
    "events": 15.0,
    "speaker": 100 / 66,
}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> pandas.Series:
    """Scores of `fbank` by task."""
    folder = tmp_path_factory.mktemp("main")
    command = [sys.executable, "-c", "from benchmark.cli.app import main; main()", "run", "fbank", "--workers", "2"]
    environment = {**os.environ, "BENCH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--results", str(folder / "results")], check=True, env=environment, cwd=folder)
    table = pandas.read_csv(folder / "results" / "leaderboard.csv", index_col="upstream")
    scores = table[[column for column in table.columns if len(column.split()) == 2]]
    return scores.loc["fbank"].rename(lambda column: column.split()[0].removeprefix("tiny_"))


@pytest.mark.parametrize("task", sorted(CHANCE))
def test_no_task_is_at_chance_or_saturated_for_fbank(board: pandas.Series, task: str) -> None:
    assert CHANCE[task] * 1.5 < board[task] < 85


def test_neither_verification_nor_recognition_is_at_chance_or_saturated_for_fbank(board: pandas.Series) -> None:
    assert 10 < board["verification"] < 40
    assert 15 < board["asr"] < 85
