"""Tests of published scores: each has a source, is checked, and is named in a footnote."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from benchmark.errors import UserError
from benchmark.tables.published import (
    COLUMNS,
    HIGHER_IS_BETTER,
    Fact,
    Published,
    built_in_scores,
    facts,
    footnotes,
    published,
    scores_for_columns,
)
from benchmark.tasks import load_tasks
from downstreams import HEADS

ROW = {
    "system": "HuBERT", "variant": "Base", "task": "keyword spotting", "dataset": "Speech Commands V1-12",
    "metric": "accuracy", "value": "96.3", "protocol": "frozen upstream", "training": "frozen",
    "source": "Somebody, 2021", "evidence": "A", "shown_with": "mine", "same_protocol": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> list[Fact]:
    return facts(built_in_scores())


def written(folder: Path, *changes: dict[str, str]) -> Path:
    """Write a published.csv with one row for each change to ROW."""
    with open(folder / "published.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ROW | change for change in changes)
    return folder


def complaint(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        published(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "published.csv" in message
    return message


def of(facts_read: list[Fact], system: str) -> list[Fact]:
    return [fact for fact in facts_read if fact.system == system]


def score(system: str = "A", task: str = "one", **changes: object) -> Published:
    fields = {"value": 1.0, "metric": "accuracy", "protocol": "frozen", "source": "S", "evidence": "A"}
    return Published(**{"system": system, "task": task, "same_protocol": False, "dataset": "D", **fields, **changes})  # type: ignore[arg-type]


def test_every_shipped_row_has_a_source_that_a_reader_can_find(shipped: list[Fact]) -> None:
    assert len(shipped) > 800
    for fact in shipped:
        assert "arXiv:" in fact.source or "https://" in fact.source, fact


def test_nothing_unverified_is_shipped(shipped: list[Fact]) -> None:
    """Evidence in SEEDS is A for the authors' own scores and B for quoted ones; scores marked M are unverified."""
    with open(built_in_scores(), encoding="utf-8", newline="") as file:
        assert {row["evidence"] for row in csv.DictReader(file)} == {"A", "B"}
    unverified = {8.65, 8.28, 8.23, 8.01, 6.99}  # equal error rates that SEEDS marks M
    assert not unverified & {fact.value for fact in shipped if fact.dataset.startswith("VoxCeleb1-O")}
    assert not {41.38, 9.65, 20.06, 15.21} & {fact.value for fact in of(shipped, "FBANK")}


def test_no_fact_is_shipped_twice(shipped: list[Fact]) -> None:
    """A system has one score per task, data, metric and protocol, so no two rows can contradict each other."""
    keys = Counter((fact.name, fact.task, fact.dataset, fact.metric, fact.protocol) for fact in shipped)
    assert max(keys.values()) == 1


def test_relative_gains_and_averages_over_tasks_are_not_scores(shipped: list[Fact]) -> None:
    assert not {13.7, 12.7} & {fact.value for fact in of(shipped, "PMS-SSL")}
    assert not any("average" in fact.task or "relative" in fact.metric for fact in shipped)


def test_metrics_have_the_better_direction_that_our_heads_give_them() -> None:
    for head in HEADS.values():
        assert head.metrics.items() <= HIGHER_IS_BETTER.items()


@pytest.mark.parametrize(
    ("variant", "paper", "leaderboard"),
    [
        ("Base", {"keyword spotting": 96.79, "diarization": 4.83}, {"keyword spotting": 96.79, "diarization": 4.55}),
        ("Base+", {"keyword spotting": 96.69, "diarization": 4.07}, {"keyword spotting": 97.37, "diarization": 3.50}),
        ("Large", {"keyword spotting": 97.40, "diarization": 3.47}, {"keyword spotting": 97.86, "diarization": 3.24}),
    ],
)
def test_the_two_published_versions_of_wavlm_are_rows_of_their_own(
    shipped: list[Fact], variant: str, paper: dict[str, float], leaderboard: dict[str, float]
) -> None:
    versions = {"(paper)": paper, "(leaderboard of 2022)": leaderboard}
    for version, expected in versions.items():
        rows = [fact for fact in of(shipped, "WavLM") if fact.variant == f"{variant} {version}"]
        assert len({fact.source for fact in rows}) == 1
        assert len(rows) == 11
        assert {fact.task: fact.value for fact in rows if fact.task in expected} == expected


def test_no_wavlm_score_is_without_its_version(shipped: list[Fact]) -> None:
    for fact in of(shipped, "WavLM"):
        assert fact.variant.endswith(("(paper)", "(leaderboard of 2022)", "(fine-tuned)"))
        assert ("SUPERB" in fact.protocol) == (not fact.variant.endswith("(fine-tuned)"))


def test_verification_in_superb_is_on_the_original_list(shipped: list[Fact]) -> None:
    lists = {fact.dataset for fact in shipped if "SUPERB (" in fact.protocol and fact.metric == "eer"}
    assert lists == {"VoxCeleb1-O original list"}


def test_no_column_mixes_lists_of_trials(shipped: list[Fact]) -> None:
    columns = defaultdict(set)
    for fact in shipped:
        for task in fact.shown_with:
            columns[task].add(fact.dataset)
    verification = {task: names for task, names in columns.items() if any("VoxCeleb1-O" in name for name in names)}
    assert len(verification) >= 2
    assert all(len(names) == 1 for names in verification.values())


def test_fine_tuned_systems_stand_only_beside_tasks_that_tune_the_encoder(shipped: list[Fact]) -> None:
    tasks = load_tasks().tasks
    shown = [(fact, tasks[task]) for fact in shipped for task in fact.shown_with]
    assert any(task.features == "finetune" for _, task in shown)
    for fact, task in shown:
        assert (fact.training == "fine-tuned") == (task.features == "finetune"), fact


def test_the_fine_tuned_scores_of_ssast_are_in_no_frozen_column(shipped: list[Fact]) -> None:
    rows = of(shipped, "SSAST")
    assert {64.3, 96.0, 59.6} <= {fact.value for fact in rows}
    assert {fact.training for fact in rows} == {"fine-tuned"}
    assert not any(fact.shown_with for fact in rows)


def test_the_two_papers_on_dino_are_distinguished(shipped: list[Fact]) -> None:
    rows = of(shipped, "DINO (Cho et al.)")
    assert {fact.value for fact in rows} == {4.38, 1.89, 60.87, 79.21, 56.98}
    assert all("Interspeech, arXiv:2208.05413" in fact.source for fact in rows)
    others = [fact for fact in shipped if fact not in rows]
    assert not any("2208.05413" in fact.source or "2208.05445" in fact.source for fact in others)


def test_pms_ssl_is_shown_with_the_caution_about_its_decoding_beside_tuned_encoders_alone(shipped: list[Fact]) -> None:
    rows = of(shipped, "PMS-SSL")
    assert {fact.value: fact.shown_with for fact in rows} == {8.27: ("tiny_ctc_third",), 7.19: ("tiny_ctc",)}
    assert all("decoding not stated" in fact.protocol for fact in rows)


def test_no_task_of_ours_claims_a_published_protocol(shipped: list[Fact]) -> None:
    """The shipped tasks use synthetic data, or other data than the published protocols."""
    assert not any(fact.same_protocol for fact in shipped)


def test_the_shown_scores_are_a_readable_set_of_tasks_of_ours(shipped: list[Fact]) -> None:
    tasks = load_tasks().tasks
    assert {task for fact in shipped for task in fact.shown_with} <= set(tasks)
    assert 10 <= len({fact.name for fact in shipped if fact.shown_with}) <= 20


def test_every_shown_score_has_the_metric_of_its_column(shipped: list[Fact]) -> None:
    rows = [score for score in published(Path("nowhere")) if score.task.startswith("tiny")]
    tasks = load_tasks().tasks
    judged = {row.task: tasks[row.task].metric or next(iter(HEADS[tasks[row.task].head].metrics)) for row in rows}
    assert len(scores_for_columns(rows, judged)) == len(rows)


def test_a_file_in_the_results_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    assert published(tmp_path) == published(built_in_scores().parent)
    written(tmp_path, {"shown_with": "mine other", "same_protocol": "other"}, {"variant": "Large", "shown_with": ""})
    shared = ("accuracy", "frozen upstream", "Somebody, 2021", "A")
    assert published(tmp_path) == [
        Published("HuBERT Base", "mine", 96.3, *shared, False, "Speech Commands V1-12"),
        Published("HuBERT Base", "other", 96.3, *shared, True, "Speech Commands V1-12"),
    ]


def test_columns_that_may_be_empty_may_be_missing_and_a_spreadsheet_may_mark_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text(
        "\ufeffsystem,task,dataset,metric,value,protocol,training,source,evidence,shown_with\r\n"
        "X,speech recognition,mine,wer,112,as ours,frozen,me,C,mine\r\n",
        encoding="utf-8",
        newline="",
    )
    assert published(tmp_path) == [Published("X", "mine", 112.0, "wer", "as ours", "me", "C", False, "mine")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"value": "96,3"}, "line 3: value: '96,3' is not a number"),
        ({"value": "nan"}, "line 3: value: nan cannot be accuracy"),
        ({"value": "963"}, "line 3: value: 963 cannot be accuracy, which is a percentage here"),
        ({"value": "-1"}, "line 3: value: -1 cannot be accuracy"),
        ({"metric": "min_dcf", "value": "42.3"}, "line 3: value: 42.3 cannot be min_dcf, which is a fraction here"),
        ({"metric": "WER"}, "line 3: metric: 'WER' is none of accuracy, "),
        ({"evidence": "M"}, "line 3: evidence: 'M' is none of A, B, C"),
        ({"training": "linear"}, "line 3: training: 'linear' is none of frozen, fine-tuned, other"),
        ({"source": " "}, "line 3: source: is empty"),
        ({"protocol": ""}, "line 3: protocol: is empty"),
        ({"value": ""}, "line 3: value: is empty"),
        ({"same_protocol": "other"}, "line 3: same_protocol: 'other' is not in shown_with"),
        ({"variant": "Base"}, "line 3: system: repeats line 2"),
        (
            {"variant": "Base", "dataset": "another"},
            "line 3: shown_with: HuBERT Base has a score beside mine in line 2",
        ),
        (
            {"variant": "Base", "dataset": "another", "metric": "micro_f1"},
            "line 3: shown_with: HuBERT Base has a score",
        ),
        ({"training": "fine-tuned"}, "line 3: shown_with: 'fine-tuned' beside mine, where line 2 has 'frozen'"),
    ],
)
def test_an_invalid_row_is_named_with_its_line_and_column(
    tmp_path: Path, change: dict[str, str], expected: str
) -> None:
    assert expected in complaint(written(tmp_path, {}, {"variant": "Large"} | change))


@pytest.mark.parametrize("other", ["VoxCeleb1-O original list", "VoxCeleb1-O", "VoxCeleb1-O (original)", "VoxCeleb1-E"])
def test_two_lists_of_trials_beside_one_task_are_refused(tmp_path: Path, other: str) -> None:
    eer = {"metric": "eer", "value": "3"}
    first, second = {"dataset": "VoxCeleb1-O cleaned list"} | eer, {"variant": "Large", "dataset": other} | eer
    assert f"{other!r} beside mine, where line 2 has 'VoxCeleb1-O cl" in complaint(written(tmp_path, first, second))
    written(tmp_path, first, second | {"shown_with": "another"})
    assert [score.task for score in published(tmp_path)] == ["mine", "another"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "column 'system' is missing"),
        ("system,variant,sauce\n", "no column 'sauce'; did you mean 'source'?"),
        (",".join(COLUMNS) + "\n" + ",".join([*ROW.values(), "more"]) + "\n", "line 2: more cells than columns"),
        (",".join(COLUMNS) + '\n"X" Base,\n', "is not CSV"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "published.csv").write_text(text, encoding="utf-8")
    assert expected in complaint(tmp_path)


def test_a_file_in_another_encoding_or_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_bytes("system,Säule\n".encode("latin-1"))
    assert "not CSV in UTF-8" in complaint(tmp_path)
    (tmp_path / "published.csv").unlink()
    (tmp_path / "published.csv").mkdir()
    assert "cannot read" in complaint(tmp_path)


def test_only_scores_of_a_columns_metric_stand_in_it() -> None:
    rows = [score(), score("B", metric="map"), score("C", "two", metric="eer"), score("D", "three")]
    assert scores_for_columns(rows, {"one": "accuracy", "two": "min_dcf"}) == rows[:1]


def test_accuracy_may_stand_in_a_column_of_micro_f1_and_the_note_says_so() -> None:
    shown = scores_for_columns([score(), score("B", metric="micro_f1")], {"one": "micro_f1"})
    assert [row.system for row in shown] == ["A", "B"]
    assert [row.value for row in shown] == [1.0, 1.0]
    notes, numbers = footnotes(shown)
    assert "as accuracy, which equals micro-F1 where each clip has one label" in notes[numbers["A", "one"] - 1]
    assert scores_for_columns([score(metric="macro_f1")], {"one": "micro_f1"}) == []


def test_notes_are_numbered_as_the_rows_come_and_shared_by_what_has_the_same_provenance() -> None:
    rows = [score("A", "one", source="Z"), score("A", "two", source="Y"), score("B", "one", source="Z")]
    rows += [score("B", "two", source="Z", protocol="tuned"), score("C", "one", source="Z", evidence="B")]
    notes, numbers = footnotes(rows)
    assert numbers == {("A", "one"): 1, ("A", "two"): 2, ("B", "one"): 1, ("B", "two"): 3, ("C", "one"): 4}
    assert footnotes(rows) == (notes, numbers)
    assert (
        notes[1]
        == "frozen; on D (two); Y [A: from the authors' own paper, code or figure, or the official leaderboard]"
    )
    assert notes[3].endswith("[B: as quoted or measured by somebody else]")
    assert notes[0].count("D (one)") == 1


def test_a_note_names_the_tasks_whose_protocol_is_the_same() -> None:
    (note,), _ = footnotes([score(same_protocol=True), score("B", "two")])
    assert "the same protocol as ours in one;" in note


def test_without_published_scores_there_are_no_notes() -> None:
    assert footnotes([]) == ([], {})
