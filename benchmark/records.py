"""Records: what one job found out, written once and never edited."""

from __future__ import annotations

import csv
import errno
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.files import aside, digest, remove_partial_files, write_text


class Record(BaseModel):
    """Everything one job found out, and all that is needed to tell how.

    group: shared by the jobs that differ only in learning rate and seed. higher: the metric's better direction.
    valid, test: metric -> score, rates in percent. epoch: the one chosen on validation. curve: per epoch, training loss
    and validation score. clips: by split. skipped: left out, by reason. seconds: of the sweep by stage. diverged: the
    loss became infinite. limit: clips per split, if the run was cut short. cost: of encoding, by parameters,
    macs_per_second of audio, real_time_factor (time / audio) and the threads it took; empty in older records. origin:
    SHA-256 of each file that the upstream came from by name, and the "revision" of a hub's. layer: the only one that
    the head was fed, None for their learned sum. clustered_by: the label that tells which test clips depend on each
    other, "" where only clips of one file do, None in older records. beside: learning rate, seed and layer of each job
    that was trained in one computation with this one, in order. skip_bad: bad audio and labels were left out, counted.
    commit: of the code, with "+" where it was changed since. machine: where it ran. threads: of encoding and of heads.
    contents: digests of what `selection` is the digest of, by kind: audio, labels, trials.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    group: str
    protocol: int
    created: str
    task: dict[str, Any]
    upstream: dict[str, Any]
    features: str
    fold: str | None
    lr: float | None
    seed: int
    metric: str
    higher: bool
    valid: dict[str, int | float | None]
    test: dict[str, int | float | None]
    epoch: int
    curve: list[tuple[float | None, float | None]]
    diverged: bool
    layer_weights: list[float]
    corpus: str
    selection: str
    clips: dict[str, int]
    trials: dict[str, int]
    skipped: dict[str, int]
    limit: int | None
    seconds: dict[str, float]
    cost: dict[str, int | float | None] = {}
    origin: dict[str, str] = {}
    device: str
    versions: dict[str, str]
    layer: int | None = None
    clustered_by: str | None = None
    beside: list[tuple[float | None, int, int | None]] = []
    skip_bad: bool = False
    commit: str = ""
    machine: dict[str, str] = {}
    threads: dict[str, int] = {}
    contents: dict[str, str] = {}


class Results:
    """A folder of records: runs/<task>/<upstream>/<job>.json, each with its outcomes beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder; raises OSError now, not after hours, where nothing can be written to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.folder))

    def path(self, task: str, upstream: str, job: str) -> Path:
        """Of a job's record."""
        return self.folder / "runs" / slug(task) / slug(upstream) / f"{job}.json"

    def has(self, task: str, upstream: str, job: str) -> bool:
        """Whether the job is done; a record that cannot be read has to be made anew."""
        return load(self.path(task, upstream, job)) is not None

    def write(self, record: Record, outcomes: Sequence[Mapping[str, Any]]) -> None:
        """Outcomes first, then the record: a record on disk has its outcomes."""
        path = self.path(record.task["name"], record.upstream["name"], record.id)
        _write_outcomes(path.with_suffix(".outcomes.csv.gz"), outcomes)
        write_text(path, json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
        path.with_suffix(".error.txt").unlink(missing_ok=True)

    def fail(self, task: str, upstream: str, jobs: Iterable[str], text: str) -> list[Path]:
        """Leave what went wrong beside where the records would be."""
        paths = [self.path(task, upstream, job).with_suffix(".error.txt") for job in jobs]
        for path in paths:
            write_text(path, text)
        return paths

    def forget(self, task: str, upstream: str) -> None:
        """Delete what went wrong before with an upstream on a task, which is about to be tried again."""
        folder = self.path(task, upstream, "").parent
        for path in folder.glob("*.error.txt"):
            path.unlink(missing_ok=True)
        remove_partial_files(folder)

    def read(self, keys: Iterable[tuple[str, str, str]]) -> list[Record]:
        """The records of these (task, upstream, job), those that exist."""
        return [record for key in keys if (record := load(self.path(*key)))]

    def read_all(self) -> tuple[list[Record], list[Path]]:
        """Every record in order of its path, and the files that are none."""
        paths = sorted((self.folder / "runs").glob("*/*/*.json"))
        read = [(path, load(path)) for path in paths]
        return [record for _, record in read if record], [path for path, record in read if not record]

    def outcomes(self, record: Record) -> list[dict[str, str]]:
        """Per-utterance or per-trial outcomes of a record's test split."""
        return outcomes_beside(self.path(record.task["name"], record.upstream["name"], record.id))

    def find(self, job: str) -> list[Path]:
        """The records of a job, whatever its task and upstream."""
        return sorted((self.folder / "runs").glob(f"*/*/{glob.escape(job)}.json"))


def outcomes_beside(path: Path) -> list[dict[str, str]]:
    """The outcomes that lie beside a record; raises OSError where there are none, or they are damaged."""
    place = path.with_suffix(".outcomes.csv.gz")
    try:
        with gzip.open(place, "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise OSError(errno.EIO, "damaged", str(place)) from error


def load(path: Path) -> Record | None:
    """A record, or None where there is none or it is of a form this version does not know."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def slug(name: str) -> str:
    """A name as a folder: what cannot stand in a path is replaced, and a hash keeps different names different."""
    plain = re.sub(r"[^A-Za-z0-9._@-]+", "_", name).strip("._")[-80:]
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def _write_outcomes(path: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    if outcomes:
        writer = csv.DictWriter(text, list(outcomes[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in outcomes)
    with aside(path) as partial:
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)  # rounded, trials that differ would tie, and outcomes would not give their score
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
