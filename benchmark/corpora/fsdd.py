"""The corpus `fsdd`: the Free Spoken Digit Dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmark.corpora import register_corpus
from benchmark.errors import UserError
from benchmark.values import SplitTrial, Utterance


@register_corpus()
def fsdd(root: Path) -> Iterator[Utterance | SplitTrial]:
    """English digits 0-9, 8 kHz: fifty recordings of each digit by each of six speakers.

    Licence: CC BY-SA 4.0. Source: github.com/Jakobovski/free-spoken-digit-dataset.
    Size: 3 000 files, 0.4 h. Tree: recordings/{digit}_{speaker}_{index}.wav.
    Splits: index 0-4 is test (official); the official training part 5-49 is divided into valid (5-9) and train.
    Speakers are the same in every split. Labels: keyword (the digit), speaker.
    """
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    files = sorted(folder.glob("*_*_*.wav"))
    if not files:
        raise UserError(f"no FSDD recordings in {folder}; expected files such as recordings/0_george_0.wav")
    for file in files:
        parts = file.stem.split("_")
        if len(parts) != 3 or not parts[2].isdigit():
            raise UserError(
                f"{file.name} in {folder} is not named {{digit}}_{{speaker}}_{{index}}.wav; move it elsewhere"
            )
        digit, speaker, index = parts[0], parts[1], int(parts[2])
        split = "test" if index < 5 else "valid" if index < 10 else "train"
        yield Utterance(file.stem, file, split, {"keyword": digit, "speaker": speaker})
