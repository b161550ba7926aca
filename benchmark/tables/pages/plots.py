"""Charts as static SVG: scales, bars with whiskers, dots. Pure: values in, markup out.

Colours are the page's, by class. Text is 11 units high, and the page shows every chart at its size or larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

from benchmark.tables.pages.markup import Markup, element, joined

WIDE = 320  # units across a chart that has a row to itself on a phone
CHARACTER = 6.3  # units that a character of text takes, rather too many

Point = tuple[float, float]


class Scale(NamedTuple):
    """Values from low to high onto units from start to end, evenly once they are bent, such as by `log` or `probit`."""

    low: float
    high: float
    start: float
    end: float
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """Where a value is; beyond low and high it is at their place."""
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(min(max(value, self.low), self.high)) - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


log = math.log10
probit = NormalDist().inv_cdf


class Bar(NamedTuple):
    """A row of a bar chart: its name, its value as text and as number, and its interval, NaN where it is not known."""

    name: str
    text: str
    value: float
    low: float = math.nan
    high: float = math.nan


class Dot(NamedTuple):
    """A dot of a scatter plot with its label and its full name; front: no other one is both cheaper and better."""

    label: str
    name: str
    x: float
    y: float
    front: bool = False


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from low to high, at most so many.

    >>> ticks(0, 83)
    [0.0, 50.0]
    >>> ticks(0, 83, 5)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    if not high - low > 1e-9:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (size * factor for factor in (1, 2, 5, 10, 20)):
        numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(numbers) <= most:
            break
    return [round(number * step, 10) for number in numbers]


def powers(low: float, high: float, most: int = 4) -> list[float]:
    """Powers of ten from low to high, at most so many."""
    numbers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**number for number in numbers[:: max(1, math.ceil(len(numbers) / most))]]


def plain(value: float) -> str:
    """A number in few characters, such as 1 M.

    >>> plain(1.5e6), plain(20), plain(0.001)
    ('1.5 M', '20', '0.001')
    """
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def shortened(text: str, room: float) -> str:
    """As much of a text as so many units hold, its middle left out."""
    fit = max(4, int(room / CHARACTER))
    return text if len(text) <= fit else f"{text[: fit - fit // 2 - 1]}…{text[-(fit // 2) :]}"


def canvas(width: float, height: float, title: str, description: str, *shapes: Markup, kind: str) -> Markup:
    """A picture that says what it is to those who cannot see it."""
    told = element("title", title), element("desc", description)
    box = f"0 0 {width:g} {height:g}"
    return element("svg", told, shapes, role="img", class_=kind, viewBox=box)


def text(x: float, y: float, content: str, kind: str | None = None, anchor: str | None = None) -> Markup:
    """Text on a baseline; anchor: "middle" or "end" of it is at x."""
    return element("text", content, x=f"{x:g}", y=f"{y:g}", class_=kind, text_anchor=anchor)


def segments(*points: Sequence[Point], kind: str) -> Markup:
    """Lines, each from point to point, as one shape."""
    d = "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) for line in points if line)
    return element("path", d=d, class_=kind)


def bars(rows: Sequence[Bar], title: str, description: str, label: str) -> Markup:
    """Horizontal bars from zero in the order given, each under its name and value, with whiskers and a common axis."""
    step, bottom = 32, 32 * len(rows) + 6
    reach = max((end for row in rows for end in (row.value, row.high) if math.isfinite(end)), default=1.0) or 1.0
    x = Scale(0.0, reach, 2, WIDE - 6)
    shapes = [_grid(x, ticks(0, reach, 5), bottom)]
    shapes += [_bar(row, x, number * step) for number, row in enumerate(rows)]
    shapes += [text(2, bottom + 27, label, "soft")]
    return canvas(WIDE, bottom + 32, title, description, *shapes, kind="bars")


def _grid(x: Scale, values: Sequence[float], bottom: float) -> Markup:
    lines = segments(*([(x(value), 0), (x(value), bottom)] for value in values), kind="grid")
    return joined(
        lines, (text(x(value), bottom + 13, plain(value), "soft", _inside(x(value), WIDE)) for value in values)
    )


def _inside(place: float, width: float) -> str | None:
    """The anchor with which a short text at a place stays in the picture."""
    return None if place < 14 else "end" if place > width - 14 else "middle"


def _bar(row: Bar, x: Scale, top: float) -> Markup:
    room = WIDE - 16 - len(row.text) * CHARACTER
    shapes = [
        element("title", f"{row.name}: {row.text}"),
        text(2, top + 13, shortened(row.name, room)),
        text(WIDE - 6, top + 13, row.text, "number", "end"),
        element("rect", class_="bar", x=x(0), y=top + 17, width=round(x(row.value) - x(0), 1), height=10),
    ]
    if math.isfinite(row.low) and math.isfinite(row.high):
        shapes += [_whisker(x(row.low), x(row.high), top + 22)]
    return element("g", shapes, class_="row")


def _whisker(low: float, high: float, middle: float) -> Markup:
    ends = ([(at, middle - 4), (at, middle + 4)] for at in (low, high))
    return segments([(low, middle), (high, middle)], *ends, kind="whisker")


def scatter(dots: Sequence[Dot], title: str, description: str, x_label: str, y_label: str) -> Markup:
    """Dots over a logarithmic axis, zeros at its left; those of the front are joined by steps.

    Labels are put where they hide nothing, as far as there is room.
    """
    bottom, height = 216, 250
    x_of, x_ticks = _costs([dot.x for dot in dots])
    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    y = Scale(low, high, bottom - 16, 28) if high - low > 1e-9 else Scale(low - 1, high + 1, bottom - 16, 28)
    y_ticks = ticks(y.low, y.high, 5)
    grid = segments(*([(34, y(value)), (WIDE - 4, y(value))] for value in y_ticks), kind="grid")
    places = [(x_of(dot.x), y(dot.y)) for dot in dots]
    front = sorted(place for dot, place in zip(dots, places, strict=True) if dot.front)
    shapes = [
        grid,
        segments([(34, 18), (34, bottom), (WIDE - 4, bottom)], kind="axis"),
        joined(text(30, y(value) + 4, plain(value), "soft", "end") for value in y_ticks),
        joined(text(place, bottom + 14, name, "soft", "middle") for place, name in x_ticks),
        text(2, 11, y_label, "soft"),
        text(WIDE - 4, height - 6, x_label, "soft", "end"),
        segments(_steps(front), kind="front"),
        *(_dot(dot, place) for dot, place in zip(dots, places, strict=True)),
        *_labels([dot.label for dot in dots], places, (38, 20, WIDE - 4, bottom)),
    ]
    return canvas(WIDE, height, title, description, *shapes, kind="scatter")


def _costs(values: Sequence[float]) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a cost goes, and ticks; what costs nothing has a place of its own, as logarithms have none for it."""
    some = [value for value in values if value > 0] or [1.0]
    free = 48.0 if min(values) <= 0 else None
    low, high = min(some), max(some)
    x = Scale(low / 1.5, high * 1.5, 64 if free else 42, WIDE - 14, log)
    within = powers(x.low, x.high)
    ends = [low, high] if high > 2 * low else [low]  # where costs are so alike that no two powers of ten are among them
    marks = [(x(value), plain(value)) for value in (within if len(within) > 1 else ends)]
    return (lambda value: x(value) if value > 0 else free or 0.0), [*([(free, "0")] if free else []), *marks]


def _steps(points: Sequence[Point]) -> list[Point]:
    """Points from the left with a corner between each two: a cost buys what is to its left, and no more."""
    corners = [[(after[0], before[1]), after] for before, after in pairwise(points)]
    return [*points[:1], *(point for pair in corners for point in pair)]


def _dot(dot: Dot, place: Point) -> Markup:
    kind = "dot first" if dot.front else "dot"
    return element("circle", element("title", dot.name), cx=place[0], cy=place[1], r=4, class_=kind)


def _labels(labels: Sequence[str], places: Sequence[Point], within: tuple[float, float, float, float]) -> list[Markup]:
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    drawn = []
    for label, (x, y) in zip(labels, places, strict=True):
        half = len(label) * CHARACTER / 2
        beside = [(x + 7 + half, y), (x - 7 - half, y), (x, y - 10), (x, y + 10)]
        beside += [(x + dx, y + dy) for dx in (6 + half, -6 - half) for dy in (-9, 9)]
        boxes = [(mx - half, my - 5, mx + half, my + 5) for mx, my in beside]
        box = min(boxes, key=lambda box: (not _contains(within, box), sum(_overlap(box, other) for other in taken)))
        taken.append(box)
        drawn.append(text(round((box[0] + box[2]) / 2, 1), round(box[3] - 1, 1), label, None, "middle"))
    return drawn


Box = tuple[float, float, float, float]


def _contains(outer: Box, inner: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _overlap(one: Box, other: Box) -> float:
    across, down = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)
