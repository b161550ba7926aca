"""The charts of one task: scores, learning rates, cost, layers. Pure: records in, markup out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from benchmark.records import Record
from benchmark.tables.cells import SHORT, digits_of, heading, marks_of
from benchmark.tables.leaderboard import Board, Cell
from benchmark.tables.pages import layer_charts, plots
from benchmark.tables.pages.markup import Markup, breakable, element

BEST = "★"
WEIGHTS = (
    "Weights of the layer sum, mean over seeds; layer 0 is the input of the first block; dashed: equal "
    "weights. They depend on how large a layer's values are, so they do not tell by themselves where information lies"
)


class Column(NamedTuple):
    """A task and what is known of it, by upstream, the best first and those without a score last.

    key: what ids of the page that belong to it begin with. records: of every learning rate, seed and fold. probes:
    cells of heads that were fed one layer, by layer.
    """

    task: str
    key: str
    heading: str
    metric: str
    higher: bool
    cells: dict[str, Cell]
    records: dict[str, list[Record]]
    probes: dict[str, dict[int, Cell]]

    def scored(self) -> list[str]:
        """Upstreams that have a score."""
        return [name for name, cell in self.cells.items() if math.isfinite(cell.value)]

    def chosen(self, name: str) -> list[Record]:
        """The records that its cell stands for, by fold and seed."""
        records = [record for record in self.records.get(name, []) if record.lr == self.cells[name].lr]
        return sorted(records, key=lambda record: (record.fold or "", record.seed))


def column(board: Board, records: Iterable[Record], task: str, key: str) -> Column:
    """Of a task that the board has."""
    cells = {upstream: cell for (upstream, name), cell in board.table.items() if name == task}
    first = next(iter(cells.values()))
    of_sum: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.task["name"] == task and record.layer is None:
            of_sum[record.upstream["name"]].append(record)
    ordered = dict(sorted(cells.items(), key=lambda item: (*_merit(item[1]), item[0])))
    title = heading(board.table, task)
    return Column(task, key, title, first.metric, first.higher, ordered, dict(of_sum), _probes(board, task))


def _merit(cell: Cell) -> tuple[bool, float]:
    failed = not math.isfinite(cell.value)
    return failed, 0.0 if failed else -cell.value if cell.higher else cell.value


def _probes(board: Board, task: str) -> dict[str, dict[int, Cell]]:
    """By upstream and layer."""
    found: dict[str, dict[int, Cell]] = defaultdict(dict)
    for layer, table in sorted(board.layers.items()):
        for (upstream, name), cell in table.items():
            if name == task:
                found[upstream][layer] = cell
    return dict(found)


def number(value: float, metric: str) -> str:
    """A score as the page shows it: percent with one decimal, minDCF with three."""
    return f"{value:.{digits_of(metric)}f}"


def interval(cell: Cell) -> str:
    """The interval in brackets, nothing where it is not known."""
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return ""
    return f"[{number(cell.low, cell.metric)}, {number(cell.high, cell.metric)}]"


def around(cell: Cell) -> str:
    """The interval, or where it is not known, the spread over seeds."""
    if interval(cell) or cell.spread is None:
        return interval(cell)
    return f"± {number(cell.spread, cell.metric)}"


def marked(cell: Cell) -> str:
    """The score with its marks, or "diverged"."""
    if not math.isfinite(cell.value):
        return "diverged"
    return f"{number(cell.value, cell.metric)}{BEST if cell.best else ''}{marks_of(cell)}"


def unit_of(metric: str) -> str:
    """A metric as axes name it, such as "acc (%)"."""
    return SHORT.get(metric, metric) + ("" if metric == "min_dcf" else " (%)")


def arrow(task: Column) -> str:
    """The metric with its better direction."""
    return f"{unit_of(task.metric)} {'↑' if task.higher else '↓'}"


def figure(caption: str, drawing: Markup, *told: Markup, kind: str | None = None) -> Markup:
    """A chart under its title, and below it what there is to know of it."""
    return element("figure", element("figcaption", breakable(caption)), drawing, *told, class_=kind)


def note(*sentences: str) -> Markup:
    """What there is to know of a chart."""
    return element("p", " ".join(sentences), class_="note")


def scores(task: Column) -> Markup:
    """Bars of all upstreams that have a score, the best on top."""
    cells = [(name, task.cells[name]) for name in task.scored()]
    rows = [
        plots.Bar(f"{place} {name}", f"{marked(cell)} {interval(cell)}".strip(), cell.value, cell.low, cell.high)
        for place, (name, cell) in enumerate(cells, 1)
    ]
    told = "from the best to the worst: " + "; ".join(f"{row.name} {row.text}" for row in rows)
    sure = "Whiskers are 95 % intervals." if any(interval(cell) for _, cell in cells) else "Intervals are not known."
    drawing = plots.bars(rows, f"Scores on {task.task}", told, f"test {arrow(task)}")
    return figure("Scores", drawing, note(sure, *_unscored(task)))


def _unscored(task: Column) -> list[str]:
    lost = [name for name, cell in task.cells.items() if not math.isfinite(cell.value)]
    return [f"Diverged: {', '.join(lost)}."] if lost else []


def cost(task: Column) -> Markup:
    """Scores against what encoding costs, and which upstreams are worth it."""
    names = task.scored()
    costs, label = _costs(task, names)
    known = [name for name in names if name in costs]
    if len(known) < 2:
        return Markup()
    front = set(_front([(costs[name], task.cells[name].value, name) for name in known], task.higher))
    dots = [
        plots.Dot(str(place), name, costs[name], task.cells[name].value, name in front)
        for place, name in enumerate(names, 1)
        if name in costs
    ]
    told = "; ".join(f"{dot.label} {dot.name}: {number(dot.y, task.metric)} at {plots.plain(dot.x)}" for dot in dots)
    unknown = [name for name in names if name not in costs]
    missing = f"Cost unknown: {', '.join(unknown)}." if unknown else ""
    drawing = plots.scatter(dots, f"Score against cost on {task.task}", told, label, f"test {arrow(task)}")
    text = note("Numbers as beside the scores. Filled: nothing is both cheaper and better:")
    return figure(
        "Score against cost", drawing, element("div", text, _bargains(task, dots), note(missing)), kind="cost"
    )


def _bargains(task: Column, dots: Sequence[plots.Dot]) -> Markup:
    front = sorted((dot for dot in dots if dot.front), key=lambda dot: dot.x)
    items = (f"{dot.label} {dot.name}: {number(dot.y, task.metric)} at {plots.plain(dot.x)}" for dot in front)
    return element("ul", (element("li", item) for item in items))


def _costs(task: Column, names: Sequence[str]) -> tuple[dict[str, float], str]:
    """Of each upstream in multiply–accumulates, or in parameters where fewer than two have told those."""
    macs = _told(task, names, lambda record: record.cost.get("macs_per_second"))
    if len(macs) > 1:
        return macs, "multiply–accumulates per second of audio"
    sizes = _told(task, names, lambda record: record.upstream.get("parameters"))
    return sizes, "parameters (operations are not known)"


def _told(task: Column, names: Sequence[str], of: Callable[[Record], float | None]) -> dict[str, float]:
    """The first number that the records of each upstream tell."""
    found = {name: [value for record in task.chosen(name) if (value := of(record)) is not None] for name in names}
    return {name: float(values[0]) for name, values in found.items() if values and math.isfinite(values[0])}


def _front(candidates: Sequence[tuple[float, float, str]], higher: bool) -> list[str]:
    """Names of those that no other one is at least as cheap and better than, or as good and cheaper."""
    best = math.inf
    found: list[str] = []
    for _, fault, name in sorted((x, -value if higher else value, name) for x, value, name in candidates):
        if fault < best:
            best = fault
            found.append(name)
    return found


def rates(task: Column) -> Markup:
    """Validation score against learning rate, an upstream a panel, all others behind it."""
    curves = {name: _by_rate(task, name) for name in task.cells}
    curves = {name: points for name, points in curves.items() if points}
    values = [y for points in curves.values() for _, y in points if math.isfinite(y)]
    if not values:
        return note("Nothing was swept here: this head has no learning rate.")
    grid = sorted({lr for points in curves.values() for lr, _ in points})
    frame = layer_charts.axes((grid[0], grid[-1]), (min(values), max(values)), [(lr, plots.plain(lr)) for lr in grid])
    frame = frame._replace(x=frame.x._replace(bend=plots.log))
    behind = f"{task.key}-rates"
    all_lines = layer_charts.definition(
        behind, *(layer_charts.line(frame, points, "others", False) for points in curves.values())
    )
    drawings = [_rate_panel(task, name, points, frame, behind) for name, points in curves.items()]
    told = f"Validation {arrow(task)}, mean over seeds and folds, against learning rate; circled: the one chosen;"
    marks = note(told, "cross: no score; grey: the other upstreams.")
    return element("div", all_lines, marks, element("div", drawings, class_="panels"))


def _by_rate(task: Column, name: str) -> list[plots.Point]:
    groups: dict[float, list[float]] = defaultdict(list)
    for record in task.records.get(name, []):
        score = record.valid.get(task.metric)
        if record.lr is not None:
            groups[record.lr].append(math.nan if score is None else score)
    return [(lr, fmean(scores)) for lr, scores in sorted(groups.items())]


def _rate_panel(
    task: Column, name: str, points: Sequence[plots.Point], frame: layer_charts.Axes, behind: str
) -> Markup:
    told = "; ".join(f"{lr:g}: {number(y, task.metric) if math.isfinite(y) else 'no score'}" for lr, y in points)
    chosen = [point for point in points if point[0] == task.cells[name].lr and math.isfinite(point[1])]
    shapes = [
        layer_charts.use(behind),
        layer_charts.line(frame, points),
        *(layer_charts.ring(frame, point) for point in chosen),
    ]
    return figure(name, layer_charts.panel(frame, f"{name}: learning rates on {task.task}", told, *shapes))


def layers(task: Column) -> Markup:
    """Weights of the layer sum and scores of single layers, side by side, of the upstreams that have several."""
    weights = {name: _weights(task.chosen(name)) for name in task.cells}
    deep = [name for name in task.cells if len(weights[name]) > 1 or len(task.probes.get(name, {})) > 1]
    flat = [name for name in task.cells if name not in deep]
    single = f"With a single layer, or none told: {', '.join(flat)}." if flat else ""
    if not deep:
        return note("There are no layers to tell apart.", single)
    probed = any(task.probes.get(name) for name in deep)
    pairs = [_layer_pair(task, name, weights, probed) for name in deep]
    grid = element("div", pairs, class_="panels pairs" if probed else "panels")
    return element("div", note(_layer_note(task, probed), single), grid)


def _layer_note(task: Column, probed: bool) -> str:
    if probed:
        return f"{WEIGHTS}; beside them, test {arrow(task)} of a head on one layer alone; dashed: the sum."
    return f"{WEIGHTS}; heads on one layer alone would (bench run --per-layer)."


def _weights(records: Sequence[Record]) -> list[float]:
    """Mean over records."""
    found = [record.layer_weights for record in records if record.layer_weights]
    same = [weights for weights in found if len(weights) == len(found[0])]
    return [fmean(each) for each in zip(*same, strict=True)]


def _layer_pair(task: Column, name: str, weights: Mapping[str, list[float]], probed: bool) -> Markup:
    highest = max((max(each) for each in weights.values() if len(each) > 1), default=1.0)
    drawings = [_weight_panel(task, name, weights[name], highest)] if len(weights[name]) > 1 else []
    if probed and task.probes.get(name):
        drawings += [_probe_panel(task, name)]
    return figure(name, element("div", drawings, class_="pair") if probed else drawings[0])


def _numbered(count: int) -> list[tuple[float, str]]:
    return [(place, str(place)) for place in range(count)]


def _weight_panel(task: Column, name: str, weights: Sequence[float], highest: float) -> Markup:
    frame = layer_charts.axes((0, len(weights) - 1), (0, highest), _numbered(len(weights)))
    told = "; ".join(f"{layer}: {weight:.2f}" for layer, weight in enumerate(weights))
    shapes = [layer_charts.columns(frame, weights), layer_charts.level(frame, 1 / len(weights))]
    return layer_charts.panel(frame, f"{name}: layer weights on {task.task}", told, *shapes)


def _probe_panel(task: Column, name: str) -> Markup:
    cells = task.probes[name]
    every = [cell for each in task.probes.values() for cell in each.values()] + list(task.cells.values())
    values = [end for cell in every for end in (cell.value, cell.low, cell.high) if math.isfinite(end)]
    frame = layer_charts.axes(
        (0, max(cells)), (min(values, default=0), max(values, default=1)), _numbered(max(cells) + 1)
    )
    told = "; ".join(f"{layer}: {marked(cell)} {interval(cell)}".strip() for layer, cell in cells.items())
    total = task.cells[name].value
    shapes = [layer_charts.level(frame, total)] if math.isfinite(total) else []
    shapes += [layer_charts.spans(frame, [(layer, cell.low, cell.high) for layer, cell in cells.items()])]
    shapes += [layer_charts.line(frame, [(layer, cell.value) for layer, cell in cells.items()])]
    return layer_charts.panel(frame, f"{name}: single layers on {task.task}", told, *shapes)
