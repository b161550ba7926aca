"""Plan and run what claims need: pre-train small checkpoints of each variant and run the tasks on them."""

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
from benchmark.errors import unknown_name
from benchmark.files import digest
from benchmark.pretraining.sources import TrainingAudio, load_training_audio
from benchmark.run import Outcome, run, threads
from benchmark.tasks import Task, load_tasks
from benchmark.values import Engine, Setup, equal_weight

if TYPE_CHECKING:
    from benchmark.pretraining.requests import PretrainingRequest
    from upstreams.pretraining.methods import Recipe

X = TypeVar("X")
Y = TypeVar("Y")

SIZE = "mini"
CORPUS = "tiny_pool"  # pre-trained on; none of its speakers are in the tasks' corpus
FINE_TUNED: dict[str, Any] = {
    "features": "finetune", "epochs": 6, "lr": (5e-4, 1e-3), "seeds": (0,), "patience": None,
}  # fmt: skip
# Times on one core of the machine that README names: seconds of audio that each method trains on in a second, seconds
# to probe an upstream on a task, and seconds to fine-tune one for an epoch of a task, with exceptions by task.
TRAINING_PACES = {"ssast": 500.0, "atst": 500.0, "dino": 450.0, "masr": 500.0, "pms": 200.0}
PROBING, TUNING, TUNINGS = 6.0, 3.0, {"tiny_ctc": 8.0, "tiny_ctc_third": 2.7}
ROUNDS = 2  # of pseudo-labels
NAME = re.compile(r"@.*?([a-z-]+-\d+)-(\d+)-[0-9a-f]{8}\.safetensors$")
TasksByRegime = dict[Regime, dict[str, Task]]


class Pretraining(NamedTuple):
    """A checkpoint that claims need, made or still to be made.

    steps: number of training steps. seconds: of audio in these steps. path: of the checkpoint. code: hash of everything
    that decides its weights. start: the checkpoint whose weights are refined, if any.
    """

    variant: Variant
    seed: int
    steps: int
    seconds: float
    path: Path
    code: str = ""
    start: Path | None = None

    @property
    def reference(self) -> str:
        """The upstream's reference, with a relative path where possible, so that results can be moved."""
        near = os.path.relpath(self.path)
        return f"{self.variant.upstream}@{self.path if near.startswith(os.pardir) else near}"

    @property
    def work(self) -> float:
        """Approximate seconds of training on one core."""
        return self.seconds / TRAINING_PACES[self.variant.upstream] + 0.002


class ClaimPlan(NamedTuple):
    """Claims with the tasks and checkpoints they need.

    tasks: by regime and by the name that claims give them. seeds: number of pre-trainings of each variant.
    """

    claims: tuple[Claim, ...]
    tasks: TasksByRegime
    seeds: int
    pretrainings: tuple[Pretraining, ...] = ()

    @property
    def variants(self) -> list[str]:
        """The names of the variants that the claims are about, and of those whose checkpoints these start from."""
        named = {name for claim in self.claims for name in (claim.first, claim.second)}
        return [name for name in VARIANTS if name in named | {VARIANTS[each].after for each in named & VARIANTS.keys()}]

    def tasks_by_variant(self, regime: Regime) -> dict[str, list[str]]:
        """The names of the tasks that each variant is run on; the floor is run on all frozen ones."""
        names_of: dict[str, set[str]] = {name: set() for name in (*self.variants, FLOOR)}
        for claim in self.claims:
            if claim.regime == regime:
                sides = {claim.first, claim.second, FLOOR} if regime == "frozen" else {claim.first, claim.second}
                for name in sides:
                    names_of[name] |= {*claim.tasks, *claim.beside}
        return {
            variant: [name for name in self.tasks[regime] if name in names]
            for variant, names in names_of.items()
            if names
        }

    @property
    def needed(self) -> list[Task]:
        """Every task that a variant is run on."""
        names = {
            regime: {name for names in self.tasks_by_variant(regime).values() for name in names}
            for regime in self.tasks
        }
        return [task for regime, tasks in self.tasks.items() for name, task in tasks.items() if name in names[regime]]

    def runs(self, regime: Regime) -> list[tuple[list[Task], list[str]]]:
        """Groups of tasks, each with the upstreams that are run on all of its tasks."""
        runs: dict[tuple[str, ...], list[str]] = {}
        for variant, names in self.tasks_by_variant(regime).items():
            references = [item.reference for item in self.pretrainings if item.variant.name == variant]
            runs.setdefault(tuple(names), []).extend([FLOOR] if variant == FLOOR else references)
        return [
            ([self.tasks[regime][name] for name in names], upstreams) for names, upstreams in runs.items() if upstreams
        ]

    def jobs(self, regime: Regime) -> int:
        """The number of heads to train."""
        return sum(len(upstreams) * sum(map(heads_per_upstream, tasks)) for tasks, upstreams in self.runs(regime))

    @property
    def todo(self) -> list[Pretraining]:
        """The checkpoints that do not exist yet, those that take longest first."""
        missing = [item for item in self.pretrainings if not item.path.exists()]
        return sorted(missing, key=lambda item: item.work, reverse=True)

    def summary(self, workers: int) -> str:
        """A sentence on what there is to do, and roughly how many minutes it takes at most."""
        probed = sum(len(tasks) * len(upstreams) for tasks, upstreams in self.runs("frozen"))
        tuned = sum(
            len(upstreams)
            * sum(heads_per_upstream(task) * task.epochs * TUNINGS.get(task.name, TUNING) for task in tasks)
            for tasks, upstreams in self.runs("fine-tuned")
        )
        work = sum(item.work for item in self.todo) + probed * PROBING + tuned
        cores = "CPU cores" if workers > 1 else "CPU core"
        jobs = ", ".join(f"{self.jobs(regime)} jobs {regime}" for regime in self.tasks)
        return (
            f"{len(self.claims)} claims, {seeds_text(self.seeds)}: {len(self.pretrainings)} checkpoints of size"
            f" {SIZE}, {len(self.todo)} of them to make in {sum(item.steps for item in self.todo):,} steps; {jobs};"
            f" about {math.ceil(work / 60 / workers)} minutes on {workers} {cores}, less where jobs are done"
        )


def heads_per_upstream(task: Task) -> int:
    """The number of heads that a task trains for one upstream."""
    from downstreams import HEADS

    return len(task.lr) * len(task.seeds) if HEADS[task.head].trained else 1


def seeds_text(number: int) -> str:
    """The number of seeds in words, such as "3 pre-training seeds"."""
    return f"{number} pre-training seed{'s' if number > 1 else ''}"


def plan_claims(systems: Sequence[str], seeds: int, tasks: TasksByRegime) -> ClaimPlan:
    """Select the claims about some systems, or all; raises UserError for a system without claims."""
    known = dict.fromkeys(claim.system for claim in CLAIMS)
    for name in systems:
        if name not in known:
            raise unknown_name("system with claims", name, known, "bench claims --help")
    return ClaimPlan(tuple(claim for claim in CLAIMS if not systems or claim.system in systems), tasks, seeds)


def claim_tasks(names: Iterable[str] = (), protocol: Path | None = None) -> TasksByRegime:
    """The tasks of claims, each frozen as in the protocol and fine-tuned; some fine-tune in the protocol already.

    names: names of tasks; without any, all tasks of all claims.
    """
    named = names or dict.fromkeys(name for claim in CLAIMS for name in (*claim.tasks, *claim.beside))
    tasks: TasksByRegime = {"frozen": {}, "fine-tuned": {}}
    for task in load_tasks(protocol).choose(named, []):
        if task.features == "finetune":
            tasks["fine-tuned"][task.name] = task
        else:
            tasks["frozen"][task.name] = task
            tuned = {"name": f"{task.name}_tuned", **FINE_TUNED}
            tasks["fine-tuned"][task.name] = task.model_copy(update=tuned)
    return tasks


def with_checkpoints(
    plan: ClaimPlan, setup: Setup, steps: int | None, engine: Engine, corpus: str = CORPUS
) -> ClaimPlan:
    """Add the checkpoints that the plan needs. steps: of training; None: those of each method's recipe."""
    kinds = dict.fromkeys(VARIANTS[name].only for name in plan.variants)
    audio = {
        only: load_training_audio(corpus, setup.home, dict(setup.data), engine, setup.skip_bad, only) for only in kinds
    }
    checkpoints: dict[tuple[str, int], Pretraining] = {}
    for variant in sorted((VARIANTS[name] for name in plan.variants), key=lambda variant: bool(variant.after)):
        for seed in range(plan.seeds):
            request = _request(variant, seed, steps if variant.trained else 0, setup, corpus)
            start = checkpoints[variant.after, seed] if variant.after else None
            checkpoints[variant.name, seed] = _pretraining(variant, request, audio[variant.only], start)
    return plan._replace(
        pretrainings=tuple(checkpoints[name, seed] for name in plan.variants for seed in range(plan.seeds))
    )


def _pretraining(
    variant: Variant, request: PretrainingRequest, audio: TrainingAudio, start: Pretraining | None
) -> Pretraining:
    """A checkpoint whose file name holds a hash of everything that decides its weights, so that it can be reused.

    The defaults of `bench pseudo-label` are not part of that hash.
    """
    recipe, decisive = _refined(request, start) if start else _pretrained(request, audio)
    code = digest(decisive)[:8]
    path = request.home / "claims" / f"{variant.name}-{request.seed}-{recipe.steps}-{code}.safetensors"
    seconds = recipe.steps * recipe.batch * recipe.seconds * (ROUNDS if start else 1)
    return Pretraining(variant, request.seed, recipe.steps, seconds, path, code, start.path if start else None)


def _pretrained(request: PretrainingRequest, audio: TrainingAudio) -> tuple[Recipe, Any]:
    """The recipe of a method, and everything that decides the weights."""
    from benchmark.pretraining.training import adjusted_recipe, training_identity
    from upstreams.pretraining.methods import create_method

    method = create_method(request.method, SIZE, request.seed)
    recipe = adjusted_recipe(method.recipe, request)
    return recipe, training_identity(request, method, recipe, audio)


def _refined(request: PretrainingRequest, start: Pretraining) -> tuple[Recipe, Any]:
    """The recipe of rounds of pseudo-labels on a checkpoint, and everything that decides the weights."""
    from benchmark.pretraining.training import adjusted_recipe
    from upstreams.pretraining.aam_softmax import MINI, MarginTuning

    recipe = adjusted_recipe(MINI.recipe, request)
    return recipe, [start.code, repr(replace(MINI, recipe=recipe)), MarginTuning.version, ROUNDS]


def _request(variant: Variant, seed: int, steps: int | None, setup: Setup, corpus: str) -> PretrainingRequest:
    from benchmark.pretraining.requests import PretrainingRequest

    return PretrainingRequest(
        variant.method, corpus, setup.home, size=SIZE, seed=seed, steps=steps, data=setup.data, device=setup.device,
        readers=2, skip_bad=setup.skip_bad, metadata=variant.metadata, only=variant.only,
    )  # fmt: skip


def run_claims(
    plan: ClaimPlan, setup: Setup, engine: Engine, tell: Callable[[str], object], corpus: str = CORPUS
) -> Outcome:
    """Pre-train the missing checkpoints, in the order of who starts from whom, and run the tasks of each regime."""
    engine = single_threaded(engine)
    stage = partial(make_checkpoint, setup=setup, corpus=corpus)
    for later in (False, True):
        engine(stage, [item for item in plan.todo if bool(item.start) == later], "pre-train", _work)
    outcomes = [
        run(tasks, upstreams, setup, engine, tell) for regime in plan.tasks for tasks, upstreams in plan.runs(regime)
    ]
    records = [record for outcome in outcomes for record in outcome.records]
    failures = [failed for outcome in outcomes for failed in outcome.failures]
    return Outcome({}, records, failures, sum(outcome.trained for outcome in outcomes))


def _work(item: Pretraining) -> float:
    return item.work


def make_checkpoint(item: Pretraining, setup: Setup, corpus: str) -> None:
    """Pre-train a checkpoint, or refine the one it starts from; an interrupted training is resumed."""
    from benchmark.pretraining.pseudo_labels import pseudo_label_request, refine
    from benchmark.pretraining.training import pretrain

    request = replace(_request(item.variant, item.seed, item.steps, setup, corpus), out=item.path)
    if item.start is None:
        pretrain(request)
    else:
        refine(pseudo_label_request(f"{item.variant.upstream}@{item.start}", request, rounds=ROUNDS))


def single_threaded(engine: Engine) -> Engine:
    """An engine whose items compute with one thread each, so that no number depends on how many workers there are."""

    def mapped(
        function: Callable[[X], Y], items: Iterable[X], title: str = "", weight: Callable[[X], float] = equal_weight
    ) -> list[Y]:
        return engine(partial(_alone, function), items, title, weight)

    return mapped


def _alone(function: Callable[[X], Y], item: X) -> Y:
    with threads(1):
        return function(item)


def variant_label(upstream: str) -> tuple[str, int]:
    """The variant with its seed, and the steps, such as ("atst-2", 700) of `atst@…/atst-2-700-1f3a90bc.safetensors`."""
    match = NAME.search(upstream)
    return (match[1], int(match[2])) if match else (upstream, 0)
