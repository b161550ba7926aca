"""Claims: the contrasts that the headlines of the seed systems' papers rest on, re-run at a size for any machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from benchmark.claims.definitions import CLAIMS, FLOOR, VARIANTS, Claim, Regime, Variant
from benchmark.errors import unknown
from benchmark.files import digest
from benchmark.pretraining.sources import TrainingAudio, pool_of
from benchmark.run import Outcome, run, threads
from benchmark.tasks import Task, load_tasks
from benchmark.values import Engine, Setup, equal

if TYPE_CHECKING:
    from benchmark.pretraining.requests import PretrainingRequest
    from upstreams.pretraining.methods import Recipe

X = TypeVar("X")
Y = TypeVar("Y")

SIZE = "mini"
POOL = "tiny_pool"  # pre-trained on; none of its speakers are in the tasks' corpus
FINE_TUNED: dict[str, Any] = {
    "features": "finetune", "epochs": 6, "lr": (5e-4, 1e-3), "seeds": (0,), "patience": None,
}  # fmt: skip
# On one core of the machine that README's times are of: seconds of audio trained on in a second, by method, seconds to
# probe an upstream on a task, and seconds to tune one for an epoch of a task, of which some take another time.
PACES = {"ssast": 500.0, "atst": 500.0, "dino": 450.0, "masr": 500.0, "pms": 200.0}
PROBING, TUNING, TUNINGS = 6.0, 3.0, {"tiny_ctc": 8.0, "tiny_ctc_third": 2.7}
ROUNDS = 2  # of pseudo-labels
NAME = re.compile(r"@.*?([a-z-]+-\d+)-(\d+)-[0-9a-f]{8}\.safetensors$")
TasksByRegime = dict[Regime, dict[str, Task]]


class Pretraining(NamedTuple):
    """A checkpoint to have. steps: of training; seconds: of audio that those hear; path: where it is, or will be.

    code: hash of what decides its weights. start: the checkpoint that it goes on from, if any.
    """

    arm: Variant
    seed: int
    steps: int
    seconds: float
    path: Path
    code: str = ""
    start: Path | None = None

    @property
    def reference(self) -> str:
        """The upstream; by a path from the working directory where that is below it, so that records can be moved."""
        near = os.path.relpath(self.path)
        return f"{self.arm.upstream}@{self.path if near.startswith(os.pardir) else near}"

    @property
    def work(self) -> float:
        """Seconds on one core, roughly."""
        return self.seconds / PACES[self.arm.upstream] + 0.002


class ClaimPlan(NamedTuple):
    """All that some claims need. tasks: by regime, and by the name that claims give them. seeds: of pre-training."""

    claims: tuple[Claim, ...]
    tasks: TasksByRegime
    seeds: int
    pretrainings: tuple[Pretraining, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Those that the claims are about, and those that these start from."""
        named = {name for claim in self.claims for name in (claim.first, claim.second)}
        return [name for name in VARIANTS if name in named | {VARIANTS[each].after for each in named & VARIANTS.keys()}]

    def asked(self, regime: Regime) -> dict[str, list[str]]:
        """The names of the tasks that each arm is run on; the floor is on all of them that are frozen."""
        found: dict[str, set[str]] = {name: set() for name in (*self.arms, FLOOR)}
        for claim in self.claims:
            if claim.regime == regime:
                sides = {claim.first, claim.second, FLOOR} if regime == "frozen" else {claim.first, claim.second}
                for name in sides:
                    found[name] |= {*claim.tasks, *claim.beside}
        return {arm: [name for name in self.tasks[regime] if name in wanted] for arm, wanted in found.items() if wanted}

    @property
    def needed(self) -> list[Task]:
        """Every task that an arm is run on."""
        asked = {regime: {name for names in self.asked(regime).values() for name in names} for regime in self.tasks}
        return [task for regime, tasks in self.tasks.items() for name, task in tasks.items() if name in asked[regime]]

    def runs(self, regime: Regime) -> list[tuple[list[Task], list[str]]]:
        """Tasks, and the upstreams that are run on all of them."""
        runs: dict[tuple[str, ...], list[str]] = {}
        for arm, names in self.asked(regime).items():
            here = [each.reference for each in self.pretrainings if each.arm.name == arm]
            runs.setdefault(tuple(names), []).extend([FLOOR] if arm == FLOOR else here)
        return [([self.tasks[regime][name] for name in names], found) for names, found in runs.items() if found]

    def jobs(self, regime: Regime) -> int:
        """Heads to train."""
        return sum(len(upstreams) * sum(map(grid, tasks)) for tasks, upstreams in self.runs(regime))

    @property
    def todo(self) -> list[Pretraining]:
        """Checkpoints that are not there yet, the longest first."""
        missing = [each for each in self.pretrainings if not each.path.exists()]
        return sorted(missing, key=lambda each: each.work, reverse=True)

    def told(self, workers: int) -> str:
        """What there is to do, and how long so many workers take at most, roughly."""
        probed = sum(len(tasks) * len(upstreams) for tasks, upstreams in self.runs("frozen"))
        tuned = sum(
            len(upstreams) * sum(grid(task) * task.epochs * TUNINGS.get(task.name, TUNING) for task in tasks)
            for tasks, upstreams in self.runs("fine-tuned")
        )
        work = sum(each.work for each in self.todo) + probed * PROBING + tuned
        cores = "CPU cores" if workers > 1 else "CPU core"
        jobs = ", ".join(f"{self.jobs(regime)} jobs {regime}" for regime in self.tasks)
        return (
            f"{len(self.claims)} claims, {seeds_told(self.seeds)}: {len(self.pretrainings)} checkpoints of size"
            f" {SIZE}, {len(self.todo)} of them to make in {sum(each.steps for each in self.todo):,} steps; {jobs};"
            f" about {math.ceil(work / 60 / workers)} minutes on {workers} {cores}, less where jobs are done"
        )


def grid(task: Task) -> int:
    """Heads that are trained for one upstream."""
    from downstreams import HEADS

    return len(task.lr) * len(task.seeds) if HEADS[task.head].trained else 1


def seeds_told(number: int) -> str:
    """Such as "3 pre-training seeds"."""
    return f"{number} pre-training seed{'s' if number > 1 else ''}"


def plan(systems: Sequence[str], seeds: int, tasks: TasksByRegime) -> ClaimPlan:
    """The claims about some systems, or all; raises UserError for a system that there are none about."""
    known = dict.fromkeys(claim.system for claim in CLAIMS)
    for name in systems:
        if name not in known:
            raise unknown("system with claims", name, known, "bench claims --help")
    return ClaimPlan(tuple(claim for claim in CLAIMS if not systems or claim.system in systems), tasks, seeds)


def tasks_of(names: Iterable[str] = (), protocol: Path | None = None) -> TasksByRegime:
    """The tasks as in the protocol, and with the upstream tuned too; some tune it by themselves.

    names: all that claims are judged by, unless others are given.
    """
    named = names or dict.fromkeys(name for claim in CLAIMS for name in (*claim.tasks, *claim.beside))
    found: TasksByRegime = {"frozen": {}, "fine-tuned": {}}
    for task in load_tasks(protocol).choose(named, []):
        if task.features == "finetune":
            found["fine-tuned"][task.name] = task
        else:
            found["frozen"][task.name] = task
            tuned = {"name": f"{task.name}_tuned", **FINE_TUNED}
            found["fine-tuned"][task.name] = task.model_copy(update=tuned)
    return found


def with_checkpoints(plan: ClaimPlan, setup: Setup, steps: int | None, engine: Engine, corpus: str = POOL) -> ClaimPlan:
    """The plan with the checkpoints it needs. steps: of training, None for those of the method's recipe."""
    kinds = dict.fromkeys(VARIANTS[name].only for name in plan.arms)
    pools = {only: pool_of(corpus, setup.home, dict(setup.data), engine, setup.skip_bad, only) for only in kinds}
    found: dict[tuple[str, int], Pretraining] = {}
    for arm in sorted((VARIANTS[name] for name in plan.arms), key=lambda arm: bool(arm.after)):
        for seed in range(plan.seeds):
            asked = _request(arm, seed, steps if arm.trained else 0, setup, corpus)
            before = found[arm.after, seed] if arm.after else None
            found[arm.name, seed] = _pretraining(arm, asked, pools[arm.only], before)
    return plan._replace(pretrainings=tuple(found[name, seed] for name in plan.arms for seed in range(plan.seeds)))


def _pretraining(
    arm: Variant, asked: PretrainingRequest, pool: TrainingAudio, before: Pretraining | None
) -> Pretraining:
    """A checkpoint with what decides its weights in its name, so that what is there already can be taken.

    Of pseudo-labels it is all but the defaults of `bench pseudo-label`.
    """
    recipe, decisive = _refined(asked, before) if before else _pretrained(asked, pool)
    code = digest(decisive)[:8]
    path = asked.home / "claims" / f"{arm.name}-{asked.seed}-{recipe.steps}-{code}.safetensors"
    seconds = recipe.steps * recipe.batch * recipe.seconds * (ROUNDS if before else 1)
    return Pretraining(arm, asked.seed, recipe.steps, seconds, path, code, before.path if before else None)


def _pretrained(asked: PretrainingRequest, pool: TrainingAudio) -> tuple[Recipe, Any]:
    """How a method is trained, and what decides its weights."""
    from benchmark.pretraining.training import identity, recipe_of
    from upstreams.pretraining.methods import method as build

    method = build(asked.method, SIZE, asked.seed)
    recipe = recipe_of(method.recipe, asked)
    return recipe, identity(asked, method, recipe, pool)


def _refined(asked: PretrainingRequest, before: Pretraining) -> tuple[Recipe, Any]:
    """How rounds of pseudo-labels tune a checkpoint that may not be there yet, and what decides its weights."""
    from benchmark.pretraining.training import recipe_of
    from upstreams.pretraining.aam_softmax import MINI, MarginTuning

    recipe = recipe_of(MINI.recipe, asked)
    return recipe, [before.code, repr(replace(MINI, recipe=recipe)), MarginTuning.version, ROUNDS]


def _request(arm: Variant, seed: int, steps: int | None, setup: Setup, corpus: str) -> PretrainingRequest:
    from benchmark.pretraining.requests import PretrainingRequest

    return PretrainingRequest(
        arm.method, corpus, setup.home, size=SIZE, seed=seed, steps=steps, data=setup.data, device=setup.device,
        readers=2, skip_bad=setup.skip_bad, metadata=arm.metadata, only=arm.only,
    )  # fmt: skip


def perform(
    plan: ClaimPlan, setup: Setup, engine: Engine, tell: Callable[[str], object], corpus: str = POOL
) -> Outcome:
    """Pre-train what is not there yet, what starts from others after these, and run the tasks of each regime."""
    engine = alone(engine)
    stage = partial(pretrain_stage, setup=setup, corpus=corpus)
    for later in (False, True):
        engine(stage, [each for each in plan.todo if bool(each.start) == later], "pre-train", _work)
    outcomes = [
        run(tasks, upstreams, setup, engine, tell) for regime in plan.tasks for tasks, upstreams in plan.runs(regime)
    ]
    records = [record for outcome in outcomes for record in outcome.records]
    failures = [failed for outcome in outcomes for failed in outcome.failures]
    return Outcome({}, records, failures, sum(outcome.trained for outcome in outcomes))


def _work(each: Pretraining) -> float:
    return each.work


def pretrain_stage(each: Pretraining, setup: Setup, corpus: str) -> None:
    """Make a checkpoint, or go on with it."""
    from benchmark.pretraining.pseudo_labels import refine, request_of
    from benchmark.pretraining.training import pretrain

    asked = replace(_request(each.arm, each.seed, each.steps, setup, corpus), out=each.path)
    if each.start is None:
        pretrain(asked)
    else:
        refine(request_of(f"{each.arm.upstream}@{each.start}", asked, rounds=ROUNDS))


def alone(engine: Engine) -> Engine:
    """An engine whose items compute with one thread each, so that no number depends on how many workers there are."""

    def mapped(
        function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal
    ) -> list[Y]:
        return engine(partial(_alone, function), items, title, weight)

    return mapped


def _alone(function: Callable[[X], Y], item: X) -> Y:
    with threads(1):
        return function(item)


def label_of(upstream: str) -> tuple[str, int]:
    """Arm with seed, and steps, from such a reference as `ssast@home/claims/ssast-random-2-0-1f3a90bc.safetensors`."""
    found = NAME.search(upstream)
    return (found[1], int(found[2])) if found else (upstream, 0)
