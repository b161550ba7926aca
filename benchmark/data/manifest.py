"""Manifests: what a corpus holds, looked over once and kept under the home folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from benchmark.corpora import Corpus, corpora
from benchmark.data.audio import SHORTEST, Inspection, inspect
from benchmark.data.folder import folder
from benchmark.errors import UserError, unknown
from benchmark.files import digest, stamp, write_text
from benchmark.values import Clip, Engine, Manifest, Stretch, Trial, Utterance, X, Y, equal

FORMAT = 2  # raised when a stored manifest no longer says all that is needed
CHUNK = 64  # files looked over as one piece of work


def find(name: str, data: dict[str, str]) -> Corpus:
    """The registered corpus, or the user's own folder given as `--data NAME=PATH`."""
    known = corpora()
    if name in known:
        return known[name]
    if name in data:
        return Corpus(name, folder)
    hint = str(unknown("corpus", name, known))
    raise UserError(f"{hint}{';' if '?' not in hint else ''} for a corpus of your own add --data {name}=FOLDER")


def root_of(corpus: Corpus, home: Path, data: dict[str, str]) -> Path:
    """Where its audio lies: the folder given, or under the home folder for a corpus that is made here."""
    if corpus.name in data:
        path = Path(os.path.expanduser(data[corpus.name])).resolve()
        if not path.exists():
            raise UserError(
                f"--data {corpus.name}={data[corpus.name]}: there is no such folder or file; correct the path"
            )
        return path
    if corpus.make:
        return home / "corpora" / corpus.name
    raise UserError(f"corpus {corpus.name!r} needs its folder: add --data {corpus.name}=FOLDER (see: bench data list)")


def one_after_another(
    function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal
) -> list[Y]:
    """The plainest engine: in this process, without progress."""
    return [function(item) for item in items]


def path_of(corpus: Corpus, root: Path, home: Path) -> Path:
    """The file that keeps the manifest of a corpus at `root`."""
    return home / "manifests" / f"{corpus.name}-{digest(str(root))[:12]}.json"


def prepare(name: str, home: Path, data: dict[str, str], engine: Engine = one_after_another) -> Manifest:
    """The manifest of a corpus; makes and looks over only the audio that is new or changed since the last time."""
    corpus = find(name, data)
    root = root_of(corpus, home, data)
    kept = path_of(corpus, root, home)
    items = list(corpus.generate(root))
    utterances = [item for item in items if isinstance(item, Utterance)]
    if corpus.make and name not in data and not all(item.audio.exists() for item in utterances):
        corpus.make(root, partial(engine, title=f"make {name}"))
    trials = [item for item in items if isinstance(item, Trial)]
    _unique(name, utterances)
    stamps = {str(item.audio): _stamp(item.audio) for item in utterances}
    signature = digest([FORMAT, [_plain(item) for item in utterances], trials, list(stamps.values())])
    if kept.exists() and (manifest := _load(kept, signature)):
        return manifest
    stored = _stored(kept)
    before = stored.get("inspections", {}) if stored.get("format") == FORMAT else {}
    inspections = _inspect(name, stamps, before, engine)
    clips = [_clip(item, inspections[str(item.audio)]) for item in utterances]
    manifest = Manifest(name, _digest(clips, trials), clips, trials)
    content = {
        "format": FORMAT,
        "signature": signature,
        "manifest": manifest,
        "inspections": {path: [stamps[path], found] for path, found in inspections.items()},
    }
    write_text(kept, json.dumps(content))
    return manifest


def _plain(item: Utterance) -> list[Any]:
    return [item.id, item.split, item.labels, item.start, item.duration]


def _stamp(path: Path) -> list[Any]:
    try:
        return stamp(path)
    except OSError:
        return [str(path), -1, -1]


def _unique(name: str, utterances: Iterable[Utterance]) -> None:
    twice = [id for id, count in Counter(item.id for item in utterances).items() if count > 1]
    if twice:
        raise UserError(f"corpus {name!r} has {len(twice)} ids more than once, {twice[0]!r} first; make each id unique")


def _stored(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> dict[str, Any]:
    return _stored(path)


def _load(path: Path, signature: str) -> Manifest | None:
    stored = _read(*map_stamp(path))
    if stored.get("signature") != signature:
        return None
    name, code, clips, trials = stored["manifest"]
    read = [Clip(id, split, labels, Stretch(*stretch), *rest) for id, split, labels, stretch, *rest in clips]
    return Manifest(name, code, read, [Trial(*trial) for trial in trials])


def map_stamp(path: Path) -> tuple[Path, int, int]:
    """Arguments of a memo over the file's content."""
    _, size, changed = stamp(path)
    return path, size, changed


def _inspect(name: str, stamps: dict[str, list[Any]], before: dict[str, Any], engine: Engine) -> dict[str, Inspection]:
    found = {
        path: Inspection(*before[path][1]) for path in stamps if path in before and before[path][0] == stamps[path]
    }
    todo = [path for path in stamps if path not in found]
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    for part in engine(inspect_all, chunks, f"look over {name}"):
        found.update(part)
    return found


def inspect_all(paths: list[str]) -> dict[str, Inspection]:
    """Look over several files."""
    return {path: inspect(path) for path in paths}


def _clip(item: Utterance, found: Inspection) -> Clip:
    first = round(item.start * found.rate)
    end = found.samples if item.duration is None else round((item.start + item.duration) * found.rate)
    problem = found.problem
    if not problem and end > found.samples + found.rate // 20:
        problem = f"ends at {end / found.rate:.3f} s, but its file is {found.samples / found.rate:.3f} s long"
    count = max(0, min(end, found.samples) - first)
    if not problem and count < SHORTEST * found.rate:
        problem = f"is {count / found.rate:.4f} s long, shorter than {SHORTEST} s"
    code = digest([found.digest, first, count])[:32]
    stretch = Stretch(str(item.audio), first, count, found.rate)
    return Clip(item.id, item.split, item.labels, stretch, code, problem, found.content)


def _digest(clips: list[Clip], trials: list[Trial]) -> str:
    return digest([[[clip.id, clip.split, clip.labels, clip.digest] for clip in clips], trials])
