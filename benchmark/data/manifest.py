"""Manifests: the clips and trials of a corpus, inspected once and cached under the home folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from benchmark.corpora import Corpus, registered_corpora
from benchmark.data.audio import SHORTEST, Inspection, inspect_audio
from benchmark.data.folder import folder
from benchmark.errors import UserError, unknown_name
from benchmark.files import digest, stamp, write_text
from benchmark.values import Clip, Engine, Manifest, SplitTrial, Stretch, Utterance, X, Y, equal_weight

FORMAT = 2  # increased when stored manifests lack information that is needed
CHUNK = 64  # files that one job of the engine inspects


def find_corpus(name: str, data: dict[str, str]) -> Corpus:
    """Return the registered corpus, or the user's own folder given as `--data NAME=PATH`. Raises UserError for others.

    data: paths by corpus name.
    """
    known = registered_corpora()
    if name in known:
        return known[name]
    if name in data:
        return Corpus(name, folder)
    hint = str(unknown_name("corpus", name, known))
    raise UserError(f"{hint}{';' if '?' not in hint else ''} for a corpus of your own add --data {name}=FOLDER")


def root_of(corpus: Corpus, home: Path, data: dict[str, str]) -> Path:
    """Return the folder or table of a corpus: the path in `data`, or a folder under `home` for a synthesised corpus.

    Raises UserError where the path is missing or does not exist.
    """
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


def map_serially(
    function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal_weight
) -> list[Y]:
    """Call the function on one item after the other in this process, without progress: the simplest engine."""
    return [function(item) for item in items]


def manifest_path(corpus: Corpus, root: Path, home: Path) -> Path:
    """Return the file that stores the manifest of a corpus at `root`."""
    return home / "manifests" / f"{corpus.name}-{digest(str(root))[:12]}.json"


def prepare_manifest(name: str, home: Path, data: dict[str, str], engine: Engine = map_serially) -> Manifest:
    """Return the manifest of a corpus, after synthesising missing audio and inspecting new and changed audio files."""
    corpus = find_corpus(name, data)
    root = root_of(corpus, home, data)
    path = manifest_path(corpus, root, home)
    items = list(corpus.generate(root))
    utterances = [item for item in items if isinstance(item, Utterance)]
    if corpus.make and name not in data and not all(item.audio.exists() for item in utterances):
        corpus.make(root, partial(engine, title=f"make {name}"))
    trials = [item for item in items if isinstance(item, SplitTrial)]
    _check_unique(name, utterances)
    stamps = {str(item.audio): _stamp_if_present(item.audio) for item in utterances}
    signature = digest([FORMAT, [_plain(item) for item in utterances], trials, list(stamps.values())])
    if path.exists() and (manifest := _load(path, signature)):
        return manifest
    stored = _stored_content(path)
    earlier = stored.get("inspections", {}) if stored.get("format") == FORMAT else {}
    inspections = _inspect(name, stamps, earlier, engine)
    clips = [_clip(item, inspections[str(item.audio)]) for item in utterances]
    manifest = Manifest(name, _digest(clips, trials), clips, trials)
    content = {
        "format": FORMAT,
        "signature": signature,
        "manifest": manifest,
        "inspections": {file: [stamps[file], inspection] for file, inspection in inspections.items()},
    }
    write_text(path, json.dumps(content))
    return manifest


def _plain(item: Utterance) -> list[Any]:
    return [item.id, item.split, item.labels, item.start, item.duration]


def _stamp_if_present(path: Path) -> list[Any]:
    try:
        return stamp(path)
    except OSError:
        return [str(path), -1, -1]


def _check_unique(name: str, utterances: Iterable[Utterance]) -> None:
    repeated = [id for id, count in Counter(item.id for item in utterances).items() if count > 1]
    if repeated:
        raise UserError(
            f"corpus {name!r} has {len(repeated)} ids more than once, {repeated[0]!r} first; make each id unique"
        )


def _stored_content(path: Path) -> dict[str, Any]:
    """Return the content of a manifest file, {} where it is missing or not valid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=8)
def _cached_content(path: Path, size: int, changed: int) -> dict[str, Any]:
    return _stored_content(path)


def _load(path: Path, signature: str) -> Manifest | None:
    stored = _cached_content(*path_size_time(path))
    if stored.get("signature") != signature:
        return None
    name, code, clips, trials = stored["manifest"]
    clip_values = [Clip(id, split, labels, Stretch(*stretch), *rest) for id, split, labels, stretch, *rest in clips]
    return Manifest(name, code, clip_values, [SplitTrial(*trial) for trial in trials])


def path_size_time(path: Path) -> tuple[Path, int, int]:
    """Return path, size and modification time: the key of a cache of the file's content."""
    _, size, changed = stamp(path)
    return path, size, changed


def _inspect(name: str, stamps: dict[str, list[Any]], earlier: dict[str, Any], engine: Engine) -> dict[str, Inspection]:
    """Return the inspection of each file: the earlier one where its stamp is unchanged, else a new one."""
    inspections = {
        path: Inspection(*earlier[path][1]) for path in stamps if path in earlier and earlier[path][0] == stamps[path]
    }
    changed = [path for path in stamps if path not in inspections]
    chunks = [changed[start : start + CHUNK] for start in range(0, len(changed), CHUNK)]
    for new in engine(inspect_files, chunks, f"inspect {name}"):
        inspections.update(new)
    return inspections


def inspect_files(paths: list[str]) -> dict[str, Inspection]:
    """Return the inspection of each file by path."""
    return {path: inspect_audio(path) for path in paths}


def _clip(item: Utterance, inspection: Inspection) -> Clip:
    rate, samples_in_file = inspection.rate, inspection.samples
    first = round(item.start * rate)
    end = samples_in_file if item.duration is None else round((item.start + item.duration) * rate)
    problem = inspection.problem
    if not problem and end > samples_in_file + rate // 20:
        problem = f"ends at {end / rate:.3f} s, but its file is {samples_in_file / rate:.3f} s long"
    count = max(0, min(end, samples_in_file) - first)
    if not problem and count < SHORTEST * rate:
        problem = f"is {count / rate:.4f} s long, shorter than {SHORTEST} s"
    code = digest([inspection.digest, first, count])[:32]
    stretch = Stretch(str(item.audio), first, count, rate)
    return Clip(item.id, item.split, item.labels, stretch, code, problem, inspection.content)


def _digest(clips: list[Clip], trials: list[SplitTrial]) -> str:
    return digest([[[clip.id, clip.split, clip.labels, clip.digest] for clip in clips], trials])
