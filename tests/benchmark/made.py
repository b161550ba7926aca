"""Records made up for tests of what is done with records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmark.plan import PROTOCOL
from benchmark.records import Record
from benchmark.tables.leaderboard import Board
from benchmark.tables.ranking import board


def record(
    upstream: str = "fbank",
    task: str = "words",
    lr: float | None = 1e-3,
    seed: int = 0,
    valid: float | None = 50.0,
    test: float | None = 40.0,
    metric: str = "accuracy",
    higher: bool = True,
    **fields: Any,
) -> Record:
    """A record with plausible values everywhere else."""
    card = {"name": upstream, "fingerprint": "f" * 64, "precision": "fp32", "layers": 3, "dim": 4, "hop": 160}
    values: dict[str, Any] = {
        "id": f"{task}-{upstream}-{lr}-{seed}-{fields.get('fold')}",
        "group": "g",
        "protocol": PROTOCOL,
        "created": "2026-01-02T03:04:05+00:00",
        "task": {"name": task, "corpus": "tones", "head": "classification", "epochs": 3} | fields.pop("settings", {}),
        "upstream": card | {"parameters": 0} | fields.pop("card", {}),
        "features": "summary",
        "fold": None,
        "lr": lr,
        "seed": seed,
        "metric": metric,
        "higher": higher,
        "valid": {metric: valid},
        "test": {metric: test},
        "epoch": 2,
        "curve": [(1.0, 10.0), (0.5, valid), (None, None)],
        "diverged": valid is None,
        "layer_weights": [0.2, 0.3, 0.5],
        "corpus": "c" * 64,
        "selection": "s" * 64,
        "clips": {"train": 10, "valid": 5, "test": 6},
        "trials": {},
        "skipped": {},
        "limit": None,
        "seconds": {"fit": 1.5, "test": 0.5},
        "device": "cpu",
        "versions": {"torch": "2"},
    }
    return Record(**(values | fields))


def bare(records: Iterable[Record]) -> Board:
    """The board of records whose outcomes are lost, and so without intervals and ranks."""

    def lost(each: Record) -> list[dict[str, str]]:
        raise FileNotFoundError(each.id)

    return board(list(records), lost)
