"""A corpus made of tones, small enough to run whole tasks on in a second, and means to write other ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000  # Hz
SPEAKERS = [f"s{number:02d}" for number in range(12)]
SPLIT_OF = dict(zip(SPEAKERS, ["train", "valid", "train", "test"] * 3, strict=True))
KEYWORDS = {"down": (300, 500), "left": (400, 900), "right": (650, 1200), "up": (500, 1500)}  # Hz
LETTERS = {"a": 400, "b": 700, "c": 1100, " ": 0}  # Hz
TAGS = {"beep": 3000, "hum": 150, "whistle": 6000}  # Hz

PROTOCOL = """
tasks:
  words: {corpus: tones, target: keyword, head: classification, lr: [1e-3, 1e-2], seeds: [0, 1], epochs: 12, batch: 16}
  sounds: {corpus: tones, target: tags, head: tagging, lr: [1e-2], seeds: [0, 1], epochs: 12, batch: 16}
  same: {corpus: tones, target: verify, head: cosine, head_args: {center: true}}
  vector:
    corpus: tones
    target: verify
    head: xvector
    head_args: {channels: 32, pooled: 32, embedding: 32}
    lr: [1e-3]
    seeds: [0]
    epochs: 40
    batch: 16
  letters:
    corpus: tones
    target: text
    head: transcription
    head_args: {projection: 32, hidden: 32, recurrent_layers: 1, stride: 3, dropout: 0.0}
    lr: [1e-2]
    seeds: [0]
    epochs: 30
    batch: 8
suites:
  quick: [words, sounds, same]
"""


def tone(hertz: float, seconds: float, level: float = 0.2) -> np.ndarray:
    """A sine with faded ends, float64 (S,)."""
    times = np.arange(round(seconds * RATE)) / RATE
    fade = np.minimum(1, np.minimum(times, seconds - times) / 0.01)
    return level * np.sin(2 * np.pi * hertz * times) * fade


def voiced(sound: np.ndarray, speaker: str, dice: np.random.Generator) -> np.ndarray:
    """The sound with a speaker's own overtone and a little noise."""
    own = 1800 + 450 * SPEAKERS.index(speaker) * (1 + 0.002 * dice.standard_normal())
    return sound + tone(own, len(sound) / RATE, 0.2) + 0.003 * dice.standard_normal(len(sound))


def row_of(kind: str, number: int, speaker: str) -> tuple[dict[str, str], np.ndarray]:
    """Labels and waveform of one clip, always the same for the same arguments."""
    dice = np.random.default_rng([ord(kind[0]), number, SPEAKERS.index(speaker)])
    labels: dict[str, str] = {}
    if kind == "keyword":
        name = sorted(KEYWORDS)[number % 4]
        labels = {"keyword": name, "verify": speaker}
        sound = np.concatenate([tone(hertz, dice.uniform(0.12, 0.3)) for hertz in KEYWORDS[name]])
    elif kind == "text":
        text = " ".join("".join(dice.choice(list("abc"), 2)) for _ in range(dice.integers(1, 3)))
        labels = {"text": text}
        sound = np.concatenate([tone(LETTERS[letter], dice.uniform(0.14, 0.2)) for letter in text])
    else:
        chosen = [name for place, name in enumerate(sorted(TAGS)) if (1 + number % 7) >> place & 1]
        labels = {"tags": "|".join(chosen)}
        seconds = dice.uniform(0.3, 0.6)
        sound = np.sum([tone(TAGS[name], seconds) for name in chosen], axis=0)
    return labels, voiced(sound, speaker, dice)


def write_tones(folder: Path) -> Path:
    """The corpus that `PROTOCOL` asks about: keywords, texts and tags by twelve speakers, in a folder with a table."""
    (folder / "audio").mkdir(parents=True)
    rows = []
    for speaker in SPEAKERS:
        for kind, count in (("keyword", 8), ("text", 10), ("tags", 7)):
            for number in range(count):
                labels, waveform = row_of(kind, number, speaker)
                name = f"audio/{speaker}_{kind}_{number}.wav"
                soundfile.write(folder / name, waveform.astype(np.float32), RATE)
                session = f"session{SPEAKERS.index(speaker) // 3}"
                whose = {"file_name": name, "split": SPLIT_OF[speaker], "speaker": speaker, "session": session}
                rows.append({**whose, **labels})
    write_table(folder / "metadata.csv", rows)
    return folder


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as CSV, JSON Lines or Parquet, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(list(rows)).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_clip(path: Path, seconds: float = 0.3, seed: int = 0, rate: int = RATE, channels: int = 1) -> Path:
    """A file of noise, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise.astype(np.float32), rate)
    return path


def write_corpus(folder: Path, rows: Iterable[Mapping[str, Any]], **options: Any) -> Path:
    """A table and a clip of noise of its own for each row's `file_name`."""
    table = list(rows)
    for seed, name in enumerate(dict.fromkeys(str(row["file_name"]) for row in table)):
        if not (folder / name).exists():
            write_clip(folder / name, seed=seed, **options)
    write_table(folder / "metadata.csv", table)
    return folder


def labelled(splits: Mapping[str, Sequence[str]], target: str = "keyword") -> list[dict[str, str]]:
    """Rows with the given labels in each split, every clip by a speaker of its split."""
    return [
        {"file_name": f"{split}{number}.wav", "split": split, "speaker": f"{split}-speaker", target: label}
        for split, names in splits.items()
        for number, label in enumerate(names)
    ]
