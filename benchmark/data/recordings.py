"""The corpus `recordings`: any folder of audio without labels, for pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmark.corpora import register_corpus
from benchmark.data.folder import audio_under
from benchmark.errors import UserError
from benchmark.values import SplitTrial, Utterance


@register_corpus()
def recordings(root: Path) -> Iterator[Utterance | SplitTrial]:
    """Every recording in a folder and its subfolders, without labels, for pre-training.

    Source, licence and size: the user's own. All clips are in split "pool", which no task reads.
    tree: any; hidden files are left out
    """
    for path in audio_under(root):
        name = path.relative_to(root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            escaped = name.encode("ascii", "backslashreplace").decode()
            raise UserError(f"the name of {escaped} in {root} is not in UTF-8; rename it") from None
        yield Utterance(name, path, "pool")
