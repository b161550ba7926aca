"""Audio to pre-train on: the part of a corpus that no task reads, with what labels it has, or any folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from benchmark.corpora import corpora
from benchmark.data.manifest import prepare
from benchmark.errors import UserError, unknown
from benchmark.files import digest
from benchmark.values import Clip, Engine, Manifest

FOLDER = "recordings"  # the corpus that any folder is


class TrainingAudio(NamedTuple):
    """Clips to learn from. split: whose they are. left_out: those of it that cannot be used, by id, and why.

    only: the kind of label that all of them have, if that was asked for; without: clips that lacked it.
    """

    corpus: str
    split: str
    clips: list[Clip]
    left_out: list[tuple[str, str]]
    only: str | None = None
    without: int = 0

    @property
    def digest(self) -> str:
        """Of names and audio: of what decides, with a seed, which samples each step sees."""
        return digest([[clip.id, clip.digest] for clip in self.clips])

    @property
    def hours(self) -> float:
        """Of audio."""
        return sum(clip.seconds for clip in self.clips) / 3600

    @property
    def kinds(self) -> list[str]:
        """Of labels that any of the clips has."""
        return sorted({kind for clip in self.clips for kind in clip.labels})

    def labels(self, kind: str) -> list[str | None]:
        """Of each clip."""
        return [clip.labels.get(kind) for clip in self.clips]

    def digest_of(self, kinds: Iterable[str]) -> str:
        """Of all labels of these kinds."""
        return digest([[kind, self.labels(kind)] for kind in sorted(kinds)])

    def __str__(self) -> str:
        """In a few words."""
        bad = f", {len(self.left_out)} left out" if self.left_out else ""
        only = f" with a label '{self.only}' ({self.without:,} have none)" if self.only else ""
        return f"split {self.split} of {self.corpus}, {len(self.clips):,} clips{only}, {self.hours:.2f} h{bad}"


def pool_of(
    corpus: str, home: Path, data: dict[str, str], engine: Engine, skip_bad: bool, only: str | None = None
) -> TrainingAudio:
    """Split "pool" of a corpus, else "train", and no other, as those are for tests; of a folder all there is.

    corpus: name of a registered one or of one in `data`, or a folder. only: kind of label that clips need, if any.
    Raises UserError for bad audio (unless `skip_bad`), and where nothing is left.
    """
    manifest = _manifest(corpus, home, data, engine)
    splits = {clip.split for clip in manifest.clips}
    split = next((name for name in ("pool", "train") if name in splits), None)
    if split is None:
        has = f"it has {', '.join(sorted(splits))}" if splits else "it is empty"
        raise UserError(f"no audio to pre-train on in {corpus}: splits called 'pool' and 'train' are, and {has}")
    there = sorted((clip for clip in manifest.clips if clip.split == split), key=lambda clip: clip.id)
    chosen = [clip for clip in there if only is None or only in clip.labels]
    if not chosen:
        raise UserError(f"no clip of {corpus} has a label '{only}', which --only asks for; {known(only, there)}")
    good, bad = ([clip for clip in chosen if bool(clip.problem) == is_bad] for is_bad in (False, True))
    if bad and not (skip_bad and good):
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        hint = "repair or remove it, or leave out and count such with --skip-bad" if good else "nothing else is there"
        raise UserError(f"{bad[0].stretch.audio} {bad[0].problem}{more}; {hint}")
    return TrainingAudio(corpus, split, good, [(clip.id, clip.problem) for clip in bad], only, len(there) - len(chosen))


def known(kind: str | None, clips: Iterable[Clip]) -> str:
    """Which kinds of labels there are, and which of them may have been meant, for a message."""
    kinds = sorted({kind for clip in clips for kind in clip.labels})
    if not kinds:
        return "it has no labels at all; those in a folder's metadata.csv are read by: --corpus NAME --data NAME=FOLDER"
    near = get_close_matches(kind or "", kinds, n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}it has {', '.join(kinds)}"


def _manifest(corpus: str, home: Path, data: dict[str, str], engine: Engine) -> Manifest:
    if corpus in data or corpus in corpora():
        return prepare(corpus, home, data, engine)
    path = Path(os.path.expanduser(corpus))
    if not path.is_dir():
        told = str(unknown("corpus", corpus, {**corpora(), **data}))
        what = f"and {path} is a file; " if path.exists() else ""
        raise UserError(f"{told}; {what}give a folder of audio, or a corpus of: bench data list")
    import benchmark.data.recordings  # noqa: F401 (registers it)

    manifest = prepare(FOLDER, home, {FOLDER: str(path)}, engine)
    if not manifest.clips:
        raise UserError(f"no audio in {path} and the folders below it; give a folder that holds some")
    return manifest
