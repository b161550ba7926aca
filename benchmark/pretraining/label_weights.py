"""Labels that a pre-training learns from: of which kinds, and with which weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmark.errors import UserError
from benchmark.pretraining.sources import TrainingAudio, known

if TYPE_CHECKING:
    from upstreams.pretraining.methods import Method

NONE = "none"  # what the user writes for no labels
Weights = tuple[tuple[str, float], ...]  # of kinds of labels


def parsed(text: str | None) -> Weights | None:
    """What the option --metadata says, such as "language=1,speaker=0.5" or "none"; None where it is not given."""
    if text is None or text == NONE:
        return None if text is None else ()
    pairs = [_pair(item) for item in text.split(",")]
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--metadata {text} names a kind of label twice; leave one of them out")
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


def told(weights: Mapping[str, float]) -> str:
    """As the user would write it."""
    return ",".join(f"{kind}={str(weight).removesuffix('.0')}" for kind, weight in weights.items()) or NONE


def chosen(asked: Weights | None, own: Mapping[str, float], pool: TrainingAudio) -> dict[str, float]:
    """Weights by kind: those that are asked for, else of the method's own those whose kinds the pool has.

    Raises UserError where a kind that is asked for is that of no clip.
    """
    there = pool.kinds if asked or own else []
    if asked is None:
        return {kind: float(own[kind]) for kind in sorted(own) if kind in there}
    for kind, _ in asked:
        if kind not in there:
            raise UserError(f"no clip of {pool.corpus} has a label '{kind}' of --metadata; {known(kind, pool.clips)}")
    return dict(asked)


def remarks(asked: Weights | None, own: Mapping[str, float], pool: TrainingAudio) -> list[str]:
    """Which labels that the method would learn from are not there, and which of those to learn from tell nothing."""
    weights = chosen(asked, own, pool)
    counts = {kind: Counter(label for label in pool.labels(kind) if label is not None) for kind in weights}
    dull = [kind for kind, count in counts.items() if len(count) < 2 or max(count.values()) < 2]
    absent = [kind for kind in own if asked is None and kind not in weights]
    return [
        *(f"no clip of {pool.corpus} has a label '{kind}': the method learns without it" for kind in absent),
        *(f"labels '{kind}' of {pool.corpus} tell no clips apart: all are the same, or all differ" for kind in dull),
    ]


def with_metadata(method: Method, weights: Mapping[str, float], strength: float | None = None) -> Method:
    """The method, which learns from labels too where any have a weight; strength: None for the usual one.

    Raises UserError for a strength that is below 0, or given though there are no labels.
    """
    if strength is not None and not weights:
        raise UserError("--strength is that of labels, and none are learnt from; give --metadata, or leave it out")
    if strength is not None and not 0 <= strength < math.inf:
        raise UserError(f"--strength {strength:g} is no number of 0 or more; give one, or leave it out")
    if not weights:
        return method
    from upstreams.pretraining.metadata_triplet import STRENGTH, WithMetadata

    return WithMetadata(method, weights, strength=STRENGTH if strength is None else strength)
