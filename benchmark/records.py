"""Records: the result of one job, written once and never edited."""

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

from benchmark import packed
from benchmark.errors import UserError
from benchmark.files import atomic_path, digest, remove_partial_files, stamp, write_text


class Record(BaseModel):
    """The result of one job, and everything that is needed to know how it came about.

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
    """A folder of records.

    During a run each record is a file of its own, runs/<task>/<upstream>/<job>.json, with its outcomes beside it: it is
    whole or absent, and needs no lock. `pack` gathers them into a few files for committing; both forms are read, and a
    record that is there in both counts as the file of its own. A record is parsed once: it is never edited.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parsed: dict[Path, Record] = {}
        self._packed: dict[str, Record] = {}
        self._damaged: list[Path] = []
        self._packed_stamp: object = None

    def prepare(self) -> None:
        """Create the folder; raises OSError now, not after hours, where nothing can be written to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.folder))

    def path(self, task: str, upstream: str, job: str) -> Path:
        """The file of a job's record during a run."""
        return self.folder / "runs" / f"{job_key(task, upstream, job)}.json"

    def has(self, task: str, upstream: str, job: str) -> bool:
        """Whether the job is done; a record that cannot be read has to be made anew."""
        return self._load(task, upstream, job) is not None

    def write(self, record: Record, outcomes: Sequence[Mapping[str, Any]]) -> None:
        """Write the outcomes first and then the record, so that a record on disk always has its outcomes."""
        path = self.path(record.task["name"], record.upstream["name"], record.id)
        _write_outcomes(outcomes_path(path), outcomes)
        write_text(path, json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
        path.with_suffix(".error.txt").unlink(missing_ok=True)
        self._parsed.pop(path, None)

    def fail(self, task: str, upstream: str, jobs: Iterable[str], text: str) -> list[Path]:
        """Write what went wrong beside where the records would be."""
        paths = [self.path(task, upstream, job).with_suffix(".error.txt") for job in jobs]
        for path in paths:
            write_text(path, text)
        return paths

    def forget(self, task: str, upstream: str) -> None:
        """Delete earlier errors of an upstream on a task, which is about to be tried again."""
        folder = self.path(task, upstream, "").parent
        for path in folder.glob("*.error.txt"):
            path.unlink(missing_ok=True)
        remove_partial_files(folder)

    def read(self, keys: Iterable[tuple[str, str, str]]) -> list[Record]:
        """The records of these jobs (task, upstream, id), as far as they exist."""
        return [record for key in keys if (record := self._load(*key))]

    def read_all(self) -> tuple[list[Record], list[Path]]:
        """Every record, sorted by task, upstream and job, and the files and lines that are not records."""
        paths = sorted((self.folder / "runs").glob("*/*/*.json"))
        single = {path: self._load_file(path) for path in paths}
        records = dict(self._packed_records())
        records |= {_key_of_file(path): record for path, record in single.items() if record}
        damaged = [path for path, record in single.items() if not record]
        return _in_order(records), [*self._damaged, *damaged]

    def outcomes(self, record: Record) -> list[dict[str, str]]:
        """The outcomes of a record's test split, by utterance or trial; raises OSError if missing or damaged."""
        path = self.path(record.task["name"], record.upstream["name"], record.id)
        if not path.exists() and key_of_record(record) in self._packed_records():
            return packed.read_outcomes(self.folder, key_of_record(record))
        return outcomes_beside(path)

    def find(self, job: str) -> list[Record]:
        """The records of a job, whatever its task and upstream."""
        paths = sorted((self.folder / "runs").glob(f"*/*/{glob.escape(job)}.json"))
        records = {key: record for key, record in self._packed_records().items() if record.id == job}
        records |= {_key_of_file(path): record for path in paths if (record := self._load_file(path))}
        return _in_order(records)

    def pack(self) -> tuple[int, list[Path]]:
        """Gather all records into a few files and delete the files of single records.

        Returns the number of packed records, and the files that stay as they are: records that cannot be read or have
        another name than their file, and those whose outcomes are missing or damaged. An interruption at any moment
        loses nothing.
        """
        paths = sorted((self.folder / "runs").glob("*/*/*.json"))
        records = {path: self._load_file(path) for path in paths}
        gathered: dict[Path, dict[str, list[dict[str, str]]]] = {}
        merged, kept = dict(self._packed_records()), [path for path, record in records.items() if not record]
        if self._damaged:  # writing the file anew would lose these lines
            raise UserError(f"{self._damaged[0]} is not a record that this version can read; mend or delete that line")
        for path, record in records.items():
            if record is None:
                continue
            key = key_of_record(record)
            if key != _key_of_file(path):  # would take the place of another record
                kept.append(path)
                continue
            try:
                rows = outcomes_beside(path)
            except OSError:
                kept.append(path)
                continue
            gathered.setdefault(packed.parquet_path(self.folder, key), {})[key] = rows
            merged[key] = record
        for path, rows_of in gathered.items():
            before = packed.read_task_outcomes(path) if path.exists() else {}
            packed.write_task_outcomes(path, {key: rows for key, rows in (before | rows_of).items() if key in merged})
        if gathered:
            packed.write_lines(self.folder, {key: record.model_dump(mode="json") for key, record in merged.items()})
        for path in set(paths) - set(kept):
            path.unlink(missing_ok=True)
            outcomes_path(path).unlink(missing_ok=True)
            self._parsed.pop(path, None)
        for folder in sorted((self.folder / "runs").glob("**/"), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        return len(merged), sorted(kept)

    def _load(self, task: str, upstream: str, job: str) -> Record | None:
        return self._load_file(self.path(task, upstream, job)) or self._packed_records().get(
            job_key(task, upstream, job)
        )

    def _load_file(self, path: Path) -> Record | None:
        if path not in self._parsed:
            record = load_record(path)
            if record is None:
                return None
            self._parsed[path] = record
        return self._parsed[path]

    def _packed_records(self) -> dict[str, Record]:
        """The packed records by key, parsed again only where their file has changed."""
        path = packed.records_path(self.folder)
        current = stamp(path) if path.exists() else None
        if current != self._packed_stamp:
            self._packed, self._damaged, self._packed_stamp = {}, [], current
            for number, line in enumerate(packed.read_lines(self.folder), 1):
                try:
                    record = Record.model_validate_json(line)
                    self._packed[key_of_record(record)] = record
                except (ValidationError, KeyError):
                    self._damaged.append(path.with_name(f"{path.name}:{number}"))
        return self._packed


def job_key(task: str, upstream: str, job: str) -> str:
    """The name of a job in a folder of results: <task>/<upstream>/<id>."""
    return f"{slug(task)}/{slug(upstream)}/{job}"


def key_of_record(record: Record) -> str:
    """As `job_key`; raises KeyError for a record whose task or upstream has no name."""
    return job_key(record.task["name"], record.upstream["name"], record.id)


def _key_of_file(path: Path) -> str:
    return "/".join(path.with_suffix("").parts[-3:])


def _in_order(records: Mapping[str, Record]) -> list[Record]:
    return [records[key] for key in sorted(records, key=lambda key: key.split("/"))]


def outcomes_path(record: Path) -> Path:
    """The file of the outcomes that belong to the file of a record."""
    return record.with_suffix(".outcomes.csv.gz")


def outcomes_beside(path: Path) -> list[dict[str, str]]:
    """The outcomes beside the file of a record; raises OSError where they are missing or damaged."""
    place = outcomes_path(path)
    try:
        with gzip.open(place, "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise OSError(errno.EIO, "damaged", str(place)) from error


def load_record(path: Path) -> Record | None:
    """Read the file of a record; None where there is none, or it is not a record that this version knows."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def slug(name: str) -> str:
    """A name that can stand in a path; characters are replaced, and a hash keeps different names different."""
    plain = re.sub(r"[^A-Za-z0-9._@-]+", "_", name).strip("._")[-80:]
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def _write_outcomes(path: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    if outcomes:
        writer = csv.DictWriter(text, list(outcomes[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in outcomes)
    with atomic_path(path) as partial:
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)  # rounded, trials that differ would tie, and outcomes would not give their score
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
