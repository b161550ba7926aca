"""Draw the charts of one task from its records: scores, learning rates, cost and layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from benchmark.records import Record
from benchmark.tables.cells import METRIC_NAMES, cell_marks, decimals_of, heading
from benchmark.tables.leaderboard import Board, Cell
from benchmark.tables.pages import layer_charts, plots
from benchmark.tables.pages.markup import Markup, breakable, element

BEST_MARK = "★"
WEIGHTS_NOTE = (
    "Weights of the layer sum, mean over seeds; layer 0 is the input of the first block; dashed: equal "
    "weights. They depend on how large a layer's values are, so they alone do not show where information lies"
)


class Column(NamedTuple):
    """A task with its results by upstream: the best first, and those without a score last.

    key: prefix of the HTML ids that belong to the task. records: all learning rates, seeds and folds of each upstream.
    probes: cells of heads that were trained on a single layer, by upstream and layer.
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
        """Return the upstreams that have a score."""
        return [name for name, cell in self.cells.items() if math.isfinite(cell.value)]

    def chosen(self, name: str) -> list[Record]:
        """Return the records that an upstream's cell averages, sorted by fold and seed."""
        records = [record for record in self.records.get(name, []) if record.lr == self.cells[name].lr]
        return sorted(records, key=lambda record: (record.fold or "", record.seed))


def task_column(board: Board, records: Iterable[Record], task: str, key: str) -> Column:
    """Collect the results of one task of the board."""
    cells = {upstream: cell for (upstream, name), cell in board.table.items() if name == task}
    first = next(iter(cells.values()))
    by_upstream: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.task["name"] == task and record.layer is None:
            by_upstream[record.upstream["name"]].append(record)
    ordered = dict(sorted(cells.items(), key=lambda item: (*_merit(item[1]), item[0])))
    title = heading(board.table, task)
    return Column(task, key, title, first.metric, first.higher, ordered, dict(by_upstream), _probes(board, task))


def _merit(cell: Cell) -> tuple[bool, float]:
    failed = not math.isfinite(cell.value)
    return failed, 0.0 if failed else -cell.value if cell.higher else cell.value


def _probes(board: Board, task: str) -> dict[str, dict[int, Cell]]:
    """Return the cells of single layers, by upstream and layer."""
    cells: dict[str, dict[int, Cell]] = defaultdict(dict)
    for layer, table in sorted(board.layers.items()):
        for (upstream, name), cell in table.items():
            if name == task:
                cells[upstream][layer] = cell
    return dict(cells)


def score_number(value: float, metric: str) -> str:
    """Return a score as text: percent with one decimal, minDCF with three."""
    return f"{value:.{decimals_of(metric)}f}"


def interval_text(cell: Cell) -> str:
    """Return the interval in brackets; an empty string if it is unknown."""
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return ""
    return f"[{score_number(cell.low, cell.metric)}, {score_number(cell.high, cell.metric)}]"


def uncertainty_text(cell: Cell) -> str:
    """Return the interval or, if it is unknown, the standard deviation over seeds."""
    if interval_text(cell) or cell.spread is None:
        return interval_text(cell)
    return f"± {score_number(cell.spread, cell.metric)}"


def score_text(cell: Cell) -> str:
    """Return the score with its marks, or "diverged"."""
    if not math.isfinite(cell.value):
        return "diverged"
    return f"{score_number(cell.value, cell.metric)}{BEST_MARK if cell.best else ''}{cell_marks(cell)}"


def axis_unit(metric: str) -> str:
    """Return a metric with its unit for an axis, such as "acc (%)"."""
    return METRIC_NAMES.get(metric, metric) + ("" if metric == "min_dcf" else " (%)")


def axis_label(task: Column) -> str:
    """Return the metric with its unit and an arrow in the better direction."""
    return f"{axis_unit(task.metric)} {'↑' if task.higher else '↓'}"


def figure(caption: str, drawing: Markup, *notes: Markup, kind: str | None = None) -> Markup:
    """Return a chart with its title above and notes below."""
    return element("figure", element("figcaption", breakable(caption)), drawing, *notes, class_=kind)


def note(*sentences: str) -> Markup:
    """Return a paragraph of explanation."""
    return element("p", " ".join(sentences), class_="note")


def score_chart(task: Column) -> Markup:
    """Draw bars for all upstreams that have a score, the best on top."""
    cells = [(name, task.cells[name]) for name in task.scored()]
    rows = [
        plots.Bar(
            f"{place} {name}", f"{score_text(cell)} {interval_text(cell)}".strip(), cell.value, cell.low, cell.high
        )
        for place, (name, cell) in enumerate(cells, 1)
    ]
    description = "from the best to the worst: " + "; ".join(f"{row.name} {row.text}" for row in rows)
    explanation = (
        "Whiskers are 95 % intervals." if any(interval_text(cell) for _, cell in cells) else "Intervals are not known."
    )
    drawing = plots.bars(rows, f"Scores on {task.task}", description, f"test {axis_label(task)}")
    return figure("Scores", drawing, note(explanation, *_unscored(task)))


def _unscored(task: Column) -> list[str]:
    diverged = [name for name, cell in task.cells.items() if not math.isfinite(cell.value)]
    return [f"Diverged: {', '.join(diverged)}."] if diverged else []


def cost_chart(task: Column) -> Markup:
    """Plot scores against the cost of encoding, and list the upstreams on the Pareto front."""
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
    description = "; ".join(
        f"{dot.label} {dot.name}: {score_number(dot.y, task.metric)} at {plots.short_number(dot.x)}" for dot in dots
    )
    unknown = [name for name in names if name not in costs]
    missing = f"Cost unknown: {', '.join(unknown)}." if unknown else ""
    drawing = plots.scatter(dots, f"Score against cost on {task.task}", description, label, f"test {axis_label(task)}")
    text = note("Numbers are places in the chart of scores. Filled: no upstream is both cheaper and better:")
    return figure(
        "Score against cost", drawing, element("div", text, _front_list(task, dots), note(missing)), kind="cost"
    )


def _front_list(task: Column, dots: Sequence[plots.Dot]) -> Markup:
    front = sorted((dot for dot in dots if dot.front), key=lambda dot: dot.x)
    items = (
        f"{dot.label} {dot.name}: {score_number(dot.y, task.metric)} at {plots.short_number(dot.x)}" for dot in front
    )
    return element("ul", (element("li", item) for item in items))


def _costs(task: Column, names: Sequence[str]) -> tuple[dict[str, float], str]:
    """Return the cost of each upstream and the label of its axis.

    The cost is in multiply–accumulates, or in parameters if fewer than two upstreams have recorded the former.
    """
    macs = _first_numbers(task, names, lambda record: record.cost.get("macs_per_second"))
    if len(macs) > 1:
        return macs, "multiply–accumulates per second of audio"
    sizes = _first_numbers(task, names, lambda record: record.upstream.get("parameters"))
    return sizes, "parameters (operations are not known)"


def _first_numbers(task: Column, names: Sequence[str], field: Callable[[Record], float | None]) -> dict[str, float]:
    """Return the first number in the records of each upstream that has one."""
    numbers = {name: [value for record in task.chosen(name) if (value := field(record)) is not None] for name in names}
    return {name: float(values[0]) for name, values in numbers.items() if values and math.isfinite(values[0])}


def _front(candidates: Sequence[tuple[float, float, str]], higher: bool) -> list[str]:
    """Return the names on the Pareto front: no other candidate is at least as cheap and good, and better in one."""
    best = math.inf
    front: list[str] = []
    for _, loss, name in sorted((x, -value if higher else value, name) for x, value, name in candidates):
        if loss < best:
            best = loss
            front.append(name)
    return front


def learning_rate_charts(task: Column) -> Markup:
    """Draw one chart per upstream of validation score against learning rate, with all others in grey."""
    curves = {name: _by_rate(task, name) for name in task.cells}
    curves = {name: points for name, points in curves.items() if points}
    values = [y for points in curves.values() for _, y in points if math.isfinite(y)]
    if not values:
        return note("No learning rates were tried: this head has none.")
    grid = sorted({lr for points in curves.values() for lr, _ in points})
    frame = layer_charts.axes(
        (grid[0], grid[-1]), (min(values), max(values)), [(lr, plots.short_number(lr)) for lr in grid]
    )
    frame = frame._replace(x=frame.x._replace(bend=plots.log))
    behind = f"{task.key}-rates"
    all_lines = layer_charts.definition(
        behind, *(layer_charts.line(frame, points, "others", False) for points in curves.values())
    )
    drawings = [_rate_panel(task, name, points, frame, behind) for name, points in curves.items()]
    explanation = (
        f"Validation {axis_label(task)}, mean over seeds and folds, against learning rate; circled: the chosen one;"
    )
    marks = note(explanation, "cross: no score; grey: the other upstreams.")
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
    description = "; ".join(
        f"{lr:g}: {score_number(y, task.metric) if math.isfinite(y) else 'no score'}" for lr, y in points
    )
    chosen = [point for point in points if point[0] == task.cells[name].lr and math.isfinite(point[1])]
    shapes = [
        layer_charts.use(behind),
        layer_charts.line(frame, points),
        *(layer_charts.ring(frame, point) for point in chosen),
    ]
    return figure(name, layer_charts.small_chart(frame, f"{name}: learning rates on {task.task}", description, *shapes))


def layer_figures(task: Column) -> Markup:
    """Draw layer weights, and scores of single layers beside them, for upstreams that have several layers."""
    weights = {name: _weights(task.chosen(name)) for name in task.cells}
    deep = [name for name in task.cells if len(weights[name]) > 1 or len(task.probes.get(name, {})) > 1]
    flat = [name for name in task.cells if name not in deep]
    single = f"With a single layer, or none recorded: {', '.join(flat)}." if flat else ""
    if not deep:
        return note("No upstream here has several layers.", single)
    probed = any(task.probes.get(name) for name in deep)
    pairs = [_layer_pair(task, name, weights, probed) for name in deep]
    grid = element("div", pairs, class_="panels pairs" if probed else "panels")
    return element("div", note(_layer_note(task, probed), single), grid)


def _layer_note(task: Column, probed: bool) -> str:
    if probed:
        return f"{WEIGHTS_NOTE}; beside them, test {axis_label(task)} of a head on one layer alone; dashed: the sum."
    return f"{WEIGHTS_NOTE}; heads on single layers do (bench run --per-layer)."


def _weights(records: Sequence[Record]) -> list[float]:
    """Return the mean layer weights of the records."""
    weight_lists = [record.layer_weights for record in records if record.layer_weights]
    same = [weights for weights in weight_lists if len(weights) == len(weight_lists[0])]
    return [fmean(layer) for layer in zip(*same, strict=True)]


def _layer_pair(task: Column, name: str, weights: Mapping[str, list[float]], probed: bool) -> Markup:
    highest = max((max(values) for values in weights.values() if len(values) > 1), default=1.0)
    drawings = [_weight_panel(task, name, weights[name], highest)] if len(weights[name]) > 1 else []
    if probed and task.probes.get(name):
        drawings += [_probe_panel(task, name)]
    return figure(name, element("div", drawings, class_="pair") if probed else drawings[0])


def _numbered(count: int) -> list[tuple[float, str]]:
    return [(place, str(place)) for place in range(count)]


def _weight_panel(task: Column, name: str, weights: Sequence[float], highest: float) -> Markup:
    frame = layer_charts.axes((0, len(weights) - 1), (0, highest), _numbered(len(weights)))
    description = "; ".join(f"{layer}: {weight:.2f}" for layer, weight in enumerate(weights))
    shapes = [layer_charts.upright_bars(frame, weights), layer_charts.level(frame, 1 / len(weights))]
    return layer_charts.small_chart(frame, f"{name}: layer weights on {task.task}", description, *shapes)


def _probe_panel(task: Column, name: str) -> Markup:
    cells = task.probes[name]
    all_cells = [cell for probes in task.probes.values() for cell in probes.values()] + list(task.cells.values())
    values = [end for cell in all_cells for end in (cell.value, cell.low, cell.high) if math.isfinite(end)]
    frame = layer_charts.axes(
        (0, max(cells)), (min(values, default=0), max(values, default=1)), _numbered(max(cells) + 1)
    )
    description = "; ".join(
        f"{layer}: {score_text(cell)} {interval_text(cell)}".strip() for layer, cell in cells.items()
    )
    total = task.cells[name].value
    shapes = [layer_charts.level(frame, total)] if math.isfinite(total) else []
    shapes += [layer_charts.interval_lines(frame, [(layer, cell.low, cell.high) for layer, cell in cells.items()])]
    shapes += [layer_charts.line(frame, [(layer, cell.value) for layer, cell in cells.items()])]
    return layer_charts.small_chart(frame, f"{name}: single layers on {task.task}", description, *shapes)
