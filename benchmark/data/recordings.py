"""Any folder of audio, to pre-train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmark.corpora import corpus
from benchmark.data.folder import audio_under
from benchmark.errors import UserError
from benchmark.values import Trial, Utterance


@corpus()
def recordings(root: Path) -> Iterator[Utterance | Trial]:
    """Every recording in a folder and those below it, without labels, to pre-train on.

    Source, licence and size: the user's own. All clips are in split "pool", which no task reads.
    tree: any; hidden files are left alone
    """
    for path in audio_under(root):
        name = path.relative_to(root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode("ascii", "backslashreplace").decode()
            raise UserError(f"the name of {shown} in {root} is not in UTF-8; rename it") from None
        yield Utterance(name, path, "pool")
