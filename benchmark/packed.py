"""The packed form of results: one text file with a line for each record, and one Parquet file of outcomes per task.

`bench pack` writes it, so that results can be committed and reviewed as a few files. A key names a job by the path that
its record has while a run goes on, "<task>/<upstream>/<job>". Lines are sorted by key. A Parquet file has one row group
for each job, with every column as text, as in the CSV files of a run; its metadata say which row group belongs to which
job, so that the outcomes of one job are read without the others.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmark.files import atomic_path, stamp, write_text

RECORDS = "records.jsonl"
OUTCOMES = "outcomes"  # folder of the Parquet files
JOB = "job"  # column of the Parquet files that holds the key, for people who read them with other tools
NO_ROWS = -1  # stands for the row group of a job without outcomes

Rows = list[dict[str, str]]


def records_path(folder: Path) -> Path:
    """The file with the records of a folder of results."""
    return folder / RECORDS


def parquet_path(folder: Path, key: str) -> Path:
    """The Parquet file with the outcomes of a job, and of all other jobs of its task."""
    return folder / OUTCOMES / f"{key.partition('/')[0]}.parquet"


def read_lines(folder: Path) -> list[str]:
    """The lines of the file of records, one record each; none where there is no such file."""
    try:
        return records_path(folder).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def write_lines(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file of records, given by key; it is whole or absent."""
    lines = [
        json.dumps(record, allow_nan=False) + "\n"
        for _, record in sorted(records.items(), key=lambda item: item[0].split("/"))
    ]
    write_text(records_path(folder), "".join(lines))


def read_outcomes(folder: Path, key: str) -> Rows:
    """The outcomes of a job; raises OSError where there are none, or the file is damaged."""
    path = parquet_path(folder, key)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    file, groups = _opened(path, tuple(stamp(path)))
    if key not in groups:
        raise FileNotFoundError(errno.ENOENT, "no outcomes of this job", str(path))
    return [] if groups[key] == NO_ROWS else _rows(file, groups[key], path)


def read_task_outcomes(path: Path) -> dict[str, Rows]:
    """The outcomes of every job in a Parquet file, by key; raises OSError where the file is damaged."""
    file, groups = _opened(path, tuple(stamp(path)))
    return {key: [] if group == NO_ROWS else _rows(file, group, path) for key, group in groups.items()}


def write_task_outcomes(path: Path, outcomes: Mapping[str, Rows]) -> None:
    """Write the outcomes of all jobs of a task, given by key; the file is whole or absent, and the same every time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = sorted(outcomes)
    columns = list(dict.fromkeys(name for key in keys for row in outcomes[key] for name in row))
    filled = [key for key in keys if outcomes[key]]
    groups = {key: filled.index(key) if outcomes[key] else NO_ROWS for key in keys}
    schema = pa.schema([(name, pa.string()) for name in (JOB, *columns)], {"jobs": json.dumps(groups)})
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for key in filled:
            rows = outcomes[key]
            values = [[key] * len(rows), *([row.get(name) for row in rows] for name in columns)]
            table = pa.table([pa.array(column, pa.string()) for column in values], schema=schema)
            writer.write_table(table, row_group_size=len(rows))


@lru_cache(maxsize=2)  # the outcomes of a task's jobs are read one after the other
def _opened(path: Path, version: tuple[Any, ...]) -> tuple[Any, dict[str, int]]:
    """The open file and the row group of each job. version: changes with the content, so that no old file is kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        groups = json.loads(file.schema_arrow.metadata[b"jobs"])
        count = file.metadata.num_row_groups
        if not all(isinstance(group, int) and NO_ROWS <= group < count for group in groups.values()):
            raise ValueError(groups)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise OSError(errno.EIO, "damaged", str(path)) from error
    return file, dict(groups)


def _rows(file: Any, group: int, path: Path) -> Rows:
    import pyarrow as pa

    try:
        table = file.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise OSError(errno.EIO, "damaged", str(path)) from error
    # A column that is null throughout belongs to other jobs of the task: as text, nothing is an empty string.
    names = [name for name in table.column_names if name != JOB and table[name].null_count < len(table)]
    return table.select(names).to_pylist()
