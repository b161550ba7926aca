"""Tests of charts: values are drawn at the right places, and each chart has a description."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmark.records import Record
from benchmark.tables.pages import layer_charts, plots
from benchmark.tables.pages.figures import cost_chart, layer_figures, learning_rate_charts, score_chart, task_column
from benchmark.tables.pages.markup import Markup, breakable, element, joined_markup
from tests.benchmark.made import bare, record


def parsed(markup: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(f"<root>{markup}</root>")


def classed(markup: Markup, kind: str) -> list[ElementTree.Element]:
    return [node for node in parsed(markup).iter() if kind in node.get("class", "").split()]


def texts(markup: Markup) -> list[str]:
    return [node.text or "" for node in parsed(markup).iter("text")]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff")))
def test_any_text_comes_back_from_content_and_attributes(text: str) -> None:
    found = parsed(element("p", text, title=text))[0]
    assert (found.text or "") == text
    assert found.get("title") == text
    assert "".join(ElementTree.fromstring(f"<p>{breakable(text).replace('<wbr>', '')}</p>").itertext()) == text


def test_markup_is_not_escaped_twice_and_absent_attributes_are_left_out() -> None:
    inner = element("b", "a & b", class_="x", aria_label=None, hidden=False, open=True)
    assert inner == '<b class="x" open>a &amp; b</b>'
    assert joined_markup(inner, [" <", inner]) == f"{inner} &lt;{inner}"


@pytest.mark.parametrize(
    ("bend", "values", "places"),
    [
        (float, [0, 25, 50, 100], [10, 35, 60, 110]),
        (plots.log, [1, 10, 100, 10_000], [10, 35, 60, 110]),
        (plots.probit, [0.5 - 0.34134, 0.5, 0.5 + 0.34134], [10, 60, 110]),
    ],
)
def test_scales_bend_values_and_clip_values_beyond_their_ends(bend, values, places) -> None:
    scale = plots.Scale(values[0], values[-1], 10, 110, bend)
    assert [scale(value) for value in values] == pytest.approx(places, abs=0.1)
    assert scale(values[-1] * 1.05) == 110
    assert scale(values[0] * 0.95) == 10


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 6))
def test_ticks_are_few_round_and_within(low: float, width: float, most: int) -> None:
    values = plots.ticks(low, low + width, most)
    assert len(values) <= most
    assert all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in values)
    steps = [after - before for before, after in pairwise(values)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-4) if steps else True


def test_numbers_of_ticks_are_short() -> None:
    assert [plots.short_number(value) for value in (0, 0.001, 40, 2048000, 1.5e9, 3e12)] == [
        "0",
        "0.001",
        "40",
        "2.05 M",
        "1.5 G",
        "3 T",
    ]
    assert plots.powers_of_ten(3e5, 2e9) == [1e6, 1e7, 1e8, 1e9]
    assert plots.powers_of_ten(1, 1e12) == [1, 1e4, 1e8, 1e12]


def test_long_names_lose_their_middle() -> None:
    short = plots.shortened("hf:examples/hubert_tiny@random", 100)
    assert len(short) <= 100 / plots.CHARACTER
    assert short.startswith("hf:exa")
    assert short.endswith("random")
    assert plots.shortened("fbank", 100) == "fbank"


def test_a_bar_without_an_interval_has_no_whisker_and_every_picture_has_a_description() -> None:
    rows = [plots.Bar("a <b>", "50.0", 50.0, 40.0, 60.0), plots.Bar("c", "25.0", 25.0)]
    chart = plots.bars(rows, "Scores & such", "a then c", "acc (%)")
    assert [float(bar.get("width", "")) for bar in classed(chart, "bar")] == pytest.approx([260, 130], abs=0.1)
    assert len(classed(chart, "whisker")) == 1
    picture = parsed(chart)[0]
    assert picture.get("role") == "img"
    assert [picture[0].tag, picture[0].text] == ["title", "Scores & such"]
    assert [picture[1].tag, picture[1].text] == ["desc", "a then c"]


def test_a_missing_value_breaks_a_line_and_is_crossed_out() -> None:
    frame = layer_charts.axes((0, 4), (0, 10), [])
    drawn = layer_charts.line(frame, [(0, 1), (1, 2), (2, math.nan), (3, 4), (4, 5)])
    path, *_ = [node.get("d") for node in classed(drawn, "line") if node.tag == "path"]
    assert path is not None
    assert [part.count("L") for part in path.split("M")[1:]] == [1, 1]
    assert len(classed(drawn, "mark")) == 4
    cross = classed(drawn, "cross")[0].get("d", "")
    xs = [float(number) for number in re.findall(r"[ML]([\d.]+) ", cross)]
    assert sum(xs) / len(xs) == pytest.approx(frame.x(2))


def test_texts_of_an_axis_do_not_touch() -> None:
    labels = [(place, str(place)) for place in range(25)]
    drawn = layer_charts.small_chart(layer_charts.axes((0, 24), (0, 1), labels), "t", "d")
    row = [node for node in parsed(drawn).iter("text") if node.get("text-anchor") == "middle"]
    places = [(float(node.get("x", "")), len(node.text or "") * plots.CHARACTER / 2) for node in row]
    assert row[-1].text == "24"
    assert len(row) > 5
    assert all(a + wide < b - other for (a, wide), (b, other) in pairwise(places))


COSTS = st.one_of(st.just(0.0), st.floats(1, 1e13))


@example([(0.0, 0.0), (0.0, 5e-324)])
@given(st.lists(st.tuples(COSTS, st.floats(0, 100)), min_size=2, max_size=15))
def test_dots_and_their_labels_stay_inside(points: list[tuple[float, float]]) -> None:
    dots = [plots.Dot(str(place), "name", x, y) for place, (x, y) in enumerate(points, 1)]
    chart = plots.scatter(dots, "t", "d", "x", "y")
    assert len(classed(chart, "dot")) == len(points)
    for node in parsed(chart).iter("circle"):
        assert 34 <= float(node.get("cx", "")) <= plots.WIDE
        assert 18 <= float(node.get("cy", "")) <= 216
    plain = [node for node in parsed(chart).iter("text") if node.get("class") is None]
    assert [node.text for node in plain] == [str(place) for place in range(1, len(points) + 1)]


def task(records: list[Record], name: str = "words"):
    return task_column(bare(records), records, name, "t0")


def costed(upstream: str, test: float, macs: float | None = None, **fields) -> Record:
    return record(upstream, test=test, cost={} if macs is None else {"macs_per_second": macs}, **fields)


def test_upstreams_neither_cheaper_nor_better_are_not_on_the_front() -> None:
    made = [costed("a", 40, 0), costed("b", 60, 1e6), costed("c", 50, 1e7), costed("d", 60, 1e8), costed("e", 70, 1e8)]
    drawn = cost_chart(task(made))
    front = {node[0].text for node in classed(drawn, "first")}
    assert front == {"a", "b", "e"}
    items = [node.text for node in parsed(drawn).iter("li")]
    assert items == ["5 a: 40.0 at 0", "2 b: 60.0 at 1 M", "1 e: 70.0 at 100 M"]


def test_low_error_rates_are_on_the_front() -> None:
    made = [
        costed(name, test, macs, metric="wer", higher=False)
        for name, test, macs in [("a", 40, 1), ("b", 60, 2), ("c", 5, 3)]
    ]
    assert {node[0].text for node in classed(cost_chart(task(made)), "first")} == {"a", "c"}


def test_cost_falls_back_on_parameters_and_names_those_of_unknown_cost() -> None:
    sized = [costed(name, 40, card={"parameters": size}) for name, size in [("a", 10), ("b", 20_000_000)]]
    assert "parameters" in " ".join(texts(cost_chart(task(sized))))
    records = [costed("a", 40, 1e6), costed("b", 50, 1e7), costed("c", 60)]
    drawn = cost_chart(task(records))
    assert "multiply–accumulates" in " ".join(texts(drawn))
    assert "Cost unknown: c." in "".join(parsed(drawn).itertext())


def test_a_task_without_sweep_layers_or_intervals_says_so() -> None:
    made = [record("a", lr=None, layer_weights=[]), record("b", lr=None, layer_weights=[1.0])]
    assert "No learning rates were tried" in learning_rate_charts(task(made))
    assert "No upstream here has several layers" in layer_figures(task(made))
    assert "Intervals are not known." in score_chart(task(made))
    assert classed(score_chart(task(made)), "whisker") == []


def test_the_learning_rate_of_each_layer_is_chosen_on_validation() -> None:
    made = [record("a", test=50.0)]
    made += [
        record("a", lr=lr, valid=valid, test=test, layer=layer, id=f"{layer}-{lr}")
        for layer, pairs in enumerate([[(10, 90), (20, 30)], [(40, 60), (30, 99)]])
        for lr, (valid, test) in zip((1e-3, 1e-2), pairs, strict=True)
    ]
    probes = task(made).probes["a"]
    assert [probes[layer].value for layer in (0, 1)] == [30, 60]
    assert task(made).cells["a"].value == 50.0


def test_costs_within_one_decade_are_labelled_at_their_ends() -> None:
    alike = [plots.Dot(str(place), "name", x, y) for place, (x, y) in enumerate([(2e6, 40), (7e6, 50)], 1)]
    labels = {node.text for node in classed(plots.scatter(alike, "t", "d", "x", "y"), "soft")}
    assert {"2 M", "7 M"} <= labels
