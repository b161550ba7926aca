"""Tasks are read key by key, and what is wrong with them is told in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import UserError
from benchmark.heads import head_card
from benchmark.tasks import Task, built_in_tasks_path, load_tasks
from benchmark.values import Setup
from downstreams import HEADS

MINIMAL = "{corpus: tiny, target: keyword, head: classification"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_tasks(written(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.yaml" in message
    return message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("epoch: 3}", "task 'one': no key 'epoch'; did you mean 'epochs'?"),
        ("Metric: wer}", "no key 'Metric'; did you mean 'metric'?"),
        ("name: two}", "no key 'name'"),
        ("epochs: many}", "task 'one': epochs:"),
        ("epochs: 0}", "epochs:"),
        ("batch: 2.5}", "batch:"),
        ("lr: 1e-3}", "lr:"),
        ("lr: []}", "at least one learning rate"),
        ("lr: [0.1, -1]}", "each above 0"),
        ("lr: [.nan]}", "each above 0"),
        ("lr: [.inf]}", "each above 0"),
        ("seeds: []}", "at least one seed"),
        ("optimizer: sgd}", "optimizer:"),
        ("features: cached}", "features:"),
        ("clip: 0}", "clip:"),
        ("patience: 0}", "patience:"),
        ("weight_decay: -1}", "weight_decay:"),
        ("head_args: [1]}", "head_args:"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_task(tmp_path: Path, fields: str, expected: str) -> None:
    assert expected in complaint(tmp_path, f"tasks:\n  one: {MINIMAL}, {fields}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no 'tasks:' section"),
        ("- tasks", "has no 'tasks:' section"),
        ("just words", "has no 'tasks:' section"),
        ("tasks: {one: {", "not valid YAML in line 1"),
        ("tasks:\n  a: 1\n b: 2\n", "not valid YAML in line 3"),
        ("tasks: [one]", "'tasks' must map names to values"),
        ("tasks: {one: 1}", "task 'one' must map keys to values"),
        ("task: {}", "no section 'task'; did you mean 'tasks'?"),
        ("tasks: {../up: " + MINIMAL + "}}", "may hold only letters"),
        ("tasks: {one: {corpus: tiny}}", "task 'one': target: field required"),
        ("tasks: {one: " + MINIMAL + "}}\nsuites: {s: [oen]}", "suite 's': no task 'oen'; did you mean 'one'?"),
        ("tasks: {one: " + MINIMAL + "}}\nsuites: {s: one}", "suite 's' must list tasks"),
        ("tasks: {one: " + MINIMAL + "}}\nsuites: {s: }", "suite 's' must list tasks"),
        ("tasks: {one: !!python/object/apply:os.system [ls]}", "not valid YAML"),
    ],
)
def test_a_file_of_the_wrong_form_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaint(tmp_path, text)


def test_a_protocol_that_is_absent_or_no_text_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the protocol .*nowhere.yaml: No such file"):
        load_tasks(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_tasks(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00tasks")
    with pytest.raises(UserError, match="not valid YAML"):
        load_tasks(tmp_path / "mine.yaml")


def test_numbers_may_be_written_with_an_exponent_and_no_point(tmp_path: Path) -> None:
    fields = "lr: [1e-4, 1E-2, 1.0e-3, 1], weight_decay: 1e-5, head_args: {dropout: 2e-1, name: e1, version: 1.2.3e4}}"
    task = load_tasks(written(tmp_path, f"tasks:\n  one: {MINIMAL}, {fields}\n")).tasks["one"]
    assert task.lr == (1e-4, 1e-3, 1e-2, 1.0)
    assert task.weight_decay == 1e-5
    assert task.head_args == {"dropout": 0.2, "name": "e1", "version": "1.2.3e4"}


def test_the_order_and_repetition_of_a_grid_make_no_difference() -> None:
    common: dict[str, Any] = {"name": "a", "corpus": "c", "target": "t", "head": "classification"}
    assert Task(**common, lr=(1e-2, 1e-3, 1e-2), seeds=(2, 0, 2)) == Task(**common, lr=(1e-3, 1e-2), seeds=(0, 2))


def test_tasks_are_chosen_once_in_the_order_given(tmp_path: Path) -> None:
    tasks = "".join(f"  {name}: {MINIMAL}}}\n" for name in "abc")
    protocol = load_tasks(written(tmp_path, f"tasks:\n{tasks}suites: {{s: [c, a]}}\n"))
    assert [task.name for task in protocol.choose(["b", "a"], ["s"])] == ["c", "a", "b"]
    with pytest.raises(UserError, match=r"no task 'd'"):
        protocol.choose(["d"], [])
    with pytest.raises(UserError, match=r"no suite 'ss'; did you mean 's'\?"):
        protocol.choose([], ["ss"])


def test_the_built_in_suites_hold_tasks_of_all_six_kinds() -> None:
    protocol = load_tasks()
    assert {"default", "fsdd"} <= set(protocol.suites)
    for suite, members in protocol.suites.items():
        assert members, suite
        assert [task.name for task in protocol.choose([], [suite])] == list(members)
    heads = {protocol.tasks[name].head for name in protocol.suites["default"]}
    assert heads >= {"classification", "tagging", "transcription", "cosine"}


TARGETS = {"tagging": ["dog|cat", "cat"], "transcription": ["one two", "two"]}


@pytest.mark.parametrize("name", sorted(load_tasks().tasks))
def test_every_built_in_task_builds_its_head_and_its_metric_exists(name: str, tmp_path: Path) -> None:
    task = load_tasks().tasks[name]
    head = HEADS[task.head](2, 5, TARGETS.get(task.head, ["a", "b"]), **task.head_args)
    assert task.metric is None or task.metric in head.metrics
    card = head_card(task.head, Setup(tmp_path, tmp_path))
    assert set(task.head_args) <= set(card.options)
    assert (card.view, card.judged_on, card.closed) == (head.view, head.judged_on, head.closed)


def test_the_built_in_protocol_is_the_file_of_this_checkout() -> None:
    assert built_in_tasks_path().name == "tasks.yaml"
    assert load_tasks() is load_tasks()
