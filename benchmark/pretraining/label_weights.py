"""The kinds of labels that a pre-training learns from, and the weight of each kind in the loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmark.errors import UserError
from benchmark.pretraining.sources import TrainingAudio, label_kinds_hint

if TYPE_CHECKING:
    from upstreams.pretraining.methods import Method

NONE = "none"  # what the user writes for no labels
LabelWeights = tuple[tuple[str, float], ...]  # (kind of label, weight)


def parse_label_weights(text: str | None) -> LabelWeights | None:
    """Parse the value of --metadata, such as "language=1,speaker=0.5", or "none" for (); None where it is not given.

    Raises UserError for another form.
    """
    if text is None or text == NONE:
        return None if text is None else ()
    pairs = [_pair(item) for item in text.split(",")]
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--metadata {text} names a kind of label twice; name each kind once")
    return tuple(sorted(pairs))


def _pair(item: str) -> tuple[str, float]:
    kind, _, number = (part.strip() for part in item.partition("="))
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not kind or not 0 < weight < math.inf:
        raise UserError(
            f"'{item}' in --metadata is not of the form KIND=WEIGHT with a positive number, such as"
            " language=1,speaker=0.5; or give --metadata none"
        )
    return kind, weight


def format_label_weights(weights: Mapping[str, float]) -> str:
    """Return the weights as a value of --metadata."""
    return ",".join(f"{kind}={str(weight).removesuffix('.0')}" for kind, weight in weights.items()) or NONE


def choose_label_weights(
    requested: LabelWeights | None, defaults: Mapping[str, float], audio: TrainingAudio
) -> dict[str, float]:
    """Return the weights by kind of label: the requested ones, else the method's defaults for kinds in the audio.

    Raises UserError where no clip has a label of a requested kind.
    """
    kinds = audio.kinds if requested or defaults else []
    if requested is None:
        return {kind: float(defaults[kind]) for kind in sorted(defaults) if kind in kinds}
    for kind, _ in requested:
        if kind not in kinds:
            raise UserError(
                f"no clip of {audio.corpus} has a label '{kind}', which --metadata names;"
                f" {label_kinds_hint(kind, audio.clips)}"
            )
    return dict(requested)


def label_remarks(requested: LabelWeights | None, defaults: Mapping[str, float], audio: TrainingAudio) -> list[str]:
    """Sentences for the user about default kinds of labels that the audio lacks, and kinds that cannot be learnt from.

    Labels that are all equal, or all different, give no pairs to learn from.
    """
    weights = choose_label_weights(requested, defaults, audio)
    counts = {kind: Counter(label for label in audio.labels(kind) if label is not None) for kind in weights}
    uninformative = [kind for kind, count in counts.items() if len(count) < 2 or max(count.values()) < 2]
    absent = [kind for kind in defaults if requested is None and kind not in weights]
    return [
        *(f"no clip of {audio.corpus} has a label '{kind}': the method learns without it" for kind in absent),
        *(
            f"labels '{kind}' of {audio.corpus} cannot be learnt from: all are the same, or all differ"
            for kind in uninformative
        ),
    ]


def with_metadata(method: Method, weights: Mapping[str, float], strength: float | None = None) -> Method:
    """Return the method, with a loss term on labels where `weights` has any; strength: the factor of that term.

    A strength of None stands for the default. Raises UserError for a negative strength, or one without labels.
    """
    if strength is not None and not weights:
        raise UserError(
            "--strength needs labels to learn from, and there are none; give --metadata, or leave --strength out"
        )
    if strength is not None and not 0 <= strength < math.inf:
        raise UserError(f"--strength {strength:g} is not a number of 0 or more; give one, or leave --strength out")
    if not weights:
        return method
    from upstreams.pretraining.metadata_triplet import STRENGTH, WithMetadata

    return WithMetadata(method, weights, strength=STRENGTH if strength is None else strength)
