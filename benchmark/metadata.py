"""Labels that a pre-training learns from: of which kinds, and with which weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmark.errors import UserError
from benchmark.pools import Pool, known

if TYPE_CHECKING:
    from upstreams.methods import Method

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
    kind, _, number = item.partition("=")
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


def chosen(asked: Weights | None, own: Mapping[str, float], pool: Pool) -> dict[str, float]:
    """Weights by kind: those that are asked for, else of the method's own those whose kinds the pool has.

    Raises UserError where a kind that is asked for is that of no clip.
    """
    there = pool.kinds if asked or own else []
    if asked is None:
        return {kind: float(own[kind]) for kind in sorted(own) if kind in there}
    for kind, _ in asked:
        if kind not in there:
            raise UserError(f"no clip of {pool.corpus} has a label '{kind}' of --metadata; {known(pool.clips)}")
    return dict(asked)


def with_metadata(method: Method, weights: Mapping[str, float]) -> Method:
    """The method, which learns from labels too where any have a weight."""
    if not weights:
        return method
    from upstreams.metadata import WithMetadata

    return WithMetadata(method, weights)
