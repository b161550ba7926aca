"""Small charts, of which two fit side by side on a phone: axes, lines, columns. Pure: values in, markup out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmark.tables.pages.markup import Markup, element, joined
from benchmark.tables.pages.plots import CHARACTER, Point, Scale, canvas, plain, segments, text, ticks

SMALL = (150, 114)  # units across and down
FLOOR = SMALL[1] - 18  # where the axis lies


class Axes(NamedTuple):
    """Of a small chart: scales, and the ticks of each with their texts."""

    x: Scale
    y: Scale
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def axes(x: tuple[float, float], y: tuple[float, float], x_ticks: Iterable[tuple[float, str]]) -> Axes:
    """Of a small chart, with these lowest and highest values and round numbers beside it."""
    low, high = y if y[1] > y[0] else (y[0] - 1, y[0] + 1)
    vertical = Scale(low, high, FLOOR - (0 if low == 0 else 4), 8)
    return Axes(
        Scale(*x, 36, SMALL[0] - 8), vertical, list(x_ticks), [(value, plain(value)) for value in ticks(low, high)]
    )


def panel(frame: Axes, title: str, description: str, *shapes: Markup) -> Markup:
    """A small chart: its axes, and shapes made for them."""
    width, height = SMALL
    bottom = FLOOR
    grid = [[(30, frame.y(value)), (width - 2, frame.y(value))] for value, _ in frame.y_ticks]
    scales = [
        segments(*grid, kind="grid"),
        segments([(30, 2), (30, bottom), (width - 2, bottom)], kind="axis"),
        joined(text(27, frame.y(value) + 4, label, "soft", "end") for value, label in frame.y_ticks),
        joined(_spaced([(frame.x(value), label) for value, label in frame.x_ticks], height - 5)),
    ]
    return canvas(width, height, title, description, *scales, *shapes, kind="panel")


def _spaced(labels: Sequence[tuple[float, str]], baseline: float) -> list[Markup]:
    """Texts along an axis, those left out that would touch the one before; the last one stays."""
    kept: list[Markup] = []
    last = SMALL[0] - 2 - len(labels[-1][1]) * CHARACTER if labels else 0.0
    free = 0.0
    for number, (place, label) in enumerate(labels):
        half = len(label) * CHARACTER / 2
        middle = min(max(place, half + 2), SMALL[0] - half - 1)
        final = number == len(labels) - 1
        if final or (middle - half >= free and middle + half < last - 4):
            kept.append(text(round(middle, 1), baseline, label, "soft", "middle"))
            free = middle + half + 4
    return kept


def line(frame: Axes, points: Sequence[Point], kind: str = "line", marked: bool = True) -> Markup:
    """From point to point in data units, with a mark on each; where a value is missing there is a gap and a cross."""
    there = [[(frame.x(x), frame.y(y)) for x, y in part] for part in _unbroken(points)]
    lost = [(frame.x(x), FLOOR - 6.0) for x, y in points if not math.isfinite(y)]
    marks = [element("circle", cx=x, cy=y, r=2.2, class_=f"{kind} mark") for part in there for x, y in part]
    crosses = [[(x - 3, y - 3), (x + 3, y + 3)] for x, y in lost] + [[(x - 3, y + 3), (x + 3, y - 3)] for x, y in lost]
    path = segments(*there, kind=kind) if there else ""
    return joined(path, marks if marked else [], segments(*crosses, kind=f"{kind} cross") if crosses else "")


def _unbroken(points: Sequence[Point]) -> list[list[Point]]:
    parts: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def ring(frame: Axes, point: Point) -> Markup:
    """Round a point that was chosen."""
    return element("circle", cx=frame.x(point[0]), cy=frame.y(point[1]), r=5, class_="ring")


def level(frame: Axes, value: float) -> Markup:
    """A dashed line across at a value."""
    return segments([(30, frame.y(value)), (SMALL[0] - 2, frame.y(value))], kind="level")


def spans(frame: Axes, intervals: Iterable[tuple[float, float, float]]) -> Markup:
    """Upright lines at x from low to high."""
    known = [(x, low, high) for x, low, high in intervals if math.isfinite(low) and math.isfinite(high)]
    lines = [[(frame.x(x), frame.y(low)), (frame.x(x), frame.y(high))] for x, low, high in known]
    return segments(*lines, kind="whisker") if lines else Markup()


def columns(frame: Axes, values: Sequence[float]) -> Markup:
    """Upright bars from the axis at 0, 1, 2 …"""
    width = round(min(14.0, 0.7 * (SMALL[0] - 44) / max(1, len(values) - 1)), 1)
    return joined(
        element("rect", class_="bar", x=round(frame.x(place) - width / 2, 1), y=frame.y(value), width=width,
                height=round(FLOOR - frame.y(value), 1))
        for place, value in enumerate(values)
    )  # fmt: skip


def definition(name: str, *shapes: Markup) -> Markup:
    """Shapes that are drawn once here, out of sight, to be shown in several charts by `use`."""
    defs = element("defs", element("g", shapes, id=name))
    return element("svg", defs, class_="definitions", aria_hidden="true", width=0, height=0)


def use(name: str) -> Markup:
    """The shapes of a `definition`."""
    return element("use", href=f"#{name}")
