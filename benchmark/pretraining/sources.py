"""Audio to pre-train on: the split of a corpus for pre-training, with its labels, or any folder of audio."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from benchmark.corpora import registered_corpora
from benchmark.data.manifest import prepare_manifest
from benchmark.errors import UserError, unknown_name
from benchmark.files import digest
from benchmark.values import Clip, Engine, Manifest

FOLDER = "recordings"  # the name of the corpus made from any folder


class TrainingAudio(NamedTuple):
    """The clips of one split to pre-train on.

    left_out: (id, problem) of unusable clips. only: the kind of label that all clips have, if the user required one;
    without: number of clips left out for lacking it.
    """

    corpus: str
    split: str
    clips: list[Clip]
    left_out: list[tuple[str, str]]
    only: str | None = None
    without: int = 0

    @property
    def digest(self) -> str:
        """The digest of ids and audio, which with a seed decide the samples of each step."""
        return digest([[clip.id, clip.digest] for clip in self.clips])

    @property
    def hours(self) -> float:
        """The duration of all clips, in hours."""
        return sum(clip.seconds for clip in self.clips) / 3600

    @property
    def kinds(self) -> list[str]:
        """The kinds of labels that at least one clip has, sorted."""
        return sorted({kind for clip in self.clips for kind in clip.labels})

    def labels(self, kind: str) -> list[str | None]:
        """The label of each clip, None where it has none of this kind."""
        return [clip.labels.get(kind) for clip in self.clips]

    def digest_of(self, kinds: Iterable[str]) -> str:
        """The digest of all labels of these kinds."""
        return digest([[kind, self.labels(kind)] for kind in sorted(kinds)])

    def __str__(self) -> str:
        """Return a short description for the user."""
        bad = f", {len(self.left_out)} left out" if self.left_out else ""
        only = f" with a label '{self.only}' ({self.without:,} have none)" if self.only else ""
        return f"split {self.split} of {self.corpus}, {len(self.clips):,} clips{only}, {self.hours:.2f} h{bad}"


def load_training_audio(
    corpus: str, home: Path, data: dict[str, str], engine: Engine, skip_bad: bool, only: str | None = None
) -> TrainingAudio:
    """Return the clips of split "pool" of a corpus, or else of "train"; of a folder, all its audio.

    Other splits are never used, since they are for evaluation. corpus: name of a registered corpus or of one in
    `data`, or a folder. only: a kind of label that clips must have, if any. Raises UserError for unusable audio
    (unless `skip_bad`), and where no clip is left.
    """
    manifest = _manifest(corpus, home, data, engine)
    splits = {clip.split for clip in manifest.clips}
    split = next((name for name in ("pool", "train") if name in splits), None)
    if split is None:
        has = f"it has {', '.join(sorted(splits))}" if splits else "it is empty"
        raise UserError(
            f"no audio to pre-train on in {corpus}: only splits called 'pool' or 'train' are for pre-training,"
            f" and {has}"
        )
    clips = sorted((clip for clip in manifest.clips if clip.split == split), key=lambda clip: clip.id)
    selected = [clip for clip in clips if only is None or only in clip.labels]
    if not selected:
        raise UserError(
            f"no clip of {corpus} has a label '{only}', which --only requires; {label_kinds_hint(only, clips)}"
        )
    good, bad = ([clip for clip in selected if bool(clip.problem) == is_bad] for is_bad in (False, True))
    if bad and not (skip_bad and good):
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        hint = "repair or remove it, or leave out such files with --skip-bad" if good else "no usable audio is left"
        raise UserError(f"{bad[0].stretch.audio} {bad[0].problem}{more}; {hint}")
    return TrainingAudio(
        corpus, split, good, [(clip.id, clip.problem) for clip in bad], only, len(clips) - len(selected)
    )


def label_kinds_hint(kind: str | None, clips: Iterable[Clip]) -> str:
    """Return the end of a message: the kinds of labels that the clips have, and the one most similar to `kind`."""
    kinds = sorted({kind for clip in clips for kind in clip.labels})
    if not kinds:
        return "it has no labels; to use those in a folder's metadata.csv give: --corpus NAME --data NAME=FOLDER"
    near = get_close_matches(kind or "", kinds, n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}it has {', '.join(kinds)}"


def _manifest(corpus: str, home: Path, data: dict[str, str], engine: Engine) -> Manifest:
    if corpus in data or corpus in registered_corpora():
        return prepare_manifest(corpus, home, data, engine)
    path = Path(os.path.expanduser(corpus))
    if not path.is_dir():
        message = str(unknown_name("corpus", corpus, {**registered_corpora(), **data}))
        file = f"and {path} is a file; " if path.exists() else ""
        raise UserError(f"{message}; {file}give a folder of audio, or a corpus that this lists: bench data list")
    import benchmark.data.recordings  # noqa: F401 (registers it)

    manifest = prepare_manifest(FOLDER, home, {FOLDER: str(path)}, engine)
    if not manifest.clips:
        raise UserError(f"no audio in {path} and the folders below it; give a folder with audio files")
    return manifest
