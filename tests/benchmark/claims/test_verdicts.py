"""How records become verdicts on claims, and how these are told."""

from __future__ import annotations

import csv
import math
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pytest

from benchmark.claims import checkpoint_records, execution, verdicts
from benchmark.claims.contrasts import make_contrast
from benchmark.claims.definitions import FLOOR, RECOGNITION, TASKS, VERIFICATION, Claim
from benchmark.claims.execution import ClaimPlan, variant_label
from benchmark.corpora.tiny import tiny_trials
from benchmark.errors import UserError
from benchmark.plan import fixed_settings
from benchmark.records import Record, Results
from benchmark.tasks import Task
from benchmark.values import SplitTrial
from downstreams.metrics import eer
from tests.benchmark.claimed import clips_of, reference, single, systems, write_variant
from tests.benchmark.made import record
from tests.conftest import Bench


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals that are a little less exact, for a fraction of the time."""
    monkeypatch.setattr(verdicts, "make_contrast", partial(make_contrast, draws=400))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of claims about ATST: well above its random twin, and not to be told from SSAST."""
    folder = tmp_path_factory.mktemp("made")
    results = Results(folder / "claims")
    for task in execution.claim_tasks(TASKS)["frozen"].values():
        ids = clips_of(task)
        for variant, share in (("atst", 0.6), ("atst-random", 0.4), ("ssast", 0.6)):
            for seed in range(3):
                write_variant(results, task, reference(variant, seed), share, ids)
        write_variant(results, task, "fbank", 0.5, ids)
    return folder


def test_tables_are_made_from_records_alone(made: Path, bench: Bench, tmp_path: Path) -> None:
    answer = bench("claims", "atst", "--report", "--results", made, "--home", tmp_path / "home")
    assert answer.code == 0, answer.err
    assert not (tmp_path / "home").exists()
    assert "fbank" in answer.out
    with open(made / "claims" / "claims.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    average = {row["second_system"]: row for row in rows if row["task"] == verdicts.AVERAGE}
    assert average["atst-random"]["verdict"] == "shown"
    assert average["ssast"]["verdict"] == "not resolved"
    assert float(average["atst-random"]["value"]) == pytest.approx(20, abs=3)
    assert 1 < float(average["atst-random"]["high"]) - float(average["atst-random"]["low"]) < 10
    assert {row["task"] for row in rows} == {*TASKS, verdicts.AVERAGE}
    text = (made / "claims" / "claims.md").read_text(encoding="utf-8")
    assert "atst > atst-random, frozen: +" in text
    assert "shown; the paper: no such figure is known here" in text
    assert "| fbank | frozen | " in text
    assert "steps of pre-training: ssast 5, atst 5, atst-random 5" in text
    assert "| atst-random | the weights that atst starts from, untrained |" in text
    assert "ssast-random" not in text  # it was not asked about
    assert all(line in text for line in ("atst > ssast", "72.0 % against 40.1 %"))


def test_only_the_learning_rate_chosen_on_validation_counts(made: Path) -> None:
    results = Results(made / "claims")
    chosen = checkpoint_records.choose_by_validation(checkpoint_records.newest_records(results.read_all()[0]))
    for (label, _), records in chosen.items():
        assert [one.seed for one in records] == [0, 1, 2]  # probe seeds
        for one in records:
            right = [row["correct"] == "True" for row in results.outcomes(one)]
            assert np.mean(right) == pytest.approx({"fb": 0.5, "at": 0.6, "ss": 0.6}[label[:2]], abs=0.3)


def test_missing_records_are_named(made: Path, bench: Bench, tmp_path: Path) -> None:
    answer = bench("claims", "ssast", "--report", "--results", made, "--home", tmp_path / "home")
    assert answer.code == 2
    assert "there are no records of ssast-random-0 on tiny_keyword yet, or not all" in answer.complaint
    assert list(answer.complaint.strip().splitlines()) == [answer.complaint.strip()]


def test_results_that_hold_the_tables_alone_are_told_in_one_sentence(made: Path, bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "claims.md").write_text("as it was")
    answer = bench("claims", "--report", "--results", tmp_path, "--home", tmp_path / "home")
    assert answer.code == 2
    assert len(answer.complaint.strip().splitlines()) == 1
    assert "run the same command without --report" in answer.complaint
    assert (tmp_path / "claims" / "claims.md").read_text() == "as it was"


class Halves(NamedTuple):
    """A claim on one task, with records of both its variants."""

    plan: ClaimPlan
    task: Task
    results: Results

    def write(self, variant: str, seed: int, steps: int = 5, share: float = 0.5, **fields: object) -> None:
        write_variant(self.results, self.task, reference(variant, seed, steps), share, clips_of(self.task), **fields)

    def reach(self, steps: int | None = None) -> verdicts.Findings:
        return verdicts.judge_claims(self.plan, self.results.read_all()[0], self.results, steps)


@pytest.fixture
def halves(tmp_path: Path) -> Halves:
    tasks = execution.claim_tasks(["tiny_keyword"])
    plan = ClaimPlan((Claim("atst", "atst", "atst-random", "frozen", "", tasks=("tiny_keyword",)),), tasks, 2)
    made = Halves(plan, tasks["frozen"]["tiny_keyword"], Results(tmp_path))
    for seed in (0, 1):
        made.write("atst", seed, 5, 0.6)
        made.write("atst-random", seed, 0, 0.3)
    return made


def test_a_grid_that_was_not_finished_is_missing(halves: Halves) -> None:
    assert halves.reach().verdicts[0].word == "shown"
    sorted((halves.results.folder / "runs").glob("*/*/*.json"))[0].unlink()
    with pytest.raises(UserError, match=r"no records of atst(-random)?-[01] on tiny_keyword yet, or not all"):
        halves.reach()


def test_records_of_other_settings_of_a_task_do_not_count(halves: Halves) -> None:
    before = halves.reach().verdicts
    other = halves._replace(task=halves.task.model_copy(update={"epochs": 3}))
    other.write("atst", 0, 5, 0.0, created="2027-01-01")
    assert halves.reach().verdicts == before


def test_of_two_runs_of_a_checkpoint_the_last_counts_alone(halves: Halves) -> None:
    halves.write("atst", 0, 5, 1.0, created="2027-01-01", corpus="d" * 64)
    halves.write("atst", 1, 5, 1.0, created="2027-01-01", corpus="d" * 64)
    assert halves.reach().verdicts[0].rows[0].first == 100.0


def test_seeds_of_different_steps_are_not_averaged(halves: Halves) -> None:
    halves.write("atst", 0, 9, 1.0, created="2027-01-01")
    with pytest.raises(UserError, match="seeds of atst were pre-trained for 5 and 9 steps; say with --steps which"):
        halves.reach()
    assert halves.reach(5).verdicts[0].rows[0].first < 80.0
    with pytest.raises(UserError, match="no records of atst-1 on tiny_keyword yet"):
        halves.reach(9)


def test_what_two_claims_contrast_has_one_interval(made: Path, tmp_path: Path) -> None:
    both = [Claim("", "atst", "atst-random", "frozen", "", True, tasks) for tasks in (("tiny_language",), TASKS)]
    plan = ClaimPlan(tuple(both), execution.claim_tasks(TASKS), 3)
    found = verdicts.judge_claims(plan, Results(made / "claims").read_all()[0], Results(made / "claims"))
    alone, every = found.verdicts
    assert alone.main == alone.rows[0] == every.rows[TASKS.index("tiny_language")]
    assert (every.main.task, every.main.interval) == (verdicts.AVERAGE, every.rows[len(TASKS)].interval)
    assert alone.rows[1].interval != every.rows[-1].interval  # relative gains on one task and on all
    assert any("the 8 intervals are not adjusted" in note for note in found.notes)  # and not of nine


def test_one_seed_is_said_to_leave_out_the_others(halves: Halves) -> None:
    alone = halves._replace(plan=halves.plan._replace(seeds=1)).reach()
    assert any("of one seed, they leave out how much another pre-training would differ" in note for note in alone.notes)
    assert not any("of one seed" in note for note in halves.reach().notes)


def test_of_two_checkpoints_of_an_arm_the_one_run_last_counts() -> None:
    old, new = (record(reference("atst", 0, steps), created=f"2026-01-0{day}") for steps, day in ((9, 1), (5, 2)))
    other = record(reference("atst", 1, 9), created="2026-01-01")
    kept: list[Record] = checkpoint_records.newest_records([new, old, other])
    assert sorted(variant_label(each.upstream["name"]) for each in kept) == [("atst-0", 5), ("atst-1", 9)]


def test_clips_of_one_speaker_are_drawn_together() -> None:
    ids = [f"c{number:02d}" for number in range(60)]
    intervals = []
    for cluster in (lambda number: f"clip {number}", lambda number: f"speaker {number // 10}"):
        rows = {
            name: [
                [{"id": id, "correct": str(right and number < 30), "cluster": cluster(number)}
                 for number, id in enumerate(ids)]
            ]
            for name, right in (("a-0", True), ("b-0", False))
        }  # fmt: skip
        verdict = verdicts.judge_claim(*single("tiny_keyword"), *systems(rows, "tiny_keyword"))
        intervals.append(verdict.rows[0].interval)
    apart, together = intervals
    assert apart.value == together.value == 50.0
    assert together.clips > 2 * apart.clips


def test_a_variant_that_was_not_run_is_an_error() -> None:
    with pytest.raises(UserError, match="no records of a-0 on tiny_keyword"):
        verdicts.judge_claim(*single("tiny_keyword"), *systems({}, "tiny_keyword"))


def test_predictions_of_different_clips_are_not_contrasted() -> None:
    rows = {f"{variant}-0": [[{"id": id, "correct": "True"}]] for variant, id in (("a", "c1"), ("b", "c2"))}
    with pytest.raises(UserError, match="a-0 and b-0 on tiny_keyword were tested on different clips: c1"):
        verdicts.judge_claim(*single("tiny_keyword"), *systems(rows, "tiny_keyword"))


# Error rates: lower is better.


@cache
def fewer_trials() -> list[SplitTrial]:
    return [each for each in tiny_trials() if each.split == "test"][::6]


def trial_rows(rng: np.random.Generator, skill: float) -> list[dict[str, object]]:
    return [
        {"enroll": each.enroll, "test": each.test, "target": each.target, "score": rng.normal(skill * each.target, 1)}
        for each in fewer_trials()
    ]


def text_rows(rng: np.random.Generator, rate: float, ids: list[str]) -> list[dict[str, object]]:
    rows = []
    for id in ids:
        words, missed = 4, int(rng.binomial(4, rate))
        counts = {
            "substitutions": missed // 2,
            "deletions": missed - missed // 2,
            "insertions": int(rng.random() < 0.1),
        }
        edits = {f"word_{kind}": count for kind, count in counts.items()}
        rows.append({"id": id, "reference": "a b c d", "hypothesis": "a", **edits, "word_hits": words - missed})
    return rows


def word_error_rate(rows: list[dict[str, object]]) -> float:
    errors = sum(row[f"word_{kind}"] for row in rows for kind in ("substitutions", "deletions", "insertions"))  # type: ignore[misc]
    words = sum(row[f"word_{kind}"] for row in rows for kind in ("substitutions", "deletions", "hits"))  # type: ignore[misc]
    return 100 * errors / words


@pytest.fixture(scope="module")
def erring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of claims about DINO and PMS-SSL with two seeds, and the floor."""
    folder = tmp_path_factory.mktemp("erring")
    results, tasks, rng = Results(folder / "claims"), execution.claim_tasks(), np.random.default_rng(0)
    skills = {"dino": 2.0, "dino-random": 1.0, "dino-pseudo": 2.1, FLOOR: 1.5}
    for variant, seed in product(skills, range(2)):
        name = FLOOR if variant == FLOOR else reference(variant, seed)
        for task in (tasks["frozen"][VERIFICATION], tasks["frozen"]["tiny_cosine"]):
            if variant != FLOOR or seed == 0:
                rows = trial_rows(rng, skills[variant])
                rate = 100 * eer([row["score"] for row in rows], [row["target"] for row in rows]).rate
                one = record(name, task.name, None, 0, 9.0, rate, "eer", False, settings=fixed_settings(task))
                results.write(one.model_copy(update={"id": f"{variant}-{seed}-{task.name}"}), rows)
        write_variant(results, tasks["frozen"]["tiny_emotion"], name, 0.5, clips_of(tasks["frozen"]["tiny_emotion"]))
    for variant, rate in (("pms", 0.2), ("pms-plain", 0.3), ("pms-random", 0.21)):
        for seed, name in product(range(2), RECOGNITION):
            task = tasks["fine-tuned"][name]
            for lr in task.lr:
                rows = text_rows(rng, rate if lr == task.lr[0] else 0.0, clips_of(task))
                valid, test = 30.0 if lr == task.lr[0] else 40.0, word_error_rate(rows)
                one = record(
                    reference(variant, seed), name, lr, 0, valid, test, "wer", False, settings=fixed_settings(task)
                )
                results.write(one.model_copy(update={"id": f"{variant}-{seed}-{name}-{lr:g}"}), rows)
    return folder


def test_fewer_errors_are_better(erring: Path, bench: Bench, tmp_path: Path) -> None:
    answer = bench("claims", "dino", "pms", "--seeds", 2, "--report", "--results", erring, "--home", tmp_path / "home")
    assert answer.code == 0, answer.err
    with open(erring / "claims" / "claims.csv", encoding="utf-8", newline="") as file:
        rows = {(row["first_system"], row["second_system"], row["task"]): row for row in csv.DictReader(file)}
    better = rows["dino", "dino-random", VERIFICATION]
    assert (better["verdict"], better["metric"]) == ("shown", "eer")
    assert float(better["value"]) == pytest.approx(float(better["second"]) - float(better["first"]), abs=1e-3)
    assert float(better["first"]) == pytest.approx(100 * NormalDist().cdf(-1.0), abs=2)
    assert rows["dino-pseudo", "dino", VERIFICATION]["verdict"] == "not resolved"
    fewer = rows["pms", "pms-plain", "average"]
    assert fewer["verdict"] == "shown"
    assert float(fewer["first"]) == pytest.approx(20 + 2.5, abs=2)  # a tenth of the clips has one of four words more
    relative = rows["pms", "pms-plain", "average relative reduction"]
    assert float(relative["value"]) == pytest.approx(100 * (1 - 22.5 / 32.5), abs=5)
    assert rows["pms", "pms-random", "average"]["verdict"] == "not resolved"


def test_the_floor_is_the_same_for_every_seed(erring: Path, bench: Bench, tmp_path: Path) -> None:
    plan = execution.plan_claims(["dino"], 2, execution.claim_tasks())
    found = verdicts.judge_claims(plan, Results(erring / "claims").read_all()[0], Results(erring / "claims"))
    against = next(each for each in found.verdicts if each.claim.second == FLOOR)
    assert against.word == "shown"
    shown = next(row for row in found.scores if row[0] == FLOOR)
    assert shown[1 + found.tasks.index(f"{VERIFICATION} ↓") + 1] == f"{against.main.second:.1f}"  # no ± of its own
    own = next(row for row in found.scores if row[0] == "dino")
    assert "±" in own[2]
    spread = np.std(_by_seed(erring), ddof=1) / math.sqrt(2)
    assert against.main.interval.seeds <= spread  # part of it is explained by the trials


def _by_seed(folder: Path) -> list[float]:
    """EER of dino in percent by seed, by the metric itself."""
    results = Results(folder / "claims")
    own = [
        each for each in results.read_all()[0]
        if each.task["name"] == VERIFICATION and variant_label(each.upstream["name"])[0] in ("dino-0", "dino-1")
    ]  # fmt: skip
    rows = [results.outcomes(each) for each in own]
    return [100 * eer([float(r["score"]) for r in some], [r["target"] == "True" for r in some]).rate for some in rows]


def test_sentences_and_tables_name_the_metric_and_what_is_lower(erring: Path, bench: Bench, tmp_path: Path) -> None:
    answer = bench("claims", "dino", "pms", "--seeds", 2, "--report", "--results", erring, "--home", tmp_path / "home")
    assert answer.code == 0, answer.err
    text = (erring / "claims" / "claims.md").read_text(encoding="utf-8")
    start = "- dino > fbank, frozen, tiny_verification: +"
    line = next(line for line in text.splitlines() if line.startswith(start))
    assert " points of EER [" in line
    assert ", relative reduction +" in line
    assert "| relative reduction | " in text  # of which more is better, so without an arrow
    assert ": shown; the paper: 4.38 % EER" in line
    assert "- pms > pms-plain, fine-tuned, tiny_ctc and tiny_ctc_third: +" in text
    assert " points of WER [" in text
    columns = "tiny_verification ↓ | tiny_cosine ↓ | tiny_emotion | tiny_ctc ↓ | tiny_ctc_third ↓ |"
    assert f"| system | regime | {columns}" in text
    assert "| pms | fine-tuned | – | – | – | 2" in text
    assert "| dino > dino-random | frozen | tiny_cosine ↓ | " in text
    more, fewer = (execution.claim_tasks(RECOGNITION)["fine-tuned"][name] for name in RECOGNITION)
    rates = ", ".join(f"{rate:g}" for rate in more.lr)
    assert f"{more.epochs} epochs, learning rates {rates} (tiny_ctc); {fewer.epochs} epochs, learning rates " in text
