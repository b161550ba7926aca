"""Tests of the HTML page in a browser: sorting, narrow screens, print, dark mode, no scripts, and hostile names."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from benchmark.records import Record
from benchmark.tables.leaderboard import Board
from benchmark.tables.pages.page import page
from tests.benchmark.made import bare, record

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
HOSTILE = "<script>window.hit = 1</script>\"'&<img src=x onerror='window.hit=1'>"
LONG = "hf:someone/a_model_with_a_very_long_name_indeed@random?layers=4"
NAMES = ["alpha", "beta", "gamma", HOSTILE, LONG]
Rows = list[dict[str, str]]


def texts(reference: str, hypothesis: str, edits: tuple[int, int, int, int], name: str = "t") -> dict[str, str]:
    """Return a row of outcomes; edits: numbers of words substituted, deleted, inserted and right."""
    kinds = ("substitutions", "deletions", "insertions", "hits")
    counts = {f"word_{kind}": str(count) for kind, count in zip(kinds, edits, strict=True)}
    return {"id": name, "reference": reference, "hypothesis": hypothesis} | counts


def labels(pairs: list[tuple[str, str]]) -> Rows:
    return [
        {"id": f"c{place}", "reference": reference, "prediction": prediction, "correct": str(reference == prediction)}
        for place, (reference, prediction) in enumerate(pairs)
    ]


def trials() -> Rows:
    scores = [(0.9, True), (0.8, False), (0.7, True), (0.4, True), (0.3, False), (0.1, False)]
    return [{"enroll": "a", "test": f"b{s}", "target": str(t), "score": str(s)} for s, t in scores]


WORDS = labels([("a", "a")] * 3 + [("a", "b"), ("b", "b"), (HOSTILE, "a")])
TEXTS = [
    texts("the cat sat", "the hat sat down", (1, 0, 1, 2), "first"),
    texts("all is well", "all is well", (0, 0, 0, 3), "second"),
    texts("go on then", HOSTILE.replace(" ", "_"), (1, 2, 0, 0), "third"),
]
MANY = labels([(f"s{k}", f"s{k}") for k in range(24)] + [("s1", "s2")] * 3 + [("s4", "s5")])
OUTCOMES: dict[str, Rows] = {"words": WORDS, "texts": TEXTS, "pairs": trials(), "many": MANY}

# Test scores; each upstream but beta has words, one lacks texts, one diverged there.
SCORES: dict[str, dict[str, float | None]] = {
    "words": {"alpha": 40.0, "beta": 60.0, "gamma": 9.5, HOSTILE: 50.0, LONG: 30.0},
    "texts": {"alpha": 25.0, "beta": None, "gamma": 110.0, LONG: 3.0},
    "pairs": dict.fromkeys(NAMES, 20.0),
    "many": {"alpha": 70.0, "beta": 71.0},
}
METRICS = {"words": ("accuracy", True), "texts": ("wer", False), "pairs": ("eer", False), "many": ("accuracy", True)}
RATES: dict[str, list[float | None]] = {
    "words": [1e-4, 1e-3, 1e-2],
    "texts": [1e-3, 1e-2],
    "pairs": [None],
    "many": [1e-3],
}


def made() -> list[Record]:
    records = []
    for task, scores in SCORES.items():
        metric, higher = METRICS[task]
        for place, (name, score) in enumerate(scores.items()):
            for lr in RATES[task]:
                merit = 50.0 + (10 if higher else -10) * (lr == 1e-3)
                valid = None if score is None or (lr == 1e-4 and name == "gamma") else merit
                cost = {"macs_per_second": [0.0, 1e6, 5e7, 2e9, 2e9][place]}
                records += [
                    record(name, task, lr, seed, valid, score, metric, higher, cost=cost, commit="abc1234+",
                           machine={"cpu": "a processor"}, trials={"test": 6} if task == "pairs" else {})
                    for seed in (0, 1)
                ]  # fmt: skip
    for layer, score in enumerate([20.0, 45.0, 30.0]):
        records.append(record("alpha", "words", 1e-3, 0, 60.0, score, layer=layer, id=f"layer-{layer}"))
    return records


def board(records: list[Record]) -> Board:
    """Return a board with invented intervals of ± 10 % of each score, where beta is best on words."""
    board = bare(records)
    table = board.table
    for key, cell in table.items():
        placed = cell._replace(low=cell.value * 0.9, high=cell.value * 1.1, unit="speakers", clusters=7, rank=1)
        table[key] = placed._replace(best=key == ("beta", "words"))
    return board._replace(borda={name: 2.5 - place for place, name in enumerate(NAMES)}, shared=["words", "pairs"])


def outcomes(job: Record) -> Rows:
    if job.upstream["name"] == "gamma":
        raise FileNotFoundError("gone")
    return OUTCOMES[job.task["name"]]


def document(**changes: Any) -> str:
    records = made()
    arguments = {"board": board(records), "records": records, "outcomes": outcomes, "rows": NAMES, "columns": ["words"]}
    return page(**(arguments | changes))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(document(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    browser_path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser_path:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH, and BROWSER_PATH is not set")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser_path, args=FLAGS.split())
        yield running
        running.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Open]:
    """Open the page with the options of a browser context; the page must log no errors and request nothing else."""
    contexts, complaints, requests = [], [], []

    def goto(width: int = 1400, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
        shown = context.new_page()
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto(address)
        return shown

    yield goto
    for context in contexts:
        context.close()
    assert not complaints
    assert {url.split("#")[0] for url in requests} == {address}
    assert len(requests) == len(contexts)


def order(shown: Any) -> list[str]:
    return shown.eval_on_selector_all(".board tbody tr", "rows => rows.map(row => row.cells[0].innerText)")


def directions(shown: Any) -> list[str | None]:
    return shown.eval_on_selector_all(".board th[scope=col]", "heads => heads.map(h => h.getAttribute('aria-sort'))")


def head(shown: Any, name: str) -> Any:
    return shown.locator(".board thead button", has_text=name)


def open_all(shown: Any) -> None:
    shown.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


def test_the_same_records_give_the_same_bytes_and_ask_for_outcomes_once() -> None:
    calls: Counter[str] = Counter()

    def counted(job: Record) -> Rows:
        calls[job.id] += 1
        return outcomes(job)

    assert document(outcomes=counted) == document(outcomes=counted)
    assert set(calls.values()) == {2}
    assert not {job.id for job in made() if job.layer is not None or job.lr == 1e-2} & set(calls)


def test_a_click_sorts_a_column_from_its_better_end_and_another_one_from_the_other(opened: Open) -> None:
    shown = opened()
    assert order(shown) == NAMES
    head(shown, "words").click()
    assert order(shown) == ["beta", HOSTILE, "alpha", LONG, "gamma"]  # 60, 50, 40, 30, 9.5: numbers, not texts
    assert directions(shown) == [None, "descending", None, None, None, None]
    head(shown, "words").click()
    assert order(shown) == ["gamma", LONG, "alpha", HOSTILE, "beta"]
    assert directions(shown) == [None, "ascending", None, None, None, None]


def test_the_keyboard_sorts_too_and_missing_or_diverged_scores_come_last_either_way(opened: Open) -> None:
    shown = opened()
    head(shown, "texts").focus()
    shown.keyboard.press("Enter")
    assert order(shown) == [LONG, "alpha", "gamma", "beta", HOSTILE]  # 3, 25, 110; an error rate is better when low
    assert directions(shown).count("ascending") == 1
    shown.keyboard.press("Space")
    assert order(shown) == ["gamma", "alpha", LONG, "beta", HOSTILE]
    assert [each for each in directions(shown) if each] == ["descending"]
    head(shown, "upstream").press("Enter")
    assert order(shown) == sorted(NAMES)
    assert directions(shown) == ["ascending", None, None, None, None, None]


def test_cells_show_score_interval_rank_and_marks_and_missing_ones_stay_missing(opened: Open) -> None:
    shown = opened()
    cells = shown.eval_on_selector_all(".board tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText))")
    by_name = {row[0]: [" ".join(cell.split()) for cell in row[1:]] for row in cells}
    heads = shown.eval_on_selector_all(".board thead th", "heads => heads.map(each => each.innerText.split(/\\s/)[0])")
    column = {name: place - 1 for place, name in enumerate(heads)}
    assert by_name["beta"][column["words"]] == "60.0★ rank 1 [54.0, 66.0]"
    assert by_name["alpha"][column["words"]] == "40.0 rank 1 [36.0, 44.0]"
    assert by_name["beta"][column["texts"]] == "diverged"
    assert by_name[HOSTILE][column["texts"]] == "–"
    assert by_name["gamma"][column["texts"]] == "110.0† rank 1 [99.0, 121.0]"
    assert [by_name[name][column["Borda"]] for name in NAMES] == ["2.5", "1.5", "0.5", "-0.5", "-1.5"]
    weights = shown.eval_on_selector_all(
        ".board tbody td:nth-child(2) a", "all => all.map(each => getComputedStyle(each).fontWeight)"
    )
    assert weights == ["400", "700", "400", "400", "400"]
    assert "words, pairs" in shown.locator("ul.notes").inner_text()


def test_an_interval_that_is_not_known_is_left_out_and_the_title_says_so() -> None:
    records = made()
    bare = {key: cell._replace(low=math.nan, high=math.nan, rank=None) for key, cell in board(records).table.items()}
    html = document(board=Board(bare, {}, []))
    assert "Borda" not in html
    assert ">rank" not in html
    assert 'title="interval not known; ± 0.0 over 2 seeds"' in html
    assert '<small class="range">± 0.0</small>' in html
    assert '<small class="range">[' not in html
    assert not re.search(r"\bnan\b|>None<", html)


def test_published_rows_stand_below_in_italics_with_their_sources_and_without_ranks(
    browser: Any, tmp_path: Path
) -> None:
    from benchmark.tables.published import Published

    facts = [
        ("Some system", "words", 99.0, "accuracy"),
        ("Some system", "pairs", 5.25, "eer"),
        (HOSTILE, "words", 1.0, "accuracy"),
    ]
    rows = [Published(*fact, "SUPERB", "Somebody et al., 2020", "A", False) for fact in facts]
    path = tmp_path / "published.html"
    path.write_text(document(beside=rows), encoding="utf-8")
    shown = browser.new_page(viewport={"width": 700, "height": 900})
    shown.goto(path.as_uri())
    head(shown, "words").click()
    assert order(shown)[:5] == ["beta", HOSTILE, "alpha", LONG, "gamma"]  # 99 is not among them
    assert order(shown)[5:] == ["published; ranked only where the protocol is the same", "Some system", HOSTILE]
    system = shown.locator(".published tr").first
    assert system.evaluate("row => getComputedStyle(row.cells[1]).fontStyle") == "italic"
    cells = [" ".join(cell.split()) for cell in system.locator("td").all_inner_texts()]
    assert sorted(cells) == ["5.25 [1]", "99 [1]", "–", "–", "–"]
    assert "rank" not in system.inner_text()
    system.locator("a").first.click()
    source = shown.locator("li:target")
    source.wait_for(state="visible")
    assert "Somebody et al., 2020" in source.inner_text()
    assert shown.evaluate("window.hit") is None
    shown.close()


@pytest.mark.parametrize("width", [320, 375, 768])
def test_on_a_narrow_screen_only_tables_scroll_sideways_and_names_stay_in_sight(opened: Open, width: int) -> None:
    shown = opened(width, 800)
    open_all(shown)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate("document.body.scrollWidth") <= width
    box = shown.locator(".board")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth + 50") or width > 700
    box.evaluate("box => { box.scrollLeft = 150; box.scrollTop = 60 }")
    stuck = "box => box.querySelector('tbody th').getBoundingClientRect().left - box.getBoundingClientRect().left"
    assert 0 <= box.evaluate(stuck) < 3
    assert 0 <= box.evaluate(stuck.replace("tbody", "thead")) < 3
    assert 0 <= box.evaluate(stuck.replace("tbody", "thead").replace("left", "top")) < 3


def test_charts_keep_their_text_at_eleven_pixels_on_a_phone(opened: Open) -> None:
    shown = opened(360, 800)
    open_all(shown)
    sizes = shown.eval_on_selector_all(
        "svg[role=img]",
        "all => all.filter(svg => svg.querySelector('text')).map("
        "svg => 11 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)",
    )
    assert len(sizes) > 15
    assert min(sizes) >= 11


CONTRAST = """() => {
  const light = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parts = colour => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { a, l: 0.2126 * light(r / 255) + 0.7152 * light(g / 255) + 0.0722 * light(b / 255) };
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = parts(getComputedStyle(node).backgroundColor);
      if (found.a === 1) return found.l;
      if (found.a !== 0) throw new Error("half transparent background");
    }
    throw new Error("no background");
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const found = { texts: [], shapes: [] };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || at.closest("script, title, desc") || !at.getClientRects().length) continue;
    const style = getComputedStyle(at);
    const colour = at.closest("svg") ? style.fill : style.color;
    found.texts.push([ratio(parts(colour).l, behind(at)), walker.currentNode.data]);
  }
  for (const [kind, paint] of Object.entries({ bar: "fill", line: "stroke", axis: "stroke", ring: "stroke",
      dot: "stroke", front: "stroke", whisker: "stroke", level: "stroke" }))
    for (const at of document.querySelectorAll(`svg[role=img] :not(.mark).${kind}`)) {
      const colour = getComputedStyle(at)[paint];
      if (colour !== "none") found.shapes.push([ratio(parts(colour).l, behind(at)), kind]);
    }
  const over = ratio(parts(getComputedStyle(document.querySelector(".whisker")).stroke).l,
      parts(getComputedStyle(document.querySelector(".bar")).fill).l);
  found.shapes.push([over, "whisker over bar"]);
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_graphics_have_accessible_contrast(opened: Open, scheme: str) -> None:
    shown = opened(color_scheme=scheme)
    open_all(shown)
    contrasts = shown.evaluate(CONTRAST)
    assert len(contrasts["texts"]) > 300
    assert not [each for each in contrasts["texts"] if each[0] < 4.5]
    assert {kind for _, kind in contrasts["shapes"]} >= {"bar", "line", "axis", "ring", "dot", "whisker", "level"}
    assert not [each for each in contrasts["shapes"] if each[0] < 3]
    dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_every_link_leads_somewhere_and_every_score_to_its_provenance(opened: Open) -> None:
    shown = opened(700, 900)
    ids = shown.eval_on_selector_all("[id]", "all => all.map(each => each.id)")
    assert len(ids) == len(set(ids))
    targets = shown.eval_on_selector_all("[href]", "all => all.map(each => each.getAttribute('href'))")
    assert all(target.startswith("#") for target in targets)
    assert {target[1:] for target in targets} <= set(ids)
    scores = sum(len(by_task) for by_task in SCORES.values())
    assert shown.locator(".board tbody td a").count() == scores
    shown.locator(".board tbody tr", has_text="alpha").locator("a").first.click()
    facts = shown.locator("dl:target")
    facts.wait_for(state="visible")
    text = facts.inner_text()
    assert all(value in text for value in ("0.001", "abc1234+", "c" * 64, "s" * 64, "f" * 64, "a processor", "torch 2"))
    jobs = facts.locator("xpath=following-sibling::*").inner_text()
    assert "words-alpha-0.001-0" in jobs
    assert "words-alpha-0.001-1" in jobs
    assert "words-alpha-0.01-0" not in jobs


def test_hostile_names_labels_and_transcripts_are_inert_and_shown_as_they_are(opened: Open) -> None:
    shown = opened()
    open_all(shown)
    assert shown.evaluate("window.hit") is None
    assert shown.locator("script").count() == 1
    assert shown.locator("img").count() == 0
    assert HOSTILE in order(shown)
    assert HOSTILE in shown.locator(".heat tbody th").all_inner_texts()
    assert HOSTILE.replace(" ", "_") in shown.locator(".wrong").first.locator("xpath=../../..").inner_text()


GEOMETRY = """svg => [...svg.querySelectorAll("g.row")].map(row => {
  const [bar, whisker] = [row.querySelector("rect").getBBox(), row.querySelector(".whisker").getBBox()];
  return [row.querySelector("text").textContent, bar.x, bar.width, bar.y, whisker.x, whisker.x + whisker.width];
})"""


@pytest.mark.parametrize("task", ["words", "texts"])
def test_bars_go_from_the_best_down_with_lengths_and_whiskers_as_the_numbers_say(opened: Open, task: str) -> None:
    shown = opened()
    section = shown.locator("section", has=shown.locator("h2", has_text=task))
    rows = section.locator("svg.bars").evaluate(GEOMETRY)
    scores = {name: score for name, score in SCORES[task].items() if score is not None}
    names = sorted(scores, key=lambda name: scores[name], reverse=METRICS[task][1])
    assert len(rows) == len(names)
    start, unit = rows[0][1], rows[0][2] / scores[names[0]]
    assert sorted(rows, key=lambda row: row[3]) == rows
    for place, (name, (shown_name, left, width, _, low, high)) in enumerate(zip(names, rows, strict=True), 1):
        assert shown_name.startswith(f"{place} {name[:4]}")
        assert left == start
        assert width == pytest.approx(unit * scores[name], rel=0.03, abs=0.3)
        assert low == pytest.approx(start + 0.9 * scores[name] * unit, rel=0.03, abs=0.3)
        assert high == pytest.approx(start + 1.1 * scores[name] * unit, rel=0.03, abs=0.3)
    assert max(row[5] for row in rows) <= 320


def test_learning_rates_are_drawn_with_the_chosen_one_circled_and_a_failed_one_crossed(opened: Open) -> None:
    shown = opened()
    section = shown.locator("section", has=shown.locator("h2", has_text="words"))
    panels = section.locator("details", has=shown.locator("summary", has_text="Learning rates")).locator(
        ".panels figure"
    )
    assert panels.count() == len(NAMES)
    alpha, gamma = (panels.filter(has=shown.locator("figcaption", has_text=name)).first for name in ("alpha", "gamma"))
    centres = "all => all.map(each => [each.cx.baseVal.value, each.cy.baseVal.value])"
    marks = alpha.locator("circle.mark").evaluate_all(centres)
    assert alpha.locator("circle.ring").evaluate_all(centres) == [marks[1]]
    assert marks[1][0] - marks[0][0] == pytest.approx(marks[2][0] - marks[1][0], abs=0.2)  # even steps in log10
    assert marks[0][1] == marks[2][1] > marks[1][1]
    assert alpha.locator(".cross").count() == 0
    assert gamma.locator(".cross").count() == 1
    assert gamma.locator("circle.mark").count() == 2


def test_layer_weights_stand_beside_scores_of_single_layers(opened: Open) -> None:
    shown = opened()
    section = shown.locator("section", has=shown.locator("h2", has_text="words"))
    pair = section.locator(".pairs figure", has=shown.locator("figcaption", has_text="alpha")).first
    heights = pair.locator("rect.bar").evaluate_all("all => all.map(each => each.height.baseVal.value)")
    assert [height / sum(heights) for height in heights] == pytest.approx([0.2, 0.3, 0.5], abs=0.01)
    ys = pair.locator("circle.mark").evaluate_all("all => all.map(each => each.cy.baseVal.value)")
    assert (ys[0] - ys[2]) / (ys[0] - ys[1]) == pytest.approx((30 - 20) / (45 - 20), abs=0.03)
    assert "alone do not show where information lies" in section.inner_text()


def test_confusions_are_percent_of_each_true_class_and_many_classes_are_listed(opened: Open) -> None:
    shown = opened()
    open_all(shown)
    heat = shown.locator("table.heat").first
    table = heat.evaluate("table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent))")
    rows = {row[0]: dict(zip(table[0][1:], row[1:], strict=True)) for row in table[1:]}
    assert rows["a"] == {"a": "75", "b": "25", HOSTILE: ""}
    assert rows["b"] == {"a": "", "b": "100", HOSTILE: ""}
    assert rows[HOSTILE] == {"a": "100", "b": "", HOSTILE: ""}
    many = shown.locator("section", has=shown.locator("h2", has_text="many"))
    assert many.locator("table.heat").count() == 0
    listed = many.locator("table.list").first.evaluate(
        "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert listed == [["s1", "s2", "6 of 8", "75 %"], ["s4", "s5", "2 of 4", "50 %"]]  # of two seeds


def test_misheard_words_are_counted_and_aligned_and_lost_outcomes_are_reported(opened: Open) -> None:
    shown = opened()
    open_all(shown)
    section = shown.locator("section", has=shown.locator("h2", has_text="texts"))
    kinds = section.locator("table.list").first.locator("tr", has_text="alpha").inner_text().split()
    assert kinds == ["alpha", "55.6", "22.2", "22.2", "11.1"]  # of nine words: 5, 2, 2, 1
    box = section.locator("details details", has=shown.locator("summary", has_text="alpha")).first
    steps = box.locator(".utterance", has_text="first").locator(".steps > span").all_inner_texts()
    assert [each.split() for each in steps] == [
        ["the", "the"], ["cat", "hat", "S"], ["sat", "sat"], ["·", "down", "I"],
    ]  # fmt: skip
    assert box.locator(".utterance small").all_inner_texts() == ["third: 3 errors in 3", "first: 2 errors in 3"]
    lost = section.locator("details details", has=shown.locator("summary", has_text="gamma")).first
    assert "The outcomes of 2 jobs are missing." in lost.inner_text()


def test_misses_fall_from_the_top_left_as_false_alarms_rise(opened: Open) -> None:
    shown = opened()
    open_all(shown)
    section = shown.locator("section", has=shown.locator("h2", has_text="pairs"))
    box = section.locator("details", has=shown.locator("summary", has_text="Misses")).first
    assert box.locator("figure").count() == len(NAMES) - 1  # one has lost its outcomes
    path = box.locator("figure").first.locator("svg > path.line").get_attribute("d")
    points = [tuple(map(float, point.split())) for point in path.strip("M").split("L")]
    assert points == sorted(points, key=lambda point: (point[0], point[1]))
    equal = [(x - 36) / (144 - 36) for x, _ in points]
    assert equal[0] == 0
    assert equal[-1] == 1
    assert "No learning rates were tried" in section.inner_text()


def test_the_page_is_readable_without_scripts(opened: Open) -> None:
    shown = opened(java_script_enabled=False)
    assert shown.locator(".board button").count() == 0
    assert "60.0★" in shown.locator(".board tbody").inner_text()
    box = shown.locator("section details", has_text="Where the numbers come from").first
    assert not box.locator("dl").first.is_visible()
    box.locator("summary").first.click()
    box.locator("details summary").first.click()
    assert "abc1234+" in box.locator("dl").first.inner_text()


def test_print_is_light_and_cuts_no_table(opened: Open) -> None:
    shown = opened(1040, 700, color_scheme="dark")
    shown.emulate_media(media="print", color_scheme="dark")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    box = shown.locator(".board")
    assert box.evaluate("box => getComputedStyle(box).overflow") == "visible"
    assert box.evaluate("box => box.scrollHeight - box.clientHeight") <= 2
    rows = shown.eval_on_selector_all(".board tr", "rows => rows.map(row => row.getBoundingClientRect().right)")
    assert len(rows) == 1 + len(NAMES)
    assert max(rows) <= 1040
    assert shown.eval_on_selector_all(".board th", "all => all.every(t => getComputedStyle(t).position === 'static')")
    assert not shown.locator("nav").is_visible()
    assert shown.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_the_page_requests_nothing_from_outside() -> None:
    html = unescape(document())
    policy = html.index("Content-Security-Policy")
    assert "default-src 'none'" in html[policy : policy + 120]
    assert policy < html.index("<style>")
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
