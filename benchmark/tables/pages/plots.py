"""Draw charts as static SVG: bars with whiskers, and scatter plots.

The style sheet of the page sets colours by class. Text is 11 units high, and the page shows every chart at its size or
larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

from benchmark.tables.pages.markup import Markup, element, joined_markup

WIDE = 320  # width, in SVG units, of a chart that fills a row on a phone
CHARACTER = 6.3  # width of a character, in SVG units; rather too wide

Point = tuple[float, float]


class Scale(NamedTuple):
    """Map values from low to high to SVG units from start to end, linearly after `bend`, such as `log` or `probit`."""

    low: float
    high: float
    start: float
    end: float
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """Return the place of a value in SVG units; values beyond low and high are clipped."""
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(min(max(value, self.low), self.high)) - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


log = math.log10
probit = NormalDist().inv_cdf


class Bar(NamedTuple):
    """A row of a bar chart: its name, its value as text and as number, and its interval, NaN if unknown."""

    name: str
    text: str
    value: float
    low: float = math.nan
    high: float = math.nan


class Dot(NamedTuple):
    """A dot of a scatter plot with a label and a full name; front: it is on the Pareto front of cost and score."""

    label: str
    name: str
    x: float
    y: float
    front: bool = False


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return at most `most` round numbers from low to high.

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


def powers_of_ten(low: float, high: float, most: int = 4) -> list[float]:
    """Return at most `most` powers of ten from low to high."""
    numbers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**number for number in numbers[:: max(1, math.ceil(len(numbers) / most))]]


def short_number(value: float) -> str:
    """Return a number in few characters, such as "1 M".

    >>> plain(1.5e6), plain(20), plain(0.001)
    ('1.5 M', '20', '0.001')
    """
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def shortened(text: str, room: float) -> str:
    """Cut the middle out of a text that is wider than `room` SVG units."""
    fit = max(4, int(room / CHARACTER))
    return text if len(text) <= fit else f"{text[: fit - fit // 2 - 1]}…{text[-(fit // 2) :]}"


def canvas(width: float, height: float, title: str, description: str, *shapes: Markup, kind: str) -> Markup:
    """Return an SVG image with a title and a description for screen readers."""
    alternative = element("title", title), element("desc", description)
    box = f"0 0 {width:g} {height:g}"
    return element("svg", alternative, shapes, role="img", class_=kind, viewBox=box)


def text(x: float, y: float, content: str, kind: str | None = None, anchor: str | None = None) -> Markup:
    """Draw text on the baseline y; anchor: which part of it is at x, "middle" or "end", and its start by default."""
    return element("text", content, x=f"{x:g}", y=f"{y:g}", class_=kind, text_anchor=anchor)


def polylines(*points: Sequence[Point], kind: str) -> Markup:
    """Draw several lines through points as one shape."""
    d = "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) for line in points if line)
    return element("path", d=d, class_=kind)


def bars(rows: Sequence[Bar], title: str, description: str, label: str) -> Markup:
    """Draw horizontal bars from zero in the given order, each below its name and value, with whiskers and an axis."""
    step, bottom = 32, 32 * len(rows) + 6
    reach = max((end for row in rows for end in (row.value, row.high) if math.isfinite(end)), default=1.0) or 1.0
    x = Scale(0.0, reach, 2, WIDE - 6)
    shapes = [_grid(x, ticks(0, reach, 5), bottom)]
    shapes += [_bar(row, x, number * step) for number, row in enumerate(rows)]
    shapes += [text(2, bottom + 27, label, "soft")]
    return canvas(WIDE, bottom + 32, title, description, *shapes, kind="bars")


def _grid(x: Scale, values: Sequence[float], bottom: float) -> Markup:
    lines = polylines(*([(x(value), 0), (x(value), bottom)] for value in values), kind="grid")
    return joined_markup(
        lines, (text(x(value), bottom + 13, short_number(value), "soft", _inside(x(value), WIDE)) for value in values)
    )


def _inside(place: float, width: float) -> str | None:
    """Return the anchor that keeps a short text at `place` inside the image."""
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
    return polylines([(low, middle), (high, middle)], *ends, kind="whisker")


def scatter(dots: Sequence[Dot], title: str, description: str, x_label: str, y_label: str) -> Markup:
    """Draw dots over a logarithmic x axis, with zeros at its left end; steps join the dots of the Pareto front.

    Labels are placed so that they overlap as little as possible.
    """
    bottom, height = 216, 250
    x_of, x_ticks = _cost_axis([dot.x for dot in dots])
    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    y = Scale(low, high, bottom - 16, 28) if high - low > 1e-9 else Scale(low - 1, high + 1, bottom - 16, 28)
    y_ticks = ticks(y.low, y.high, 5)
    grid = polylines(*([(34, y(value)), (WIDE - 4, y(value))] for value in y_ticks), kind="grid")
    places = [(x_of(dot.x), y(dot.y)) for dot in dots]
    front = sorted(place for dot, place in zip(dots, places, strict=True) if dot.front)
    shapes = [
        grid,
        polylines([(34, 18), (34, bottom), (WIDE - 4, bottom)], kind="axis"),
        joined_markup(text(30, y(value) + 4, short_number(value), "soft", "end") for value in y_ticks),
        joined_markup(text(place, bottom + 14, name, "soft", "middle") for place, name in x_ticks),
        text(2, 11, y_label, "soft"),
        text(WIDE - 4, height - 6, x_label, "soft", "end"),
        polylines(_steps(front), kind="front"),
        *(_dot(dot, place) for dot, place in zip(dots, places, strict=True)),
        *_labels([dot.label for dot in dots], places, (38, 20, WIDE - 4, bottom)),
    ]
    return canvas(WIDE, height, title, description, *shapes, kind="scatter")


def _cost_axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Return a function from cost to x, and the ticks; a cost of zero has its own place, as it has no logarithm."""
    positive = [value for value in values if value > 0] or [1.0]
    free = 48.0 if min(values) <= 0 else None
    low, high = min(positive), max(positive)
    x = Scale(low / 1.5, high * 1.5, 64 if free else 42, WIDE - 14, log)
    within = powers_of_ten(x.low, x.high)
    ends = [low, high] if high > 2 * low else [low]  # used where the costs do not span two powers of ten
    marks = [(x(value), short_number(value)) for value in (within if len(within) > 1 else ends)]
    return (lambda value: x(value) if value > 0 else free or 0.0), [*([(free, "0")] if free else []), *marks]


def _steps(points: Sequence[Point]) -> list[Point]:
    """Insert a corner between neighbours, so that the best score so far is drawn over each cost."""
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
