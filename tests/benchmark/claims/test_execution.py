"""`bench claims`: what is compared, and that it runs from pre-training to verdict."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from benchmark.claims import execution, verdicts
from benchmark.claims.contrasts import make_contrast
from benchmark.claims.definitions import CLAIMS, FLOOR, RECOGNITION, TASKS, VARIANTS, VERIFICATION, Claim
from benchmark.claims.execution import ClaimPlan, Pretraining, variant_label
from benchmark.corpora.tiny import tiny_clips
from benchmark.engines.local import in_process
from benchmark.records import Results
from benchmark.run import Outcome
from benchmark.tables.leaderboard import leaderboard
from benchmark.values import Setup
from tests.benchmark.claimed import CODE, reference
from tests.conftest import Bench

X = TypeVar("X")
Y = TypeVar("Y")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals that are a little less exact, for a fraction of the time."""
    monkeypatch.setattr(verdicts, "make_contrast", partial(make_contrast, draws=400))


# What is compared.


def test_every_claim_is_about_two_arms_that_exist() -> None:
    named = {name for claim in CLAIMS for name in (claim.first, claim.second)}
    assert named == {*VARIANTS, FLOOR}
    assert all(
        name == variant.name and (not variant.after or variant.after in VARIANTS) for name, variant in VARIANTS.items()
    )
    assert {(claim.first, claim.second, claim.regime) for claim in CLAIMS if claim.system == "ssast"} == {
        ("ssast", "ssast-random", "frozen"),
        ("ssast", "ssast-plain", "frozen"),
        ("ssast", "ssast-random", "fine-tuned"),
        ("ssast", "ssast-plain", "fine-tuned"),
        ("ssast", "ssast-discriminative", "frozen"),
        ("ssast", "ssast-generative", "frozen"),
    }


def test_the_tasks_of_a_claim_are_better_in_one_direction() -> None:
    from downstreams import HEADS

    tasks = execution.claim_tasks()
    for claim in CLAIMS:
        heads = [(HEADS[task.head], task) for task in map(tasks[claim.regime].get, claim.tasks) if task]
        higher = {head.metrics[task.metric or next(iter(head.metrics))] for head, task in heads}
        assert len(heads) == len(claim.tasks)
        assert len(higher) == 1
        assert all(name in tasks[claim.regime] for name in claim.beside)


def test_the_pace_of_every_method_is_known() -> None:
    from upstreams.pretraining.methods import METHODS

    assert execution.TRAINING_PACES.keys() == METHODS.keys()
    assert {variant.upstream for variant in VARIANTS.values()} == METHODS.keys()


def test_a_random_arm_differs_from_its_trained_twin_in_training_alone() -> None:
    for name in ("ssast", "atst", "dino", "masr", "pms"):
        assert VARIANTS[f"{name}-random"].method == VARIANTS[name].method
        assert VARIANTS[f"{name}-random"].only == VARIANTS[name].only
        assert not VARIANTS[f"{name}-random"].trained
        assert not VARIANTS[f"{name}-random"].metadata  # which would be part of its name, and changes no start weight


def test_the_plain_twin_starts_as_the_authors_do_and_the_other_one_as_ours() -> None:
    from upstreams.base import UpstreamError
    from upstreams.pretraining.methods import create_method

    plain, nearby, usual = (
        create_method(name, "mini", 0).exported()
        for name in ("ssast?start=plain", "ssast?start=nearby", VARIANTS["ssast"].method)
    )
    assert all(tensor.equal(usual[name]) for name, tensor in nearby.items())
    drawn = {name for name in plain if name.endswith(("attn.qkv.weight", "attn.proj.weight", "v.pos_embed"))}
    assert len(drawn) == 9
    for name in drawn:
        assert float(plain[name].std()) == pytest.approx(0.02, rel=0.05)
        assert float(nearby[name].std()) > 0.03
    assert VARIANTS["ssast-plain"].method == "ssast?start=plain"
    assert not VARIANTS["ssast-plain"].trained
    with pytest.raises(UpstreamError, match="no start 'near' of ssast; write one of: plain, nearby"):
        create_method("ssast?start=near", "mini", 0)


def test_tuned_tasks_are_the_frozen_ones_with_another_regime() -> None:
    tasks = execution.claim_tasks(TASKS)
    same = {"corpus", "target", "head", "head_args", "metric", "batch", "disjoint", "folds", "optimizer"}
    assert tasks["frozen"].keys() == tasks["fine-tuned"].keys() == set(TASKS)
    for name, frozen in tasks["frozen"].items():
        tuned = tasks["fine-tuned"][name]
        assert frozen.model_dump(include=same) == tuned.model_dump(include=same)
        assert (frozen.features, tuned.features) == ("auto", "finetune")
        assert tuned.name != frozen.name
        assert len(tuned.lr) > 1


def test_no_speaker_of_the_tasks_is_in_the_pool() -> None:
    from benchmark.corpora.tiny import tiny_pool_clips

    heard = {clip.labels.get("speaker") for clip in tiny_pool_clips()} - {None}
    assert heard
    assert not heard & {clip.labels.get("speaker") for clip in tiny_clips()}


def test_a_system_without_claims_is_refused(bench: Bench, tmp_path: Path) -> None:
    answer = bench("claims", "sast", "--home", tmp_path / "home", "--results", tmp_path)
    assert answer.code == 2
    assert "no system with claims 'sast'; did you mean 'ssast'?" in answer.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_seed_and_steps_are_read_from_the_reference(variant: str) -> None:
    assert variant_label(reference(variant, 2, 1500)) == (f"{variant}-2", 1500)


@pytest.mark.parametrize("name", ["fbank", "hf:folder@random", "ssast@mine.pth", "mine.py:f?x=@a-1"])
def test_other_upstreams_are_no_arms(name: str) -> None:
    assert variant_label(name) == (name, 0)


def test_checkpoints_below_the_working_directory_are_named_by_a_path_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Pretraining(VARIANTS["ssast"], 0, 5, 10.0, tmp_path / "home" / "claims" / f"ssast-0-5-{CODE}.safetensors")
    monkeypatch.chdir(tmp_path)
    assert there.reference == f"ssast@home/claims/ssast-0-5-{CODE}.safetensors"
    monkeypatch.chdir("/")
    assert variant_label(there.reference) == ("ssast-0", 5)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert there.reference == f"ssast@{there.path}"


# From pre-training to the verdict, on tones.


class Ran:
    """All claims but that about languages, with two steps of one seed each, on tasks of tones."""

    def __init__(self, folder: Path, tones: Path, protocol: Path) -> None:
        self.setup = Setup(folder / "home", folder / "results", (("tones", str(tones)),))
        self.asked = ClaimPlan(tuple(on_tones(claim) for claim in CLAIMS if not claim.confusions), quick(protocol), 1)
        self.plan = self.with_checkpoints(2)
        self.outcome = self.again()
        self.findings = verdicts.judge_claims(self.plan, self.outcome.records, Results(self.setup.results))

    def with_checkpoints(self, steps: int) -> ClaimPlan:
        return execution.with_checkpoints(self.asked, self.setup, steps, in_process, corpus="tones")

    def again(self) -> Outcome:
        return execution.run_claims(self.plan, self.setup, in_process, str, corpus="tones")


def on_tones(claim: Claim) -> Claim:
    """The claim, judged by tasks of tones in place of its own."""
    own = {VERIFICATION: "same", RECOGNITION[0]: "letters"}.get(claim.tasks[0], "words")
    return replace(claim, tasks=(own,), beside=("same",) if VERIFICATION in claim.beside else ())


def quick(protocol: Path) -> execution.TasksByRegime:
    tasks = execution.claim_tasks(["words", "same", "letters"], protocol)
    tasks["fine-tuned"]["letters"] = tasks["frozen"].pop("letters").model_copy(update={"features": "finetune"})
    return {
        regime: {name: task.model_copy(update={"epochs": 1, "lr": task.lr[:2]}) for name, task in some.items()}
        for regime, some in tasks.items()
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tones: Path, protocol: Path) -> Ran:
    return Ran(tmp_path_factory.mktemp("claims"), tones, protocol)


def test_every_claim_gets_a_verdict(ran: Ran) -> None:
    assert not ran.outcome.failures
    assert [verdict.claim for verdict in ran.findings.verdicts] == list(ran.asked.claims)
    for verdict in ran.findings.verdicts:
        tuned = verdict.claim.regime == "fine-tuned" and verdict.claim.tasks == ("words",)
        assert verdict.main == verdict.rows[0]
        assert verdict.main.task == ("words_tuned" if tuned else verdict.claim.tasks[0])
        assert verdict.word in ("shown for one seed", "opposite for one seed", "not resolved")
        for row in verdict.rows:
            assert min(row.first, row.second) >= 0
            assert row.seeds == 1


def test_scores_are_those_of_the_leaderboard(ran: Ran) -> None:
    """Of every variant on every task, frozen and fine-tuned, whichever way is better."""
    table = leaderboard(ran.outcome.records)
    titles = {
        "frozen": {"words": "words", "same": "same ↓"},
        "fine-tuned": {"words_tuned": "words", "letters": "letters ↓"},
    }
    expected = {
        (variant_label(name)[0].removesuffix("-0"), regime, named[task]): f"{cell.value:.1f}"
        for (name, task), cell in table.items()
        for regime, named in titles.items()
        if task in named
    }
    columns = ran.findings.tasks
    found = {
        (variant, regime, column): value
        for variant, regime, *values in ran.findings.scores
        for column, value in zip(columns, values, strict=True)
        if value != "–"
    }
    assert found == expected
    assert {name for name, *_ in found} == {*VARIANTS, FLOOR}


def test_arms_are_run_on_the_tasks_of_their_claims_alone(ran: Ran) -> None:
    done: dict[str, set[str]] = {}
    for each in ran.outcome.records:
        done.setdefault(variant_label(each.upstream["name"])[0].removesuffix("-0"), set()).add(each.task["name"])
    assert done["pms"] == done["pms-plain"] == done["pms-random"] == {"letters"}
    assert done["dino-pseudo"] == {"same"}
    assert done["dino"] == done[FLOOR] == done["masr"] == {"words", "same"}
    assert done["atst"] == {"words"}
    assert done["ssast-plain"] == {"words", "words_tuned"}


def test_random_arms_are_start_weights_and_trained_ones_are_not(ran: Ran) -> None:
    by_variant = {each.variant.name: each for each in ran.plan.pretrainings}
    assert by_variant.keys() == VARIANTS.keys()
    steps = {name: identity_of(each)["steps"] for name, each in by_variant.items()}
    assert steps == {name: 2 if variant.trained else 0 for name, variant in VARIANTS.items()}
    prints = {variant_label(each.upstream["name"])[0]: each.upstream["fingerprint"] for each in ran.outcome.records}
    assert len(set(prints.values())) == len(prints)


def identity_of(each: Pretraining) -> dict[str, Any]:
    from benchmark.pretraining.checkpoint_files import read_header_facts

    facts = read_header_facts(each.path)
    assert facts is not None
    return dict(facts["identity"])


def test_arms_hear_and_learn_from_what_they_are_said_to(ran: Ran) -> None:
    identities = {each.variant.name: identity_of(each) for each in ran.plan.pretrainings}
    assert {name for name, each in identities.items() if "metadata" in each} == {"masr"}
    heard = {name: each.get("only") for name, each in identities.items() if not VARIANTS[name].after}
    assert heard == {name: variant.only for name, variant in VARIANTS.items() if not variant.after}
    assert {name.split("-")[0] for name, only in heard.items() if only} == {"dino", "masr", "pms"}
    assert identities["pms-plain"]["options"] == ["bands=none", "targets=fine"]


def test_pseudo_labels_go_on_from_the_weights_of_the_same_seed(ran: Ran) -> None:
    from upstreams.safety.checkpoints import digests

    by_variant = {each.variant.name: each for each in ran.plan.pretrainings}
    start = by_variant["dino"].path
    assert by_variant["dino-pseudo"].start == start
    assert identity_of(by_variant["dino-pseudo"])["start"] == digests([start])[start.name]


def test_what_is_done_is_not_done_again(ran: Ran) -> None:
    before = {each.path: each.path.stat().st_mtime_ns for each in ran.plan.pretrainings}
    assert not ran.plan.todo
    assert ran.again().trained == 0
    assert before == {each.path: each.path.stat().st_mtime_ns for each in ran.plan.pretrainings}


def test_the_plan_is_told_first(ran: Ran) -> None:
    summary = ran.plan.summary(2)
    assert summary.startswith(
        "17 claims, 1 pre-training seed: 16 checkpoints of size mini, 0 of them to make in 0 steps;"
    )
    # 13 upstreams on words, by 2 rates and 2 seeds, 7 on same, which is not trained; 3 by 2 rates, and 3 by one.
    assert "59 jobs frozen, 9 jobs fine-tuned" in summary
    assert ran.plan.jobs("frozen") + ran.plan.jobs("fine-tuned") == len(ran.outcome.records)
    more = ran.with_checkpoints(3)
    assert {each.variant.name for each in more.todo} == {name for name, variant in VARIANTS.items() if variant.trained}
    assert "10 of them to make in 30 steps" in more.summary(2)


def test_other_steps_are_other_checkpoints(ran: Ran) -> None:
    other = {each.variant.name: each.path for each in ran.with_checkpoints(3).pretrainings}
    for each in ran.plan.pretrainings:
        assert (other[each.variant.name] == each.path) == (not each.variant.trained)


@pytest.mark.parametrize("system", ["dino", "masr", "pms"])
def test_claims_about_one_system_need_its_own_checkpoints_alone(ran: Ran, system: str) -> None:
    alone = ran.asked._replace(claims=tuple(each for each in ran.asked.claims if each.system == system))
    plan = execution.with_checkpoints(alone, ran.setup, 2, in_process, corpus="tones")
    assert plan.pretrainings == tuple(each for each in ran.plan.pretrainings if each.variant.upstream == system)
    assert not plan.todo


def posted(function: Callable[[X], Y], items: Iterable[X], *rest: Any) -> list[Y]:
    """Map over what would arrive in worker processes."""
    return in_process(*pickle.loads(pickle.dumps((function, list(items)))), *rest)


def test_in_workers_with_more_threads_the_checkpoints_are_the_same(ran: Ran, tmp_path: Path) -> None:
    import torch

    mine = [each for each in ran.plan.pretrainings if each.variant.name in ("ssast", "ssast-generative")]
    there = [each._replace(path=tmp_path / each.path.name) for each in mine]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        execution.run_claims(
            ran.plan._replace(claims=(), pretrainings=tuple(there)), ran.setup, posted, str, corpus="tones"
        )
    finally:
        torch.set_num_threads(before)
    assert len(mine) == 2
    for each, other in zip(mine, there, strict=True):
        assert each.path.read_bytes() == other.path.read_bytes()
