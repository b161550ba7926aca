"""Any folder of audio, to pre-train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmark.corpora import Trial, Utterance, corpus
from benchmark.corpora.folder import audio_under


@corpus()
def recordings(root: Path) -> Iterator[Utterance | Trial]:
    """Every recording in a folder and those below it, without labels, to pre-train on.

    Source, licence and size: the user's own. All clips are in split "pool", which no task reads.
    tree: any; hidden files are left alone
    """
    for path in audio_under(root):
        yield Utterance(path.relative_to(root).as_posix(), path, "pool")
