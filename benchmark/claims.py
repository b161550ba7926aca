"""Claims: the contrasts that the headlines of the seed systems' papers rest on, re-run at a size for any machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from benchmark.engine import Engine, equal
from benchmark.errors import unknown
from benchmark.files import digest
from benchmark.plan import Setup
from benchmark.pools import Pool, pool_of
from benchmark.run import Outcome, run, threads
from benchmark.tasks import Task, load_tasks

if TYPE_CHECKING:
    from benchmark.pretraining import Request

X = TypeVar("X")
Y = TypeVar("Y")
Regime = Literal["frozen", "fine-tuned"]

SIZE = "mini"
POOL = "tiny_pool"  # pre-trained on; none of its speakers are in the tasks' corpus
TASKS = ("tiny_keyword", "tiny_language", "tiny_emotion", "tiny_event", "tiny_speaker")
FINE_TUNED: dict[str, Any] = {
    "features": "finetune", "epochs": 6, "lr": (5e-4, 1e-3), "seeds": (0,), "patience": None,
}  # fmt: skip
# On one core of the machine that README's times are of: seconds of audio trained on in a second, seconds to probe an
# upstream on all tasks, and seconds to tune one for an epoch of a task.
PACE, PROBING, TUNING = 500.0, 30.0, 3.0
NAME = re.compile(r"@.*?([a-z-]+-\d+)-(\d+)-[0-9a-f]{8}\.safetensors$")
FLOOR = "fbank"  # shown beside the systems; no claim is about it


@dataclass(frozen=True)
class Arm:
    """One side of a contrast. method: as for `bench pretrain`. trained: or left with its start weights. what: it is."""

    name: str
    method: str
    what: str
    trained: bool = True

    @property
    def upstream(self) -> str:
        """The registered upstream that reads what the method leaves."""
        return self.method.partition("?")[0]


@dataclass(frozen=True)
class Claim:
    """That one arm is above another. paper: what its authors report. relative: they count relative gains."""

    system: str
    first: str
    second: str
    regime: Regime
    paper: str
    relative: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("ssast", "ssast", "SSAST, pre-trained to tell masked frames from each other and to reconstruct them"),
        Arm(
            "ssast-discriminative",
            "ssast?objective=discriminative",
            "SSAST, pre-trained to tell them from each other only",
        ),
        Arm("ssast-generative", "ssast?objective=generative", "SSAST, pre-trained to reconstruct them only"),
        Arm("ssast-random", "ssast", "the weights that ssast starts from, untrained", trained=False),
        Arm("ssast-plain", "ssast?start=plain", "SSAST as its authors start it, untrained", trained=False),
        Arm("atst", "atst", "ATST, pre-trained by a teacher and a student"),
        Arm("atst-random", "atst", "the weights that atst starts from, untrained", trained=False),
    )
}
SSAST_GAIN = "+60.9 % relative to no pre-training, mean of six tasks, fine-tuned (Gong et al., 2022)"
CLAIMS = (
    Claim("ssast", "ssast", "ssast-random", "frozen", SSAST_GAIN, relative=True),
    Claim("ssast", "ssast", "ssast-plain", "frozen", SSAST_GAIN, relative=True),
    Claim("ssast", "ssast", "ssast-random", "fine-tuned", SSAST_GAIN, relative=True),
    Claim("ssast", "ssast", "ssast-plain", "fine-tuned", SSAST_GAIN, relative=True),
    Claim(
        "ssast", "ssast", "ssast-discriminative", "frozen",
        "+1.7 points, mean of six tasks, fine-tuned (Gong et al., 2022, table 2)",
    ),
    Claim(
        "ssast", "ssast", "ssast-generative", "frozen",
        "+10.5 points, mean of six tasks, fine-tuned (Gong et al., 2022, table 2)",
    ),
    Claim("atst", "atst", "atst-random", "frozen", "no such figure is known here (Li and Li, 2022)"),
    Claim(
        "atst", "atst", "ssast", "frozen",
        "72.0 % against 40.1 % of the best before it, which is not SSAST, speakers of VoxCeleb1, frozen; fine-tuned"
        " 94.3 % against SSAST's 80.8 % (Li and Li, 2022)",
    ),
)  # fmt: skip


class Pretraining(NamedTuple):
    """A checkpoint to have. steps: of training; seconds: of audio that those hear; path: where it is, or will be."""

    arm: Arm
    seed: int
    steps: int
    seconds: float
    path: Path

    @property
    def reference(self) -> str:
        """The upstream; by a path from the working directory where that is below it, so that records can be moved."""
        near = os.path.relpath(self.path)
        return f"{self.arm.upstream}@{self.path if near.startswith(os.pardir) else near}"


class Plan(NamedTuple):
    """All that some claims need. tasks: by regime. seeds: of pre-training, from 0 on."""

    claims: tuple[Claim, ...]
    tasks: dict[Regime, list[Task]]
    seeds: int
    pretrainings: tuple[Pretraining, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Those that the claims are about."""
        named = {name for claim in self.claims for name in (claim.first, claim.second)}
        return [name for name in ARMS if name in named]

    def references(self, regime: Regime) -> list[str]:
        """The upstreams that are run so, the floor last."""
        needed = {name for claim in self.claims if claim.regime == regime for name in (claim.first, claim.second)}
        found = [each.reference for each in self.pretrainings if each.arm.name in needed]
        return [*found, FLOOR] if found and regime == "frozen" else found

    def jobs(self, regime: Regime) -> int:
        """Heads to train."""
        return len(self.references(regime)) * sum(len(task.lr) * len(task.seeds) for task in self.tasks[regime])

    @property
    def todo(self) -> list[Pretraining]:
        """Checkpoints that are not there yet, the longest first."""
        return sorted((each for each in self.pretrainings if not each.path.exists()), key=_work, reverse=True)

    def told(self, workers: int) -> str:
        """What there is to do, and how long so many workers take at most, roughly."""
        tuned = self.jobs("fine-tuned") * FINE_TUNED["epochs"] * TUNING
        work = sum(map(_work, self.todo)) / PACE + len(self.references("frozen")) * PROBING + tuned
        cores = "CPU cores" if workers > 1 else "CPU core"
        jobs = ", ".join(f"{self.jobs(regime)} jobs {regime}" for regime in self.tasks)
        return (
            f"{len(self.claims)} claims, {seeds_told(self.seeds)}: {len(self.pretrainings)} checkpoints of size"
            f" {SIZE}, {len(self.todo)} of them to make in {sum(each.steps for each in self.todo):,} steps; {jobs};"
            f" about {math.ceil(work / 60 / workers)} minutes on {workers} {cores}, less where jobs are done"
        )


def seeds_told(number: int) -> str:
    """Such as "3 pre-training seeds"."""
    return f"{number} pre-training seed{'s' if number > 1 else ''}"


def plan(systems: Sequence[str], seeds: int, tasks: dict[Regime, list[Task]]) -> Plan:
    """The claims about some systems, or all; raises UserError for a system that there are none about."""
    known = dict.fromkeys(claim.system for claim in CLAIMS)
    for name in systems:
        if name not in known:
            raise unknown("system with claims", name, known, "bench claims --help")
    return Plan(tuple(claim for claim in CLAIMS if not systems or claim.system in systems), tasks, seeds)


def tasks_of(names: Iterable[str] = TASKS, protocol: Path | None = None) -> dict[Regime, list[Task]]:
    """The tasks as in the protocol, and with the upstream tuned too."""
    frozen = load_tasks(protocol).choose(names, [])
    tuned = [task.model_copy(update={"name": f"{task.name}_tuned", **FINE_TUNED}) for task in frozen]
    return {"frozen": frozen, "fine-tuned": tuned}


def with_checkpoints(plan: Plan, setup: Setup, steps: int | None, engine: Engine, corpus: str = POOL) -> Plan:
    """The plan with the checkpoints it needs. steps: of training, None for those of the method's recipe."""
    wanted = [(ARMS[name], seed) for name in plan.arms for seed in range(plan.seeds)]
    pool = pool_of(corpus, setup.home, dict(setup.data), engine, setup.skip_bad)
    found = [_pretraining(arm, seed, steps if arm.trained else 0, setup, pool) for arm, seed in wanted]
    return plan._replace(pretrainings=tuple(found))


def _pretraining(arm: Arm, seed: int, steps: int | None, setup: Setup, pool: Pool) -> Pretraining:
    """A checkpoint with all that decides its weights in its name, so that what is there already can be taken."""
    from benchmark.pretraining import identity, recipe_of
    from upstreams.pretrain import method as build

    asked = _request(arm, seed, steps, setup, pool.corpus)
    method = build(arm.method, SIZE, seed)
    recipe = recipe_of(method.recipe, asked)
    code = digest(identity(asked, method, recipe, pool))[:8]
    path = setup.home / "claims" / f"{arm.name}-{seed}-{recipe.steps}-{code}.safetensors"
    return Pretraining(arm, seed, recipe.steps, recipe.steps * recipe.batch * recipe.seconds, path)


def _request(arm: Arm, seed: int, steps: int | None, setup: Setup, corpus: str) -> Request:
    from benchmark.pretraining import Request

    return Request(
        arm.method, corpus, setup.home, size=SIZE, seed=seed, steps=steps, data=setup.data, device=setup.device,
        readers=2, skip_bad=setup.skip_bad,
    )  # fmt: skip


def perform(plan: Plan, setup: Setup, engine: Engine, tell: Callable[[str], object], corpus: str = POOL) -> Outcome:
    """Pre-train what is not there yet, and run the tasks of each regime."""
    engine = alone(engine)
    engine(partial(pretrain_stage, setup=setup, corpus=corpus), plan.todo, "pre-train", _work)
    outcomes = [
        run(plan.tasks[regime], names, setup, engine, tell)
        for regime in plan.tasks
        if (names := plan.references(regime))
    ]
    records = [record for outcome in outcomes for record in outcome.records]
    failures = [failed for outcome in outcomes for failed in outcome.failures]
    return Outcome({}, records, failures, sum(outcome.trained for outcome in outcomes))


def _work(each: Pretraining) -> float:
    return each.seconds + 1.0


def pretrain_stage(each: Pretraining, setup: Setup, corpus: str) -> None:
    """Make a checkpoint, or go on with it."""
    from benchmark.pretraining import pretrain

    pretrain(replace(_request(each.arm, each.seed, each.steps, setup, corpus), out=each.path))


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
