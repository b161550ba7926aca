"""Draw small charts with axes, lines and upright bars; two of them fit side by side on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmark.tables.pages.markup import Markup, element, joined_markup
from benchmark.tables.pages.plots import CHARACTER, Point, Scale, canvas, polylines, short_number, text, ticks

SMALL = (150, 114)  # width and height, in SVG units
FLOOR = SMALL[1] - 18  # y of the horizontal axis


class Axes(NamedTuple):
    """The axes of a small chart: a scale for each, and its ticks with their labels."""

    x: Scale
    y: Scale
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def axes(x: tuple[float, float], y: tuple[float, float], x_ticks: Iterable[tuple[float, str]]) -> Axes:
    """Return axes for the (lowest, highest) values of x and y; y has ticks at round numbers."""
    low, high = y if y[1] > y[0] else (y[0] - 1, y[0] + 1)
    vertical = Scale(low, high, FLOOR - (0 if low == 0 else 4), 8)
    return Axes(
        Scale(*x, 36, SMALL[0] - 8),
        vertical,
        list(x_ticks),
        [(value, short_number(value)) for value in ticks(low, high)],
    )


def small_chart(frame: Axes, title: str, description: str, *shapes: Markup) -> Markup:
    """Draw a small chart: its axes, and shapes that were made for them."""
    width, height = SMALL
    bottom = FLOOR
    grid = [[(30, frame.y(value)), (width - 2, frame.y(value))] for value, _ in frame.y_ticks]
    scales = [
        polylines(*grid, kind="grid"),
        polylines([(30, 2), (30, bottom), (width - 2, bottom)], kind="axis"),
        joined_markup(text(27, frame.y(value) + 4, label, "soft", "end") for value, label in frame.y_ticks),
        joined_markup(_spaced([(frame.x(value), label) for value, label in frame.x_ticks], height - 5)),
    ]
    return canvas(width, height, title, description, *scales, *shapes, kind="panel")


def _spaced(labels: Sequence[tuple[float, str]], baseline: float) -> list[Markup]:
    """Draw labels along the x axis; a label that would touch the one before or the last one is left out."""
    labels_drawn: list[Markup] = []
    last = SMALL[0] - 2 - len(labels[-1][1]) * CHARACTER if labels else 0.0
    free = 0.0
    for number, (place, label) in enumerate(labels):
        half = len(label) * CHARACTER / 2
        middle = min(max(place, half + 2), SMALL[0] - half - 1)
        final = number == len(labels) - 1
        if final or (middle - half >= free and middle + half < last - 4):
            labels_drawn.append(text(round(middle, 1), baseline, label, "soft", "middle"))
            free = middle + half + 4
    return labels_drawn


def line(frame: Axes, points: Sequence[Point], kind: str = "line", marked: bool = True) -> Markup:
    """Draw a line through points in data units, with a mark on each; a missing value leaves a gap and a cross."""
    known = [[(frame.x(x), frame.y(y)) for x, y in part] for part in _unbroken(points)]
    missing = [(frame.x(x), FLOOR - 6.0) for x, y in points if not math.isfinite(y)]
    marks = [element("circle", cx=x, cy=y, r=2.2, class_=f"{kind} mark") for part in known for x, y in part]
    crosses = [[(x - 3, y - 3), (x + 3, y + 3)] for x, y in missing] + [
        [(x - 3, y + 3), (x + 3, y - 3)] for x, y in missing
    ]
    path = polylines(*known, kind=kind) if known else ""
    return joined_markup(path, marks if marked else [], polylines(*crosses, kind=f"{kind} cross") if crosses else "")


def _unbroken(points: Sequence[Point]) -> list[list[Point]]:
    parts: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def ring(frame: Axes, point: Point) -> Markup:
    """Draw a ring around the point that was chosen."""
    return element("circle", cx=frame.x(point[0]), cy=frame.y(point[1]), r=5, class_="ring")


def level(frame: Axes, value: float) -> Markup:
    """Draw a dashed horizontal line at a value of y."""
    return polylines([(30, frame.y(value)), (SMALL[0] - 2, frame.y(value))], kind="level")


def interval_lines(frame: Axes, intervals: Iterable[tuple[float, float, float]]) -> Markup:
    """Draw a vertical line from low to high for each (x, low, high); unknown intervals are left out."""
    known = [(x, low, high) for x, low, high in intervals if math.isfinite(low) and math.isfinite(high)]
    lines = [[(frame.x(x), frame.y(low)), (frame.x(x), frame.y(high))] for x, low, high in known]
    return polylines(*lines, kind="whisker") if lines else Markup()


def upright_bars(frame: Axes, values: Sequence[float]) -> Markup:
    """Draw vertical bars at x = 0, 1, 2 …"""
    width = round(min(14.0, 0.7 * (SMALL[0] - 44) / max(1, len(values) - 1)), 1)
    return joined_markup(
        element("rect", class_="bar", x=round(frame.x(place) - width / 2, 1), y=frame.y(value), width=width,
                height=round(FLOOR - frame.y(value), 1))
        for place, value in enumerate(values)
    )  # fmt: skip


def definition(name: str, *shapes: Markup) -> Markup:
    """Define shapes once, invisibly, so that several charts can show them with `use`."""
    defs = element("defs", element("g", shapes, id=name))
    return element("svg", defs, class_="definitions", aria_hidden="true", width=0, height=0)


def use(name: str) -> Markup:
    """Show the shapes of a `definition`."""
    return element("use", href=f"#{name}")
