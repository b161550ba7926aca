"""Reads the user's own corpora: a table of audio files, or folders of audio files named after labels."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import UserError
from benchmark.values import SplitTrial, Utterance

if TYPE_CHECKING:
    import pandas

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
AUDIO = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64"}
SPLITS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["valid", "validation", "val", "dev", "development"], "valid"),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], "test"),
}
RESERVED = {"id", "file_name", "split", "start", "end"}


def folder(root: Path) -> Iterator[Utterance | SplitTrial]:
    """Yield any recordings, labelled by a table or by the names of their folders.

    A table (CSV, JSONL or Parquet: `root` itself, or metadata.csv in it or in its train/, valid/, test/ folders)
    follows the Hugging Face audiofolder convention. It has a column `file_name`, relative to the table, and a column
    per label. It may have `id`, `split` (by default the first folder of `file_name` if it is named after a split),
    `start` and `end` (seconds). Several labels in one cell are joined by "|". An empty cell is no label.
    Without a table, audio lies in [split/]label/file and its label is called "label".
    Without splits, the speakers (or the files, where there is no `speaker`) are divided 80/10/10 % by hash. With train
    and test alone, a tenth of train becomes the validation split, by speaker unless train and test share speakers.
    A trial list is trials.csv (enroll, test, target[, split]) or trials.txt ("1 enroll test") beside the table.
    """
    if not root.exists():
        raise UserError(f"no corpus at {root}; give a folder, or a .csv, .jsonl or .parquet file")
    has_table = root.is_file() or bool(_tables(root))
    utterances = list(_with_tables(root) if has_table else _without_table(root))
    if not utterances:
        kinds = ", ".join(sorted(AUDIO))
        raise UserError(
            f"no recordings in {root}; give a metadata.csv with a column 'file_name', or folders of audio ({kinds})"
        )
    yield from _with_splits(utterances, root)
    yield from _trials(root if root.is_dir() else root.parent, {item.id for item in utterances})


def _tables(root: Path) -> list[tuple[Path, str | None]]:
    if root.is_file():
        return [(root, None)]
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLITS)]
    return [
        (path, None if parent == root else SPLITS[parent.name.lower()])
        for parent in folders
        for path in sorted(parent.iterdir())
        if path.name.lower() in TABLES
    ]


def _with_tables(root: Path) -> Iterator[Utterance]:
    for path, split in _tables(root):
        table = _read_table(path)
        if "file_name" not in table.columns:
            columns = ", ".join(map(str, table.columns)) or "none"
            hint = "separate columns by commas" if "file_name" in columns else "give the audio column this name"
            raise UserError(f"{path} has no column 'file_name' (it has: {columns}); {hint}")
        for number, row in enumerate(table.to_dict("records")):
            yield _utterance(path, number, {str(key): value for key, value in row.items()}, split)


def _read_table(path: Path) -> pandas.DataFrame:
    import pandas

    as_text: dict[str, Any] = {"dtype": str, "keep_default_na": False, "index_col": False}
    readers: dict[str, Any] = {
        ".csv": lambda: pandas.read_csv(path, **as_text, skipinitialspace=True),
        ".tsv": lambda: pandas.read_csv(path, **as_text, sep="\t"),
        ".jsonl": lambda: pandas.read_json(path, lines=True, dtype=False, convert_dates=False, encoding="utf-8-sig"),
        ".parquet": lambda: pandas.read_parquet(path),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path.name} is not a table of recordings; give a folder, or a .csv, .jsonl or .parquet file")
    try:
        with warnings.catch_warnings():
            # pandas drops the last cells of a row that has more cells than the header, and only warns of it.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            return readers[suffix]().rename(columns=lambda name: str(name).strip())
    except (ValueError, OSError, pandas.errors.ParserWarning) as error:
        reason = str(error).splitlines()[0].rstrip(".").replace(". ", ": ")
        raise UserError(f"cannot read {path}: {reason}; check that it is a {suffix[1:]} table in UTF-8") from error


def _text(value: Any) -> str:
    """Return a cell as text: lists joined by "|", whole numbers without a point, missing values empty."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Sequence) or (hasattr(value, "tolist") and getattr(value, "ndim", None)):
        return "|".join(_text(item) for item in value)
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value) in ("<NA>", "NaT", "nan"):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _utterance(path: Path, number: int, row: dict[str, Any], split: str | None) -> Utterance:
    cells = {key: _text(value) for key, value in row.items()}
    name = cells["file_name"]
    if not name or "\0" in name:
        kind = "a broken" if name else "an empty"
        raise UserError(f"{path}: row {number + 1} has {kind} 'file_name'; fill it in or delete the row")
    start, end = _seconds(path, number, cells, "start"), _seconds(path, number, cells, "end")
    if end is not None and end <= (start or 0.0):
        raise UserError(
            f"{path}: row {number + 1} ends at {end} s, not after its start at {start or 0.0} s; correct it"
        )
    segment = "" if start is None and end is None else f"#{cells.get('start', '')}-{cells.get('end', '')}"
    split_in_row = cells.get("split", "") or _split_folder(name)
    labels = {key: value for key, value in cells.items() if key not in RESERVED and value}
    return Utterance(
        id=cells.get("id") or (f"{path.parent.name}/{name}" if split else name) + segment,
        audio=path.parent / name,
        split=SPLITS.get(split_in_row.lower(), split_in_row) or split or "",
        labels=labels,
        start=start or 0.0,
        duration=None if end is None else end - (start or 0.0),
    )


def _split_folder(name: str) -> str:
    """Return the first folder of a file name if it is named after a split (audiofolder convention), else ""."""
    first, slash, _ = name.partition("/")
    return first if slash and first.lower() in SPLITS else ""


def _seconds(path: Path, number: int, cells: dict[str, str], column: str) -> float | None:
    text = cells.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{path}: row {number + 1} has {column!r} {text!r}; give seconds from the start of the file")
    return value


def _without_table(root: Path) -> Iterator[Utterance]:
    for path in audio_under(root):
        folders = path.relative_to(root).parts[:-1]
        split = SPLITS.get(folders[0].lower(), "") if folders else ""
        labels = folders[1:] if split else folders
        name = path.relative_to(root).as_posix()
        yield Utterance(name, path, split, {"label": labels[-1]} if labels else {})


def audio_under(root: Path) -> list[Path]:
    """Return the audio files in a folder and its subfolders, sorted by path.

    Links are followed. Hidden files are left out, since other programs use them for data of their own.
    """
    paths, visited = [], set()
    for parent, subfolders, names in os.walk(root, followlinks=True, onerror=_raise_error):
        if os.path.realpath(parent) in visited:  # a link to a folder above it
            subfolders.clear()
            continue
        visited.add(os.path.realpath(parent))
        paths += [Path(parent, name) for name in names if Path(name).suffix.lower() in AUDIO and name[0] != "."]
    return sorted(paths)


def _raise_error(error: OSError) -> None:
    raise error


def _with_splits(utterances: list[Utterance], root: Path) -> Iterator[Utterance]:
    missing = sum(not item.split for item in utterances)
    if missing and missing < len(utterances):
        first = next(item for item in utterances if not item.split)
        raise UserError(
            f"{missing} of {len(utterances)} rows have no split, {first.id!r} first; give all a split or none"
        )
    if missing:
        splits = draw_splits(_units(utterances, root))
        yield from (_in_split(item, splits[item.id]) for item in utterances)
    elif {item.split for item in utterances} >= {"train", "test"} and all(item.split != "valid" for item in utterances):
        yield from _with_valid(utterances, root)
    else:
        yield from utterances


def _with_valid(utterances: list[Utterance], root: Path) -> Iterator[Utterance]:
    """Move a tenth of train to validation, by speaker unless train and test share speakers."""
    train = [item for item in utterances if item.split == "train"]
    speakers = {item.labels.get("speaker") for item in train}
    shared = any(item.labels.get("speaker") in speakers for item in utterances if item.split == "test")
    splits = draw_splits(_units(train, root, by_speaker=not shared))
    for item in utterances:
        yield _in_split(item, "valid") if item.split == "train" and splits[item.id] == "valid" else item


def _in_split(item: Utterance, split: str) -> Utterance:
    return Utterance(item.id, item.audio, split, item.labels, item.start, item.duration)


def _units(utterances: list[Utterance], root: Path, by_speaker: bool = True) -> dict[str, str]:
    """Return by id the unit whose clips stay in one split: a speaker, or else a file, or else the clip alone.

    Speakers and files are used only if every clip has one and there are at least three of them.
    """
    speakers = {item.id: item.labels.get("speaker", "") for item in utterances} if by_speaker else {}
    files = {item.id: os.path.relpath(item.audio, root) for item in utterances}
    for units in (speakers, files):
        if all(units.values()) and len(set(units.values())) >= 3:
            return units
    return {item.id: item.id for item in utterances}


def draw_splits(units: dict[str, str]) -> dict[str, str]:
    """Return the split by id: the units, sorted by the hash of their names, go 80/10/10 % to train, valid and test.

    Test and valid get at least one unit each.
    """
    order = sorted(set(units.values()), key=lambda unit: hashlib.sha256(unit.encode()).digest())
    tenth = max(1, round(len(order) / 10))
    positions = {unit: position for position, unit in enumerate(order)}
    splits = ["test"] * tenth + ["valid"] * tenth + ["train"] * len(order)
    return {id: splits[positions[unit]] for id, unit in units.items()}


def _trials(root: Path, ids: set[str]) -> Iterator[SplitTrial]:
    table, listing = root / "trials.csv", root / "trials.txt"
    if table.exists():
        rows = _read_table(table)
        for column in ("enroll", "test", "target"):
            if column not in rows.columns:
                raise UserError(
                    f"{table} has no column {column!r}; it needs enroll, test and target, and may have split"
                )
        cells = [
            (_text(row.get("split")) or "test", *(_text(row[column]) for column in ("enroll", "test", "target")))
            for row in rows.to_dict("records")
        ]
    elif listing.exists():
        try:
            lines = [line.split() for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {listing}; check that it is text in UTF-8") from error
        if any(len(line) != 3 for line in lines):
            raise UserError(f"{listing} must hold three words per line, '1 enroll test'; correct it or use trials.csv")
        cells = [("test", enroll, test, target) for target, enroll, test in lines]
    else:
        return
    meanings = {"1": True, "true": True, "target": True, "0": False, "false": False, "nontarget": False}
    for split, enroll, test, target in cells:
        if str(target).lower() not in meanings:
            raise UserError(f"trial {enroll!r} {test!r} has target {target!r}; write 1 or 0")
        for name in (enroll, test):
            if name not in ids:
                raise UserError(f"a trial names utterance {name!r}, which is not in {root}; correct the trial list")
        yield SplitTrial(SPLITS.get(split.lower(), split), enroll, test, meanings[str(target).lower()])
