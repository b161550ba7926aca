"""The embedded corpora: speech and sounds synthesised offline, with labels for every kind of task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

from numpy.random import Generator

from benchmark.corpora import register_corpus
from benchmark.corpora.synthesis.events import EVENTS
from benchmark.corpora.synthesis.rendering import SyntheticClip, render_missing
from benchmark.corpora.synthesis.speakers import STYLES, Speech, random_generator
from benchmark.values import Engine, SplitTrial, Utterance

# Part of the folder name. A commit that changes the audio of any clip increases it, so that older files are not reused.
RECIPE = 1
SPLITS = ("train", "valid", "test")
ENGLISH = "en-us"
FAMILIES = {  # the branch of a language family by language
    "cmn": "sinitic", "de": "germanic", ENGLISH: "germanic", "es": "romance", "fi": "finnic", "fr": "romance",
    "hi": "indic", "ru": "slavic", "sw": "bantu", "tr": "turkic",
}  # fmt: skip
LANGUAGES = list(FAMILIES)
# fmt: off
KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
OTHER_WORDS = [
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree",
    "wow", "one", "two", "three", "four", "five", "six", "seven", "eight",
]
# Each letter stands for one sound in all of these words, because the transcription head learns from 800 clips only.
WORDS = [
    "red", "big", "hot", "wet", "bad", "dog", "cat", "pig", "hen", "man", "ran", "sat",
    "dug", "hid", "met", "box", "cup", "net", "lid", "top", "six", "ten", "tub", "gum",
]
# fmt: on
SENTENCES = [
    "the red house is very near",
    "we will meet them in the morning",
    "he never told me about the river",
    "there is a letter on the table",
    "put the black stone over here",
    "they came home late last night",
    "some people always walk to work",
    "she bought a ticket for the train",
]
SIZES = {  # number of clips in train, valid and test
    "keyword": (1200, 240, 600),
    "language": (660, 180, 450),
    "emotion": (660, 160, 420),
    "event": (420, 112, 350),
    "events": (420, 100, 320),
    "text": (800, 150, 400),
}
TASK_SPEAKERS = {"train": 120, "valid": 34, "test": 52}
VERIFICATION = {"train": (66, 12), "valid": (24, 8), "test": (40, 10)}  # number of speakers, clips per speaker
# Identification clips per training speaker of verification. Those of train are verification clips too: six of twelve,
# since all twelve would make the task too easy.
IDENTIFICATION = {"train": 6, "valid": 2, "test": 5}
POOL_SPEAKERS, POOL_SPEECH, POOL_EVENTS = 150, 1500, 600


def tiny_clips() -> list[SyntheticClip]:
    """Return every clip of `tiny`, in a fixed order."""
    makers = {
        "keyword": _keyword,
        "language": _language,
        "emotion": _emotion,
        "event": _event,
        "events": _events,
        "text": _text,
    }
    tasks = [
        makers[task](f"{task}-{split}-{number:04d}", split, number)
        for task, sizes in SIZES.items()
        for split, size in zip(SPLITS, sizes, strict=True)
        for number in range(size)
    ]
    return [*tasks, *_verification(), *_identification()]


def tiny_trials() -> list[SplitTrial]:
    """Return, for valid and test, all pairs of clips of one speaker, and as many random pairs of two speakers."""
    trials: list[SplitTrial] = []
    for split in ("valid", "test"):
        speakers = {clip.id: clip.labels["speaker"] for clip in _verification() if clip.split == split}
        pairs = list(combinations(speakers, 2))
        targets = [SplitTrial(split, a, b, True) for a, b in pairs if speakers[a] == speakers[b]]
        non_targets = [SplitTrial(split, a, b, False) for a, b in pairs if speakers[a] != speakers[b]]
        chosen = random_generator("trials", split).choice(len(non_targets), size=len(targets), replace=False)
        trials += targets + [non_targets[i] for i in sorted(chosen)]
    return trials


def tiny_pool_clips() -> list[SyntheticClip]:
    """Return every clip of `tiny_pool`, in a fixed order."""
    speech = [_pool_speech(f"pool-speech-{number:04d}", number) for number in range(POOL_SPEECH)]
    return speech + [_pool_event(f"pool-event-{number:04d}", number) for number in range(POOL_EVENTS)]


def make_tiny(root: Path, engine: Engine) -> None:
    """Synthesise the missing clips of `tiny` under `root`."""
    render_missing(_audio_folder(root), tiny_clips(), engine)


def make_tiny_pool(root: Path, engine: Engine) -> None:
    """Synthesise the missing clips of `tiny_pool` under `root`."""
    render_missing(_audio_folder(root), tiny_pool_clips(), engine)


@register_corpus(make=make_tiny)
def tiny(root: Path) -> Iterator[Utterance | SplitTrial]:
    """Synthetic speech and sounds for all six kinds of task, made on this machine in about a minute.

    Source: eSpeak NG 1.52 from the package espeakng-loader synthesises the speech from texts in this module; numpy
    code synthesises sound events, rooms and noise. The name of a clip determines its audio. Licence: Apache-2.0 for
    the code and labels; eSpeak NG, which only runs as a tool, is GPL-3.
    Size: 9 488 wav files of 16 kHz, 16 bit, mono; 4.5 h, 0.52 GB.

    labels, with the numbers of clips in train / valid / test:
      keyword 1200 / 240 / 600 (1 s): ten commands, "unknown" (18 other words) and "silence"
      language 660 / 180 / 450 (2 s): digits in one of ten languages
      emotion 660 / 160 / 420 (2 s): four styles of rate, pitch, timbre and loudness; eight sentences
      event 420 / 112 / 350 (2 s): one of fourteen sounds; events 420 / 100 / 320 (2 s): one to three, joined by "|"
      text 800 / 150 / 400 (1 to 3 s): three to five of 24 short words, lower case
      verify 792 / 192 / 400 (2 s): 66, 24 and 40 speakers; 672 + 672 trials in valid, 1800 + 1800 in test
      sid 396 / 132 / 330 (2 s): the 66 training speakers of verify; its train clips are train clips of verify too
      speaker: every clip with speech has it. Except in sid, splits share neither speakers nor voices.
    Level and noise have the same distribution for all labels of a task.
    tree: recipe-1/KIND/SPLIT/ID.wav
    """
    yield from _utterances(root, tiny_clips())
    yield from tiny_trials()


@register_corpus(make=make_tiny_pool)
def tiny_pool(root: Path) -> Iterator[Utterance | SplitTrial]:
    """Speech and sounds for pre-training, synthesised as those of `tiny`, without its speakers.

    Source and licence are those of `tiny`. Size: 2 100 wav files of 4 s, 16 kHz, 16 bit, mono; 2.3 h, 0.27 GB.

    All clips are in split "pool", which no task reads. 1 500 clips are speech: 150 speakers with 10 clips each, ten
    languages, four styles. 600 clips have one to three sound events. Labels, for methods that use them: speaker,
    language, family (of the language) and emotion for speech; events for sound events.
    The speakers have training voices of `tiny`, with vocal tracts, pitches, tempos and timbres of their own.
    tree: recipe-1/pool/{speech,event}/ID.wav
    """
    yield from _utterances(root, tiny_pool_clips())


def _audio_folder(root: Path) -> Path:
    return root / f"recipe-{RECIPE}"


def _utterances(root: Path, clips: Iterable[SyntheticClip]) -> Iterator[Utterance]:
    for clip in clips:
        yield Utterance(clip.id, _audio_folder(root) / clip.file, clip.split, dict(clip.labels))


def _random_speaker(split: str, rng: Generator) -> str:
    return f"task-{split}-{rng.integers(TASK_SPEAKERS[split]):03d}"


def _digits(rng: Generator, count: int) -> str:
    return " ".join(str(digit) for digit in rng.integers(0, 10, size=count))


def _keyword(name: str, split: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    label = [*KEYWORDS, "unknown", "silence"][number % 12]
    if label == "silence":
        return SyntheticClip(name, split, {"keyword": label}, f"keyword/{split}", 1.0)
    word = str(rng.choice(OTHER_WORDS)) if label == "unknown" else label
    speech = Speech(word, ENGLISH, _random_speaker(split, rng))
    labels = {"keyword": label, "speaker": speech.speaker}
    return SyntheticClip(name, split, labels, f"keyword/{split}", 1.0, speech, snr=(4, 18))


def _language(name: str, split: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    language = LANGUAGES[number % len(LANGUAGES)]
    speech = Speech(_digits(rng, 8), language, _random_speaker(split, rng))
    labels = {"language": language, "speaker": speech.speaker}
    return SyntheticClip(name, split, labels, f"language/{split}", 2.0, speech, snr=(8, 22))


def _emotion(name: str, split: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    style = list(STYLES)[number % len(STYLES)]
    speech = Speech(str(rng.choice(SENTENCES)), ENGLISH, _random_speaker(split, rng), style)
    labels = {"emotion": style, "speaker": speech.speaker}
    return SyntheticClip(name, split, labels, f"emotion/{split}", 2.0, speech, snr=(8, 22))


def _event(name: str, split: str, number: int) -> SyntheticClip:
    event = list(EVENTS)[number % len(EVENTS)]
    return SyntheticClip(name, split, {"event": event}, f"event/{split}", 2.0, events=(event,), snr=(-6, 10))


def _events(name: str, split: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    chosen = tuple(sorted(str(event) for event in rng.choice(list(EVENTS), size=1 + number % 3, replace=False)))
    return SyntheticClip(name, split, {"events": "|".join(chosen)}, f"events/{split}", 2.0, events=chosen, snr=(-3, 12))


def _text(name: str, split: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    words = " ".join(str(word) for word in rng.choice(WORDS, size=3 + number % 3))
    speech = Speech(words, ENGLISH, _random_speaker(split, rng))
    labels = {"text": words, "speaker": speech.speaker}
    return SyntheticClip(name, split, labels, f"text/{split}", None, speech, snr=(8, 24))


def _verification() -> Iterator[SyntheticClip]:
    for split, (speakers, count) in VERIFICATION.items():
        for number in range(speakers):
            for take in range(count):
                keys = ("verify", "sid") if split == "train" and take < IDENTIFICATION["train"] else ("verify",)
                yield _by_speaker(f"verify-{split}-{number:03d}-{take:02d}", split, f"sv-{split}-{number:03d}", keys)


def _identification() -> Iterator[SyntheticClip]:
    for split in ("valid", "test"):
        for number in range(VERIFICATION["train"][0]):
            for take in range(IDENTIFICATION[split]):
                yield _by_speaker(f"sid-{split}-{number:03d}-{take:02d}", split, f"sv-train-{number:03d}", ("sid",))


def _by_speaker(name: str, split: str, speaker: str, keys: tuple[str, ...]) -> SyntheticClip:
    sentences = random_generator("plan", name).choice(SENTENCES, size=2)
    speech = Speech(". ".join(str(sentence) for sentence in sentences), ENGLISH, speaker)
    labels = {**dict.fromkeys(keys, speaker), "speaker": speaker}
    return SyntheticClip(name, split, labels, f"speaker/{split}", 2.0, speech, snr=(10, 24))


def _pool_speech(name: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    language, style = str(rng.choice(LANGUAGES)), str(rng.choice(list(STYLES)))
    speech = Speech(_random_text(language, rng), language, f"pool-train-{number % POOL_SPEAKERS:03d}", style)
    labels = {"speaker": speech.speaker, "language": language, "family": FAMILIES[language], "emotion": style}
    return SyntheticClip(name, "pool", labels, "pool/speech", 4.0, speech, snr=(2, 20))


def _random_text(language: str, rng: Generator) -> str:
    """Return a text for about four seconds: numbers in any language, or words and sentences in English."""
    if language != ENGLISH or rng.random() < 0.3:
        return " ".join(str(number) for number in rng.integers(0, 1000, size=5))
    return " ".join(str(text) for text in rng.choice([*SENTENCES, *WORDS, *KEYWORDS, *OTHER_WORDS], size=9))


def _pool_event(name: str, number: int) -> SyntheticClip:
    rng = random_generator("plan", name)
    chosen = tuple(sorted(str(event) for event in rng.choice(list(EVENTS), size=1 + number % 3, replace=False)))
    return SyntheticClip(name, "pool", {"events": "|".join(chosen)}, "pool/event", 4.0, events=chosen, snr=(0, 20))
