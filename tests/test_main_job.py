"""The main job, whole: `bench run fbank` on the embedded corpus, as a new user would start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.slow  # it renders the whole corpus; tests/benchmark/test_run.py runs the same stages on a small one
def test_the_main_job_scores_fbank_above_chance_and_below_saturation(tmp_path: Path) -> None:
    # One test, so that parallel test processes do not each run the whole job.
    command = [sys.executable, "-c", "from benchmark.cli.app import main; main()", "run", "fbank", "--workers", "2"]
    environment = {**os.environ, "BENCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--results", str(tmp_path / "results")], check=True, env=environment, cwd=tmp_path)
    table = pandas.read_csv(tmp_path / "results" / "leaderboard.csv", index_col="upstream")
    scores = table[[column for column in table.columns if len(column.split()) == 2]]
    board = scores.loc["fbank"].rename(lambda column: column.split()[0].removeprefix("tiny_"))
    bounds = {task: (1.5 * chance, 85) for task, chance in CHANCE.items()} | {"verification": (10, 40), "asr": (15, 85)}
    outside = {task: board[task] for task, (low, high) in bounds.items() if not low < board[task] < high}
    assert not outside
