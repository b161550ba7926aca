"""Iterative pseudo-labelling (Cho et al., 2022): cluster an encoder's embeddings, tune it on the clusters, again."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.engines.local import in_process
from benchmark.errors import UserError
from benchmark.files import aside, write_text
from benchmark.heads import head_card
from benchmark.pretraining import training as pretraining
from benchmark.pretraining.checkpoint_files import (
    facts_in,
    make_room,
    refuse_another,
    refuse_foreign_cards,
    usable,
    write_tensors,
)
from benchmark.pretraining.pseudo_label_card import card, facts_of, scored, told_of
from benchmark.pretraining.pseudo_label_round import perform, raise_first
from benchmark.pretraining.requests import PretrainingRequest, PseudoLabelRequest, Refinement
from benchmark.pretraining.sources import pool_of
from benchmark.records import Record
from benchmark.run import run
from benchmark.values import Engine

if TYPE_CHECKING:
    pass

CLIPS = 10  # in a cluster, on average, unless the user says otherwise
LARGE = 10_000  # clips, from which on the authors' least size of a cluster is taken
SMALLEST, AUTHORS_SMALLEST = 4, 8  # clips in a cluster that is kept, at least


def request_of(reference: str, training: PretrainingRequest, **options: Any) -> PseudoLabelRequest:
    """The request for NAME@FILE; raises UserError for a file or reference that there cannot be pseudo-labels of."""
    from upstreams import parted
    from upstreams.pretraining.methods import METHODS
    from upstreams.safety.loading import expanded

    name, file, query = parted(reference)
    tunable = name in METHODS and hasattr(importlib.import_module(METHODS[name]), "network_of")
    if not tunable or not file or query:
        told = "pseudo-labels tune an encoder of embeddings from its file of weights"
        raise UserError(f"{told}, not '{reference}'; give {name if tunable else 'dino'}@FILE")
    path = expanded(file).absolute()
    if not path.is_file():
        raise UserError(f"no file {path}; give {name}@FILE")
    out = training.out or Path("pretrained") / f"{name}-pseudo-{training.seed}.safetensors"
    if out.expanduser().absolute() == path:
        raise UserError(f"--out {out} is the file to start from; give another")
    return PseudoLabelRequest(path, replace(training, method=name, out=out), **options)


def refine(request: PseudoLabelRequest, engine: Engine = in_process, tell: Callable[[str], object] = str) -> Path:
    """Cluster and tune for so many rounds, from where the same request stopped if it did; gives the file of weights.

    Beside it, as .md and .json, lies its model card, and in a folder .rounds what each round left.
    """
    from upstreams.pretraining.processes import processes

    if processes()[1] > 1:
        raise UserError("bench pseudo-label runs in one process; start it without torchrun")
    asked = plan(request, engine)
    if finished(asked):
        tell(f"nothing left to do: {asked.out} is there already")
        return asked.out
    refuse_foreign_cards(asked.out)
    make_room(asked.out, 2 * request.start.stat().st_size)
    tell(f"{asked.pool}; {asked.clusters:,} clusters, rounds: {request.rounds}")
    scores = [score(asked, 0, request.start, engine, tell)]
    for number in range(1, request.rounds + 1):
        perform(asked, number, engine, tell)
        last = number == request.rounds
        scores.append(score(asked, number, write(asked) if last else asked.weights(number), engine, tell))
    facts = facts_of(asked, scores)
    write_text(asked.out.with_suffix(".md"), card(facts))
    write_text(asked.out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    tell(f"wrote {asked.out} and its model card {asked.out.with_suffix('.md').name}")
    tell(f"try it: {facts['use']}")
    return asked.out


def plan(request: PseudoLabelRequest, engine: Engine = in_process) -> Refinement:
    """Look over the audio and the encoder; raises UserError or UpstreamError for what cannot be done."""
    from upstreams.pretraining.aam_softmax import tuning_of
    from upstreams.pretraining.methods import METHODS

    asked = request.training
    out = usable(asked.output)
    tuning = tuning_of(importlib.import_module(METHODS[asked.method]).network_of(str(request.start)))
    tuning = replace(
        tuning,
        recipe=pretraining.recipe_of(tuning.recipe, asked),
        scale=tuning.scale if request.scale is None else request.scale,
        margin=tuning.margin if request.margin is None else request.margin,
    )
    pool = pool_of(asked.corpus, asked.home, dict(asked.data), engine, asked.skip_bad, asked.only)
    count = len(pool.clips) // CLIPS if request.clusters is None else request.clusters
    least = SMALLEST if len(pool.clips) < LARGE else AUTHORS_SMALLEST
    least = least if request.smallest is None else request.smallest
    found = Refinement(request, out, pool, count, least, tuning, {})
    check(found)
    return found._replace(identity=identity(found))


def check(asked: Refinement) -> None:
    """Raise UserError for numbers that make no sense, by themselves or for the corpus."""
    request, tuning, clips = asked.request, asked.tuning, len(asked.pool.clips)
    if request.rounds < 1:
        raise UserError(f"--rounds {request.rounds} leaves nothing to do; give 1 or more")
    batch, parts = tuning.recipe.batch, request.training.accumulate
    if batch % parts:
        raise UserError(f"a batch of {batch} cannot be taken in {parts} parts; give another --batch or --accumulate")
    if not 2 <= asked.clusters <= clips:
        told = f"{clips:,} clips of {asked.pool.corpus} cannot be {asked.clusters:,} clusters"
        raise UserError(
            f"{told}, of which there must be 2 or more, and no more than clips; give --clusters, or more clips"
        )
    if not 1 <= asked.smallest <= request.largest:
        told = f"no cluster has {asked.smallest} clips or more and {request.largest} or fewer"
        raise UserError(f"{told}; give a --smallest of at least 1, and no larger than --largest")
    if not 0 < request.nearest <= 1:
        raise UserError(f"--nearest {request.nearest:g} is no share of a cluster's clips; give one above 0, up to 1")
    if not 0 < tuning.scale < math.inf or not 0 <= tuning.margin < math.pi / 2:
        told = f"--scale {tuning.scale:g} and --margin {tuning.margin:g} make no softmax"
        raise UserError(f"{told}; a scale is above 0, and a margin from 0 to below 1.57")
    verify = request.verify
    if verify is not None and "eer" not in head_card(verify.head, asked.setup).metrics:
        raise UserError(f"--verify {verify.name} has no trials; give a task that has: see bench list tasks")


def identity(asked: Refinement) -> dict[str, Any]:
    """What was asked for, beside the number of rounds and how the last weights are stored."""
    from upstreams.pretraining.aam_softmax import MarginTuning
    from upstreams.safety.checkpoints import digest as sum_of

    request, tuning = asked.request, asked.tuning
    found = {
        "method": "pseudo-labels", "encoder": asked.name, "start": sum_of(request.start), "seed": request.training.seed,
        "data": asked.pool.digest, "code": f"{version('ssl-bench')}, version {MarginTuning.version} of the tuning",
        "clusters": asked.clusters, "smallest": asked.smallest, "largest": request.largest, "nearest": request.nearest,
        "scale": tuning.scale, "margin": tuning.margin, **asdict(tuning.recipe),
    }  # fmt: skip
    return dict(json.loads(json.dumps(found)))


def whole_identity(asked: Refinement) -> dict[str, Any]:
    """What decides the weights in the end."""
    return {**asked.identity, "rounds": asked.request.rounds, "half": asked.request.training.half}


def finished(asked: Refinement) -> bool:
    """Whether weights and card are there, with the trials asked for; raises UserError for others in their place."""
    if there := facts_in(asked.out):
        refuse_another(asked.out, there["identity"], whole_identity(asked))
    verify, told = asked.request.verify, told_of(asked.out)
    whole = told is not None and (verify is None or told.get("task") == verify.model_dump(mode="json"))
    return whole and asked.out.exists()


def score(
    asked: Refinement, number: int, weights: Path, engine: Engine, tell: Callable[[str], object]
) -> dict[str, dict[str, Any]] | None:
    """Metrics by split of the task to verify on, if there is one; of several heads that which is best on validation."""
    task = asked.request.verify
    if task is None:
        return None
    outcome = run([task], [f"{asked.name}@{weights}"], asked.setup, engine)
    raise_first(outcome.failures)
    best = min(outcome.records, key=validated)
    found = {"valid": best.valid, "test": best.test}
    tell(f"{f'after round {number}' if number else 'before'}: {scored(task.name, found)}")
    return found


def validated(record: Record) -> float:
    """Error on validation, infinite where the head diverged."""
    value = record.valid[record.metric]
    return math.inf if value is None else float(value)


def write(asked: Refinement) -> Path:
    """Write what the last round left as the weights that were asked for, unless they are there."""
    from upstreams.safety.checkpoints import not_finite, read

    if asked.out.exists():
        return asked.out
    tensors = read(asked.weights(asked.request.rounds))
    if asked.request.training.half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        if large := not_finite(tensors):
            raise UserError(f"{large[0]} has weights too large for --half; leave that out")
    make_room(asked.out, sum(tensor.nbytes for tensor in tensors.values()) + (1 << 20))
    with aside(asked.out) as partial:
        write_tensors(partial, tensors, {"identity": whole_identity(asked)})
    return asked.out
