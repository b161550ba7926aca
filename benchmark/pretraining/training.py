"""Pre-training, top to bottom: which audio, in which order, by which recipe, and what is written in the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.engines.local import in_process
from benchmark.environment import cores
from benchmark.errors import UserError
from benchmark.files import aside, write_text
from benchmark.pretraining.checkpoint_files import (
    facts_in,
    make_room,
    read_state,
    refuse_another,
    refuse_foreign_cards,
    state_of,
    usable,
    write_state,
    write_tensors,
)
from benchmark.pretraining.label_weights import chosen, remarks, told, with_metadata
from benchmark.pretraining.model_card import card, facts_of, usage
from benchmark.pretraining.processes import first_alone, only_first_tells
from benchmark.pretraining.progress import Stopwatch, training_bar
from benchmark.pretraining.requests import PretrainingRequest, Training
from benchmark.pretraining.segments import SegmentOrder, Share, batches
from benchmark.pretraining.sources import TrainingAudio, pool_of
from benchmark.values import Engine

if TYPE_CHECKING:
    from upstreams.pretraining.loop import History, Schedule, TrainingProgress, TrainingState
    from upstreams.pretraining.methods import Method, Recipe

EVERY = 20  # steps at most from one point of the loss curve to the next
MOST_READERS = 16  # unless the user wants more
SAVE_OFTEN, SAVE_SELDOM = 10.0, 300.0  # seconds from one state to the next, of small models and of large ones


def pretrain(request: PretrainingRequest, engine: Engine = in_process, tell: Callable[[str], object] = str) -> Path:
    """Pre-train a method, from where the same request stopped if it did; gives the file of weights.

    Beside it, as .md and .json, lies its model card. All processes that torchrun starts call this; the first of them
    looks over the corpus (by `engine`), writes, and tells.
    """
    from upstreams.pretraining.loop import processes
    from upstreams.pretraining.processes import joined

    rank, world = processes()
    with joined(request.device), only_first_tells(rank):
        training = first_alone(partial(prepared, request, engine, world))
        say = tell if rank == 0 else str
        if done(training):
            state_of(training.out).unlink(missing_ok=True)
            say(f"nothing left to do: {training.out} is there already")
            return training.out
        for text in training.remarks:
            say(text)
        say(f"{training.pool}, {training.recipe.steps:,} steps of {training.recipe.batch} stretches")
        train(training, Share(rank, world, request.accumulate), say)
    return training.out


def prepared(request: PretrainingRequest, engine: Engine, world: int) -> Training:
    """As `plan`, with room for what is to be written; raises UserError where there is none."""
    training = plan(request, engine, world)
    if not done(training):
        refuse_foreign_cards(training.out)
        make_room(training.out, room_for(training.method))
    return training


def plan(request: PretrainingRequest, engine: Engine, world: int = 1) -> Training:
    """Look over the audio and draw the weights; raises UserError or UpstreamError for what cannot be done."""
    from upstreams.pretraining.methods import method as build

    out = usable(request.output)
    method = build(request.method, request.size, request.seed)
    recipe = recipe_of(method.recipe, request)
    if recipe.batch % (world * request.accumulate):
        raise UserError(
            f"a batch of {recipe.batch} cannot be shared evenly by {world} processes in {request.accumulate} parts"
            " each; give another --batch or --accumulate"
        )
    pool = pool_of(request.corpus, request.home, dict(request.data), engine, request.skip_bad, request.only)
    weights = chosen(request.metadata, method.metadata, pool)
    samples = round(recipe.seconds * method.sample_rate)
    labels = {kind: pool.labels(kind) for kind in weights}
    crops = SegmentOrder(pool.clips, method.sample_rate, samples, recipe.batch, request.seed, labels)
    recipe = recipe_of(method.recipe, request, crops.seconds)
    asked = identity(request, method, recipe, pool)
    remarked = remarks(request.metadata, method.metadata, pool)
    method = with_metadata(method, weights, request.strength)
    return Training(request, out, pool, method, recipe, crops, asked, weights, remarked)


def recipe_of(recipe: Recipe, request: PretrainingRequest, seconds: float | None = None) -> Recipe:
    """The method's recipe with what the user says otherwise; a shorter training warms up for a tenth of it at most.

    seconds: of audio in a row on average, which hours are counted in; without it, as if no clip were shorter than those
    of the recipe.
    """
    if request.steps is not None and request.hours is not None:
        raise UserError("--steps and --hours both say how long to train; give one of them")
    for name in ("lr", "hours"):
        value = getattr(request, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g} is no positive number; give one, or leave it out")
    own = {name: getattr(request, name) for name in ("batch", "lr", "precision")}
    recipe = replace(recipe, **{name: value for name, value in own.items() if value is not None})
    steps = recipe.steps if request.steps is None else request.steps
    if request.hours is not None:
        steps = max(1, round(request.hours * 3600 / (recipe.batch * (seconds or recipe.seconds))))
    warmup = recipe.warmup if steps >= recipe.steps else min(recipe.warmup, steps // 10)
    return replace(recipe, steps=steps, warmup=warmup, final_lr=min(recipe.final_lr, recipe.lr))


def identity(request: PretrainingRequest, method: Method, recipe: Recipe, pool: TrainingAudio) -> dict[str, Any]:
    """What was asked for. Device, processes and parts are left free, so that a training may go on elsewhere, though
    what is drawn at random follows from them too. method: before it is given labels.
    """
    name, _, query = request.method.partition("?")
    asked = {"method": name, "options": sorted(filter(None, query.split("&"))), "size": request.size}
    weights = chosen(request.metadata, method.metadata, pool)
    number = with_metadata(method, weights, request.strength).version
    code = f"{version('ssl-bench')}, version {number} of the method"
    rest = {"seed": request.seed, "data": pool.digest, "code": code, "half": request.half}
    labels = {"metadata": told(weights), "labels": pool.digest_of(weights)} if weights else {}
    given = {"strength": request.strength, "only": request.only, "origin": dict(method.origin) or None}
    given = {**labels, **{name: value for name, value in given.items() if value is not None}}
    return dict(json.loads(json.dumps({**asked, **rest, **asdict(recipe), **given})))


def room_for(method: Method) -> int:
    """Room that is needed at most: for weights, and for two states, one of them being written."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    learnt = sum(each.numel() * each.element_size() for each in method.parameters() if each.requires_grad)
    return weights + 2 * (weights + 2 * learnt) + (1 << 20)


def done(training: Training) -> bool:
    """Whether the weights are there; raises UserError for others, or another training's state, in their place."""
    for path in (training.out, state_of(training.out)):
        if there := facts_in(path):
            refuse_another(path, there["identity"], training.identity)
    return training.out.exists()


def train(training: Training, share: Share, tell: Callable[[str], object]) -> None:
    """Make the steps that are left, and write the weights in the end."""
    request = training.request
    history, run = learn(training, share, tell, f"pretrain {request.method} {request.size}")
    if share.rank == 0:
        write(training, history, run)
        tell(f"wrote {training.out} and its model card {training.out.with_suffix('.md').name}")
        tell(f"try it: {usage(request)}")


def learn(
    training: Training, share: Share, tell: Callable[[str], object], title: str
) -> tuple[History, dict[str, Any]]:
    """Make the steps that are left, keeping a state to resume from on the way; the loss curve, and how it went."""
    from benchmark.features.encoding import exact, keep_memory
    from upstreams.pretraining.loop import fit

    keep_memory()
    exact(training.request.device)
    request, steps = training.request, training.recipe.steps
    state, clock = _resumed(training, tell if share.rank == 0 else str)
    readers = request.readers or max(1, min(MOST_READERS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    pinned = request.device.startswith("cuda")
    bar = training_bar(title) if share.rank == 0 else nullcontext(str)
    with bar as show:
        history = fit(
            training.method, lambda first: batches(training.crops, first, steps, share, readers, pinned),
            _schedule(training), state=state,
            save=partial(_keep, training, clock), report=partial(_report, clock, show),
        )  # fmt: skip
    return history, {**clock.facts(), **share._asdict(), "readers": readers}


def _schedule(training: Training) -> Schedule:
    from upstreams.pretraining.loop import Schedule

    request, recipe = training.request, training.recipe
    every = max(1, min(EVERY, recipe.steps // 100))
    often = min(SAVE_SELDOM, max(SAVE_OFTEN, room_for(training.method) / 4e6))
    if request.save_every is not None:
        often = request.save_every
    return Schedule(recipe, request.seed, request.accumulate, request.device, every, often)


def _keep(training: Training, clock: Stopwatch, state: TrainingState) -> None:
    done(training)  # refuses what another command wrote there meanwhile
    facts = {"identity": training.identity, "state": state.facts, "clock": clock.facts()}
    write_state(training.out, state.tensors, facts)


def _report(clock: Stopwatch, show: Callable[[TrainingProgress], object], at: TrainingProgress) -> None:
    clock.waiting = at.waiting
    show(at)


def _resumed(training: Training, tell: Callable[[str], object]) -> tuple[TrainingState | None, Stopwatch]:
    from upstreams.pretraining.loop import TrainingState as Kept

    kept = read_state(training.out)
    if kept is None:
        return None, Stopwatch()
    tensors, facts = kept
    tell(f"goes on after step {facts['state']['step']:,}, from {state_of(training.out)}")
    return Kept(tensors, facts["state"]), Stopwatch(**facts["clock"])


def write(training: Training, history: History, run: dict[str, Any]) -> None:
    """Write the weights and their model card, all or nothing, and delete the state."""
    from upstreams.safety.checkpoints import not_finite

    tensors = {name: tensor.detach().cpu().clone() for name, tensor in training.method.exported().items()}
    if training.request.half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        if large := not_finite(tensors):
            raise UserError(f"{large[0]} has weights too large for --half; leave that out")
    facts = facts_of(training, history, tensors, run)
    done(training)
    with aside(training.out) as partial:
        kept = {name: facts[name] for name in ("method", "size", "seed", "weights", "recipe")}
        kept["data"] = {**facts["data"], "left_out": len(facts["data"]["left_out"])}
        write_tensors(partial, tensors, {"identity": training.identity, "card": kept})
        write_text(training.out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
        write_text(training.out.with_suffix(".md"), card(facts))
    state_of(training.out).unlink(missing_ok=True)
