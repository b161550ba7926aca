"""`bench claims`: what is compared, that it runs from pre-training to verdict, and how records become verdicts."""

from __future__ import annotations

import csv
import math
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest

from benchmark import claims, verdicts
from benchmark.claims import ARMS, CLAIMS, Claim, Plan, Pretraining, label_of
from benchmark.corpora.tiny import clips
from benchmark.engine import in_process, pool
from benchmark.errors import UserError
from benchmark.plan import Setup, fixed
from benchmark.records import Record, Results
from benchmark.run import Outcome
from benchmark.tasks import Task
from tests.benchmark.made import record
from tests.conftest import Bench

CODE = "0123abcd"


def reference(arm: str, seed: int, steps: int = 5) -> str:
    return f"{ARMS[arm].upstream}@somewhere/home-2/claims/{arm}-{seed}-{steps}-{CODE}.safetensors"


# What is compared.


def test_every_claim_is_about_two_arms_that_exist() -> None:
    named = {name for claim in CLAIMS for name in (claim.first, claim.second)}
    assert named == set(ARMS)
    assert {(claim.first, claim.second, claim.regime) for claim in CLAIMS if claim.system == "ssast"} == {
        ("ssast", "ssast-random", "frozen"),
        ("ssast", "ssast-plain", "frozen"),
        ("ssast", "ssast-random", "fine-tuned"),
        ("ssast", "ssast-plain", "fine-tuned"),
        ("ssast", "ssast-discriminative", "frozen"),
        ("ssast", "ssast-generative", "frozen"),
    }


def test_a_random_arm_differs_from_its_trained_twin_in_training_alone() -> None:
    for name in ("ssast", "atst"):
        assert ARMS[f"{name}-random"].method == ARMS[name].method
        assert not ARMS[f"{name}-random"].trained


def test_the_plain_twin_starts_as_the_authors_do_and_the_other_one_as_ours() -> None:
    from upstreams.base import UpstreamError
    from upstreams.methods import method

    plain, nearby, usual = (
        method(name, "mini", 0).exported() for name in ("ssast?start=plain", "ssast?start=nearby", ARMS["ssast"].method)
    )
    assert all(tensor.equal(usual[name]) for name, tensor in nearby.items())
    drawn = {name for name in plain if name.endswith(("attn.qkv.weight", "attn.proj.weight", "v.pos_embed"))}
    assert len(drawn) == 9
    for name in drawn:
        assert float(plain[name].std()) == pytest.approx(0.02, rel=0.05)
        assert float(nearby[name].std()) > 0.03
    assert ARMS["ssast-plain"].method == "ssast?start=plain"
    assert not ARMS["ssast-plain"].trained
    with pytest.raises(UpstreamError, match="no start 'near' of ssast; write one of: plain, nearby"):
        method("ssast?start=near", "mini", 0)


def test_tuned_tasks_are_the_frozen_ones_with_another_regime() -> None:
    tasks = claims.tasks_of()
    same = {"corpus", "target", "head", "head_args", "metric", "batch", "disjoint", "folds", "optimizer"}
    for frozen, tuned in zip(tasks["frozen"], tasks["fine-tuned"], strict=True):
        assert frozen.model_dump(include=same) == tuned.model_dump(include=same)
        assert (frozen.features, tuned.features) == ("auto", "finetune")
        assert tuned.name != frozen.name
        assert len(tuned.lr) > 1


def test_no_speaker_of_the_tasks_is_in_the_pool() -> None:
    from benchmark.corpora.tiny import pool_clips

    heard = {clip.labels.get("speaker") for clip in pool_clips()} - {None}
    assert heard
    assert not heard & {clip.labels.get("speaker") for clip in clips()}


def test_a_system_without_claims_is_refused(bench: Bench, tmp_path: Path) -> None:
    answer = bench("claims", "sast", "--home", tmp_path / "home", "--results", tmp_path)
    assert answer.code == 2
    assert "no system with claims 'sast'; did you mean 'ssast'?" in answer.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arm", ARMS)
def test_arm_seed_and_steps_are_read_from_the_reference(arm: str) -> None:
    assert label_of(reference(arm, 2, 1500)) == (f"{arm}-2", 1500)


@pytest.mark.parametrize("name", ["fbank", "hf:folder@random", "ssast@mine.pth", "mine.py:f?x=@a-1"])
def test_other_upstreams_are_no_arms(name: str) -> None:
    assert label_of(name) == (name, 0)


def test_checkpoints_below_the_working_directory_are_named_by_a_path_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Pretraining(ARMS["ssast"], 0, 5, 10.0, tmp_path / "home" / "claims" / f"ssast-0-5-{CODE}.safetensors")
    monkeypatch.chdir(tmp_path)
    assert there.reference == f"ssast@home/claims/ssast-0-5-{CODE}.safetensors"
    monkeypatch.chdir("/")
    assert label_of(there.reference) == ("ssast-0", 5)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert there.reference == f"ssast@{there.path}"


# From pre-training to the verdict, on tones.


class Ran:
    """Claims about both systems, with two steps of one seed each, on one task."""

    def __init__(self, folder: Path, tones: Path, protocol: Path) -> None:
        self.setup = Setup(folder / "home", folder / "results", (("tones", str(tones)),))
        tasks = claims.tasks_of(["words"], protocol)
        quick = {
            regime: [task.model_copy(update={"epochs": 2, "lr": task.lr[:2]}) for task in some]
            for regime, some in tasks.items()
        }
        self.asked = claims.plan([], 1, quick)
        self.plan = self.with_checkpoints(2)
        self.outcome = self.again()
        self.findings = verdicts.reach(self.plan, self.outcome.records, self.setup)

    def with_checkpoints(self, steps: int) -> Plan:
        return claims.with_checkpoints(self.asked, self.setup, steps, in_process, corpus="tones")

    def again(self) -> Outcome:
        return claims.perform(self.plan, self.setup, in_process, str, corpus="tones")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tones: Path, protocol: Path) -> Ran:
    return Ran(tmp_path_factory.mktemp("claims"), tones, protocol)


def test_every_claim_gets_a_verdict(ran: Ran) -> None:
    assert not ran.outcome.failures
    assert [verdict.claim for verdict in ran.findings.verdicts] == list(CLAIMS)
    for verdict in ran.findings.verdicts:
        task = "words" if verdict.claim.regime == "frozen" else "words_tuned"
        assert [row.task for row in verdict.rows][:2] == [task, verdicts.AVERAGE]
        assert verdict.word in ("shown for one seed", "opposite for one seed", "not resolved")
        for row in verdict.rows:
            assert 0 <= row.first <= 100
            assert 0 <= row.second <= 100
            assert math.isnan(row.interval.seeds)  # of one


def test_accuracies_are_those_of_the_leaderboard(ran: Ran) -> None:
    for verdict in ran.findings.verdicts:
        for row, arm in ((verdict.rows[0], verdict.claim.first), (verdict.rows[0], verdict.claim.second)):
            own = [each for each in ran.outcome.records if label_of(each.upstream["name"])[0] == f"{arm}-0"]
            own = [each for each in own if each.task["name"] == row.task]
            best = max(
                sorted({each.lr for each in own if each.lr}),
                key=lambda lr, own=own: fmean(each.valid["accuracy"] for each in own if each.lr == lr),  # type: ignore[misc]
            )
            expected = fmean(each.test["accuracy"] or 0.0 for each in own if each.lr == best)
            assert expected == pytest.approx(row.first if arm == verdict.claim.first else row.second)


def test_random_arms_are_start_weights_and_trained_ones_are_not(ran: Ran) -> None:
    from benchmark.pretrained import facts_in

    by_arm = {each.arm.name: each for each in ran.plan.pretrainings}
    assert by_arm.keys() == ARMS.keys()
    steps = {name: facts_in(each.path)["identity"]["steps"] for name, each in by_arm.items()}  # type: ignore[index]
    assert steps == {name: 2 if arm.trained else 0 for name, arm in ARMS.items()}
    prints = {label_of(each.upstream["name"])[0]: each.upstream["fingerprint"] for each in ran.outcome.records}
    assert len(set(prints.values())) == len(prints)


def test_what_is_done_is_not_done_again(ran: Ran) -> None:
    before = {each.path: each.path.stat().st_mtime_ns for each in ran.plan.pretrainings}
    assert not ran.plan.todo
    assert ran.again().trained == 0
    assert before == {each.path: each.path.stat().st_mtime_ns for each in ran.plan.pretrainings}


def test_the_plan_is_told_first(ran: Ran) -> None:
    told = ran.plan.told(2)
    assert told.startswith("8 claims, 1 pre-training seed: 7 checkpoints of size mini, 0 of them to make in 0 steps;")
    assert "32 jobs frozen, 6 jobs fine-tuned" in told  # 8 upstreams x 2 rates x 2 seeds; 3 x 2 rates
    assert ran.plan.jobs("frozen") + ran.plan.jobs("fine-tuned") == len(ran.outcome.records)
    more = ran.with_checkpoints(3)
    assert [each.arm.name for each in more.todo] == ["atst", "ssast", "ssast-discriminative", "ssast-generative"]
    assert "4 of them to make in 12 steps" in more.told(2)


def test_other_steps_are_other_checkpoints(ran: Ran) -> None:
    other = {each.arm.name: each.path for each in ran.with_checkpoints(3).pretrainings}
    for each in ran.plan.pretrainings:
        assert (other[each.arm.name] == each.path) == (not each.arm.trained)


def test_with_two_workers_the_checkpoints_are_the_same(ran: Ran, tmp_path: Path) -> None:
    arms = {"ssast", "ssast-generative"}
    mine = [each for each in ran.plan.pretrainings if each.arm.name in arms]
    there = [each._replace(path=tmp_path / each.path.name) for each in mine]
    plan = ran.plan._replace(claims=(), pretrainings=tuple(there))
    claims.perform(plan, ran.setup, pool(2), str, corpus="tones")
    assert len(mine) == 2
    for each, other in zip(mine, there, strict=True):
        assert each.path.read_bytes() == other.path.read_bytes()


# From records to verdicts.


def outcomes(rng: np.random.Generator, share: float, ids: list[str]) -> list[dict[str, object]]:
    return [{"id": id, "reference": "a", "prediction": "b", "correct": bool(rng.random() < share)} for id in ids]


def write_arm(results: Results, task: Task, name: str, share: float, ids: list[str], **fields: object) -> None:
    """Records of a task's whole grid: learning rates that are worse on validation got everything right on test."""
    rng = np.random.default_rng(crc32(f"{task.name} {name}".encode()))
    for lr, seed in product(task.lr, task.seeds):
        valid, right = (60.0, share) if lr == task.lr[0] else (50.0, 1.0)
        one = record(name, task.name, lr=lr, seed=seed, valid=valid, test=0.0, settings=fixed(task), **fields)  # type: ignore[arg-type]
        code = crc32(repr(fields).encode())
        one = one.model_copy(update={"id": f"{name[-30:].replace('/', '-')}-{task.name}-{lr:g}-{seed}-{code}"})
        results.write(one, outcomes(rng, right, ids))


def clips_of(task: Task) -> list[str]:
    return [clip.id for clip in clips() if clip.split == "test" and task.target in clip.labels]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of claims about ATST: well above its random twin, and not to be told from SSAST."""
    folder = tmp_path_factory.mktemp("made")
    results = Results(folder / "claims")
    for task in claims.tasks_of()["frozen"]:
        ids = clips_of(task)
        for arm, share in (("atst", 0.6), ("atst-random", 0.4), ("ssast", 0.6)):
            for seed in range(3):
                write_arm(results, task, reference(arm, seed), share, ids)
        write_arm(results, task, "fbank", 0.5, ids)
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
    assert {row["task"] for row in rows} == {*claims.TASKS, verdicts.AVERAGE}
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
    found = verdicts.answers(verdicts.newest(results.read_all()[0]), results)
    for (label, _), shares in found.items():
        assert fmean(shares.values()) == pytest.approx({"fb": 0.5, "at": 0.6, "ss": 0.6}[label[:2]], abs=0.25)
    values = {round(value, 3) for shares in found.values() for value in shares.values()}
    assert values == {0.0, 0.333, 0.667, 1.0}  # three probe seeds


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
    """A claim on one task, with records of both its arms."""

    plan: Plan
    task: Task
    setup: Setup
    results: Results

    def write(self, arm: str, seed: int, steps: int = 5, share: float = 0.5, **fields: object) -> None:
        write_arm(self.results, self.task, reference(arm, seed, steps), share, clips_of(self.task), **fields)

    def reach(self, steps: int | None = None) -> verdicts.Findings:
        return verdicts.reach(self.plan, self.results.read_all()[0], self.setup, steps)


@pytest.fixture
def halves(tmp_path: Path) -> Halves:
    tasks = claims.tasks_of(["tiny_keyword"])
    plan = Plan((Claim("atst", "atst", "atst-random", "frozen", ""),), tasks, 2)
    made = Halves(plan, tasks["frozen"][0], Setup(tmp_path, tmp_path), Results(tmp_path))
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


def test_one_seed_is_said_to_leave_out_the_others(halves: Halves) -> None:
    alone = halves._replace(plan=halves.plan._replace(seeds=1)).reach()
    assert any("of one seed, they leave out how much another would differ" in note for note in alone.notes)
    assert not any("of one seed" in note for note in halves.reach().notes)


def test_of_two_checkpoints_of_an_arm_the_one_run_last_counts() -> None:
    old, new = (record(reference("atst", 0, steps), created=f"2026-01-0{day}") for steps, day in ((9, 1), (5, 2)))
    other = record(reference("atst", 1, 9), created="2026-01-01")
    kept: list[Record] = verdicts.newest([new, old, other])
    assert sorted(label_of(each.upstream["name"]) for each in kept) == [("atst-0", 5), ("atst-1", 9)]


def test_clips_of_one_speaker_are_drawn_together() -> None:
    claim, plan = (
        Claim("s", "a", "b", "frozen", ""),
        Plan((), {"frozen": claims.tasks_of(["tiny_keyword"])["frozen"]}, 1),
    )
    ids = [f"c{number}" for number in range(60)]
    right = {id: float(number < 30) for number, id in enumerate(ids)}
    found = {("a-0", "tiny_keyword"): right, ("b-0", "tiny_keyword"): dict.fromkeys(ids, 0.0)}
    apart = verdicts.judged(claim, plan, found, {}).rows[0].interval
    together = verdicts.judged(claim, plan, found, {id: str(int(id[1:]) // 10) for id in ids}).rows[0].interval
    assert apart.value == together.value == 50.0
    assert together.clips > 2 * apart.clips


def test_an_arm_that_was_not_run_is_an_error() -> None:
    plan = Plan((), {"frozen": claims.tasks_of(["tiny_keyword"])["frozen"]}, 1)
    with pytest.raises(UserError, match="no records of a-0 on tiny_keyword"):
        verdicts.judged(Claim("s", "a", "b", "frozen", ""), plan, {}, {})
