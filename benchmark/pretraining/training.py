"""Pre-training from start to end: choose the audio and its order, adjust the recipe, train, write the weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.engines.local import in_process
from benchmark.environment import cores
from benchmark.errors import UserError
from benchmark.files import atomic_path, write_text
from benchmark.pretraining.checkpoint_files import (
    checked_output,
    ensure_space,
    read_header_facts,
    read_state,
    refuse_foreign_cards,
    refuse_other_identity,
    state_path,
    write_state,
    write_tensors,
)
from benchmark.pretraining.label_weights import choose_label_weights, format_label_weights, label_remarks, with_metadata
from benchmark.pretraining.model_card import model_card, model_card_facts, usage_command_line
from benchmark.pretraining.processes import errors_reported_once, run_on_first_process_only
from benchmark.pretraining.progress import Stopwatch, training_bar
from benchmark.pretraining.requests import PretrainingRequest, Training
from benchmark.pretraining.segments import SegmentOrder, Share, batches
from benchmark.pretraining.sources import TrainingAudio, load_training_audio
from benchmark.values import Engine

if TYPE_CHECKING:
    from upstreams.pretraining.loop import History, Schedule, TrainingProgress, TrainingState
    from upstreams.pretraining.methods import Method, Recipe

CURVE_INTERVAL = 20  # most steps between points of the loss curve
MAX_READERS = 16  # most threads that read audio, by default
SAVE_OFTEN, SAVE_SELDOM = 10.0, 300.0  # seconds between states: for small models, and for large ones
TRAINING_RELEASE = "0.1.0"  # the last release in which the weights of all methods changed


def pretrain(request: PretrainingRequest, engine: Engine = in_process, tell: Callable[[str], object] = str) -> Path:
    """Pre-train a method and return the path of its weights; an interrupted request resumes where it stopped.

    The model card is written beside the weights, as .md and .json. All processes that torchrun starts call this; only
    the first of them inspects the corpus (by `engine`), writes files and reports by `tell`.
    """
    from upstreams.pretraining.loop import processes
    from upstreams.pretraining.processes import process_group

    rank, world = processes()
    with process_group(request.device), errors_reported_once(rank):
        training = run_on_first_process_only(partial(prepare_training, request, engine, world))
        say = tell if rank == 0 else str
        if training_is_finished(training):
            state_path(training.out).unlink(missing_ok=True)
            say(f"nothing left to do: {training.out} exists already")
            return training.out
        for text in training.remarks:
            say(text)
        say(f"{training.audio}, {training.recipe.steps:,} steps of {training.recipe.batch} segments")
        train_and_write(training, Share(rank, world, request.accumulate), say)
    return training.out


def prepare_training(request: PretrainingRequest, engine: Engine, world: int) -> Training:
    """Return the plan of the training; raise UserError where its files cannot be written, or have too little space."""
    training = plan_training(request, engine, world)
    if not training_is_finished(training):
        refuse_foreign_cards(training.out)
        ensure_space(training.out, space_needed(training.method))
    return training


def plan_training(request: PretrainingRequest, engine: Engine, world: int = 1) -> Training:
    """Inspect the audio and initialize the weights.

    Raises UserError or UpstreamError for a request that cannot be carried out.
    """
    from upstreams.pretraining.methods import create_method as build

    out = checked_output(request.output)
    method = build(request.method, request.size, request.seed)
    recipe = adjusted_recipe(method.recipe, request)
    if recipe.batch % (world * request.accumulate):
        raise UserError(
            f"a batch of {recipe.batch} cannot be shared evenly by {world} processes in {request.accumulate} parts"
            " each; give another --batch or --accumulate"
        )
    audio = load_training_audio(
        request.corpus, request.home, dict(request.data), engine, request.skip_bad, request.only
    )
    weights = choose_label_weights(request.metadata, method.metadata, audio)
    samples = round(recipe.seconds * method.sample_rate)
    labels = {kind: audio.labels(kind) for kind in weights}
    segments = SegmentOrder(audio.clips, method.sample_rate, samples, recipe.batch, request.seed, labels)
    recipe = adjusted_recipe(method.recipe, request, segments.seconds)
    identity = training_identity(request, method, recipe, audio)
    remarks = label_remarks(request.metadata, method.metadata, audio)
    method = with_metadata(method, weights, request.strength)
    return Training(request, out, audio, method, recipe, segments, identity, weights, remarks)


def adjusted_recipe(recipe: Recipe, request: PretrainingRequest, seconds: float | None = None) -> Recipe:
    """Return the method's recipe with the user's changes; the warm-up is at most a tenth of a shortened training.

    seconds: mean duration of a row, to convert hours to steps; by default the duration of a whole segment.
    Raises UserError for options that are out of range or exclude each other.
    """
    if request.steps is not None and request.hours is not None:
        raise UserError("--steps and --hours both say how long to train; give one of them")
    for name in ("lr", "hours"):
        value = getattr(request, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g} is not a positive number; give one, or leave --{name} out")
    changes = {name: getattr(request, name) for name in ("batch", "lr", "precision")}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    steps = recipe.steps if request.steps is None else request.steps
    if request.hours is not None:
        steps = max(1, round(request.hours * 3600 / (recipe.batch * (seconds or recipe.seconds))))
    warmup = recipe.warmup if steps >= recipe.steps else min(recipe.warmup, steps // 10)
    return replace(recipe, steps=steps, warmup=warmup, final_lr=min(recipe.final_lr, recipe.lr))


def training_identity(
    request: PretrainingRequest, method: Method, recipe: Recipe, audio: TrainingAudio
) -> dict[str, Any]:
    """Return the settings that decide the weights, by name. method: without the term on labels.

    Device, processes and parts are left out, so that a training can be resumed elsewhere, although random draws
    depend on them too.
    """
    name, _, query = request.method.partition("?")
    settings = {"method": name, "options": sorted(filter(None, query.split("&"))), "size": request.size}
    weights = choose_label_weights(request.metadata, method.metadata, audio)
    number = with_metadata(method, weights, request.strength).version
    code = f"{TRAINING_RELEASE}, version {number} of the method"
    rest = {"seed": request.seed, "data": audio.digest, "code": code, "half": request.half}
    labels = {"metadata": format_label_weights(weights), "labels": audio.digest_of(weights)} if weights else {}
    optional = {"strength": request.strength, "only": request.only, "origin": dict(method.origin) or None}
    optional = {**labels, **{name: value for name, value in optional.items() if value is not None}}
    return dict(json.loads(json.dumps({**settings, **rest, **asdict(recipe), **optional})))


def space_needed(method: Method) -> int:
    """Return the most bytes that the files need: weights and two states, one of them being written."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    trainable = [tensor for tensor in method.parameters() if tensor.requires_grad]
    moments = 2 * sum(tensor.numel() * tensor.element_size() for tensor in trainable)  # of Adam
    return weights + 2 * (weights + moments) + (1 << 20)


def training_is_finished(training: Training) -> bool:
    """Whether the weights exist; raises UserError for weights or a state of another request in their place."""
    for path in (training.out, state_path(training.out)):
        if facts := read_header_facts(path):
            refuse_other_identity(path, facts["identity"], training.identity)
    return training.out.exists()


def train_and_write(training: Training, share: Share, tell: Callable[[str], object]) -> None:
    """Make the remaining steps and write the weights."""
    request = training.request
    history, run = make_steps(training, share, tell, f"pretrain {request.method} {request.size}")
    if share.rank == 0:
        write_weights(training, history, run)
        tell(f"wrote {training.out} and its model card {training.out.with_suffix('.md').name}")
        tell(f"try it: {usage_command_line(request)}")


def make_steps(
    training: Training, share: Share, tell: Callable[[str], object], title: str
) -> tuple[History, dict[str, Any]]:
    """Make the remaining steps, saving a state to resume from at intervals.

    Returns the loss curve, and facts of the run: times, processes and reading threads.
    """
    from benchmark.features.encoding import disable_tf32, keep_freed_memory
    from upstreams.pretraining.loop import fit

    keep_freed_memory()
    disable_tf32(training.request.device)
    request, steps = training.request, training.recipe.steps
    state, stopwatch = _resumed(training, tell if share.rank == 0 else str)
    readers = request.readers or max(1, min(MAX_READERS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    pinned = request.device.startswith("cuda")
    bar = training_bar(title) if share.rank == 0 else nullcontext(str)
    with bar as show:
        history = fit(
            training.method, lambda first: batches(training.segments, first, steps, share, readers, pinned),
            _schedule(training), state=state,
            save=partial(_save, training, stopwatch), report=partial(_report, stopwatch, show),
        )  # fmt: skip
    return history, {**stopwatch.facts(), **share._asdict(), "readers": readers}


def _schedule(training: Training) -> Schedule:
    from upstreams.pretraining.loop import Schedule

    request, recipe = training.request, training.recipe
    interval = max(1, min(CURVE_INTERVAL, recipe.steps // 100))
    seconds = min(SAVE_SELDOM, max(SAVE_OFTEN, space_needed(training.method) / 4e6))
    if request.save_every is not None:
        seconds = request.save_every
    return Schedule(recipe, request.seed, request.accumulate, request.device, interval, seconds)


def _save(training: Training, stopwatch: Stopwatch, state: TrainingState) -> None:
    training_is_finished(training)  # raises where another command has written its files there since
    facts = {"identity": training.identity, "state": state.facts, "clock": stopwatch.facts()}
    write_state(training.out, state.tensors, facts)


def _report(stopwatch: Stopwatch, show: Callable[[TrainingProgress], object], progress: TrainingProgress) -> None:
    stopwatch.waiting = progress.waiting
    show(progress)


def _resumed(training: Training, tell: Callable[[str], object]) -> tuple[TrainingState | None, Stopwatch]:
    from upstreams.pretraining.loop import TrainingState

    saved = read_state(training.out)
    if saved is None:
        return None, Stopwatch()
    tensors, facts = saved
    tell(f"resumes after step {facts['state']['step']:,}, from {state_path(training.out)}")
    return TrainingState(tensors, facts["state"]), Stopwatch(**facts["clock"])


def write_weights(training: Training, history: History, run: dict[str, Any]) -> None:
    """Write the weights and their model card, both or neither, and delete the state."""
    from upstreams.safety.checkpoints import not_finite

    tensors = {name: tensor.detach().cpu().clone() for name, tensor in training.method.exported().items()}
    if training.request.half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        if large := not_finite(tensors):
            raise UserError(f"{large[0]} has weights too large for half precision; leave out --half")
    facts = model_card_facts(training, history, tensors, run)
    training_is_finished(training)
    with atomic_path(training.out) as partial:
        summary = {name: facts[name] for name in ("method", "size", "seed", "weights", "recipe")}
        summary["data"] = {**facts["data"], "left_out": len(facts["data"]["left_out"])}
        write_tensors(partial, tensors, {"identity": training.identity, "card": summary})
        write_text(training.out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
        write_text(training.out.with_suffix(".md"), model_card(facts))
    state_path(training.out).unlink(missing_ok=True)
