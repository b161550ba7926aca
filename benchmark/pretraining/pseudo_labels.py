"""Iterative pseudo-labelling (Cho et al., 2022): cluster an encoder's embeddings, tune it on the clusters, repeat."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmark.engines.local import in_process
from benchmark.errors import UserError
from benchmark.files import atomic_path, write_text
from benchmark.heads import head_card
from benchmark.pretraining import training as pretraining
from benchmark.pretraining.checkpoint_files import (
    checked_output,
    ensure_space,
    read_header_facts,
    refuse_foreign_cards,
    refuse_other_identity,
    write_tensors,
)
from benchmark.pretraining.pseudo_label_card import (
    pseudo_label_card,
    pseudo_label_card_facts,
    read_card,
    trial_scores_sentence,
)
from benchmark.pretraining.pseudo_label_round import raise_first_failure, run_round
from benchmark.pretraining.requests import PretrainingRequest, PseudoLabelRequest, Refinement
from benchmark.pretraining.sources import load_training_audio
from benchmark.records import Record
from benchmark.run import run
from benchmark.values import Engine

CLIPS_PER_CLUSTER = 10  # mean, by default
LARGE_CORPUS = 10_000  # clips, from which on the authors' smallest cluster size is the default
SMALLEST, AUTHORS_SMALLEST = 4, 8  # default least number of clips in a cluster that is kept


def pseudo_label_request(reference: str, training: PretrainingRequest, **options: Any) -> PseudoLabelRequest:
    """Return the request for NAME@FILE.

    Raises UserError for a reference other than NAME@FILE with an encoder of embeddings, or a file that does not exist.
    """
    from upstreams import split_reference
    from upstreams.pretraining.methods import METHODS
    from upstreams.safety.loading import expanded_path

    name, file, query = split_reference(reference)
    tunable = name in METHODS and hasattr(importlib.import_module(METHODS[name]), "network_of")
    if not tunable or not file or query:
        raise UserError(
            "pseudo-labels tune an encoder of embeddings from its file of weights, not"
            f" '{reference}'; give {name if tunable else 'dino'}@FILE"
        )
    path = expanded_path(file).absolute()
    if not path.is_file():
        raise UserError(f"there is no file {path}; give {name}@FILE")
    out = training.out or Path("pretrained") / f"{name}-pseudo-{training.seed}.safetensors"
    if out.expanduser().absolute() == path:
        raise UserError(f"--out {out} is the file to start from; give another")
    return PseudoLabelRequest(path, replace(training, method=name, out=out), **options)


def refine(request: PseudoLabelRequest, engine: Engine = in_process, tell: Callable[[str], object] = str) -> Path:
    """Cluster and tune for the requested number of rounds, and return the path of the final weights.

    An interrupted request resumes where it stopped. The model card is written beside the weights, as .md and .json,
    and the files of each round into a folder named .rounds.
    """
    from upstreams.pretraining.processes import processes

    if processes()[1] > 1:
        raise UserError("bench pseudo-label runs in one process; start it without torchrun")
    refinement = plan_refinement(request, engine)
    if refinement_is_finished(refinement):
        tell(f"nothing left to do: {refinement.out} exists already")
        return refinement.out
    refuse_foreign_cards(refinement.out)
    ensure_space(refinement.out, 2 * request.start.stat().st_size)
    tell(f"{refinement.audio}; {refinement.clusters:,} clusters, rounds: {request.rounds}")
    scores = [trial_scores(refinement, 0, request.start, engine, tell)]
    for number in range(1, request.rounds + 1):
        run_round(refinement, number, engine, tell)
        weights = write_final_weights(refinement) if number == request.rounds else refinement.weights(number)
        scores.append(trial_scores(refinement, number, weights, engine, tell))
    facts = pseudo_label_card_facts(refinement, scores)
    write_text(refinement.out.with_suffix(".md"), pseudo_label_card(facts))
    write_text(refinement.out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    tell(f"wrote {refinement.out} and its model card {refinement.out.with_suffix('.md').name}")
    tell(f"try it: {facts['use']}")
    return refinement.out


def plan_refinement(request: PseudoLabelRequest, engine: Engine = in_process) -> Refinement:
    """Inspect the audio and the encoder, and settle the options that depend on them.

    Raises UserError or UpstreamError for a request that cannot be carried out.
    """
    from upstreams.pretraining.aam_softmax import tuning_of
    from upstreams.pretraining.methods import METHODS

    training = request.training
    out = checked_output(training.output)
    tuning = tuning_of(importlib.import_module(METHODS[training.method]).network_of(str(request.start)))
    tuning = replace(
        tuning,
        recipe=pretraining.adjusted_recipe(tuning.recipe, training),
        scale=tuning.scale if request.scale is None else request.scale,
        margin=tuning.margin if request.margin is None else request.margin,
    )
    audio = load_training_audio(
        training.corpus, training.home, dict(training.data), engine, training.skip_bad, training.only
    )
    clusters = len(audio.clips) // CLIPS_PER_CLUSTER if request.clusters is None else request.clusters
    smallest = SMALLEST if len(audio.clips) < LARGE_CORPUS else AUTHORS_SMALLEST
    smallest = smallest if request.smallest is None else request.smallest
    refinement = Refinement(request, out, audio, clusters, smallest, tuning, {})
    check_refinement(refinement)
    return refinement._replace(identity=round_identity(refinement))


def check_refinement(refinement: Refinement) -> None:
    """Raise UserError for options that are out of range, by themselves or for the corpus."""
    request, tuning, clips = refinement.request, refinement.tuning, len(refinement.audio.clips)
    if request.rounds < 1:
        raise UserError(f"--rounds {request.rounds} leaves nothing to do; give 1 or more")
    batch, parts = tuning.recipe.batch, request.training.accumulate
    if batch % parts:
        raise UserError(f"a batch of {batch} cannot be taken in {parts} parts; give another --batch or --accumulate")
    if not 2 <= refinement.clusters <= clips:
        raise UserError(
            f"{clips:,} clips of {refinement.audio.corpus} cannot be grouped into {refinement.clusters:,} clusters;"
            " give --clusters of 2 or more, but no more than there are clips, or give more clips"
        )
    if not 1 <= refinement.smallest <= request.largest:
        raise UserError(
            f"no cluster can have {refinement.smallest} clips or more and {request.largest} or fewer; give a --smallest"
            " of at least 1, and no larger than --largest"
        )
    if not 0 < request.nearest <= 1:
        raise UserError(f"--nearest {request.nearest:g} is not a share of a cluster's clips; give one above 0, up to 1")
    if not 0 < tuning.scale < math.inf or not 0 <= tuning.margin < math.pi / 2:
        raise UserError(
            f"AAM-softmax cannot use --scale {tuning.scale:g} with --margin {tuning.margin:g}; give a scale above 0,"
            " and a margin of 0 or more, below 1.57"
        )
    verify = request.verify
    if verify is not None and "eer" not in head_card(verify.head, refinement.setup).metrics:
        raise UserError(f"--verify {verify.name} has no trials; give a task that has: see bench list tasks")


def round_identity(refinement: Refinement) -> dict[str, Any]:
    """Return what decides the weights after a round, besides its number and how they are stored."""
    from upstreams.pretraining.aam_softmax import MarginTuning
    from upstreams.safety.checkpoints import file_digest as file_digest

    request, tuning = refinement.request, refinement.tuning
    identity = {
        "method": "pseudo-labels", "encoder": refinement.name, "start": file_digest(request.start),
        "seed": request.training.seed,
        "data": refinement.audio.digest,
        "code": f"{pretraining.TRAINING_RELEASE}, version {MarginTuning.version} of the tuning",
        "clusters": refinement.clusters, "smallest": refinement.smallest, "largest": request.largest,
        "nearest": request.nearest, "scale": tuning.scale, "margin": tuning.margin, **asdict(tuning.recipe),
    }  # fmt: skip
    return dict(json.loads(json.dumps(identity)))


def final_identity(refinement: Refinement) -> dict[str, Any]:
    """Return what decides the final weights."""
    return {**refinement.identity, "rounds": refinement.request.rounds, "half": refinement.request.training.half}


def refinement_is_finished(refinement: Refinement) -> bool:
    """Whether the weights and a card with the requested trial scores exist.

    Raises UserError for weights of another request in their place.
    """
    if facts := read_header_facts(refinement.out):
        refuse_other_identity(refinement.out, facts["identity"], final_identity(refinement))
    verify, card = refinement.request.verify, read_card(refinement.out)
    complete = card is not None and (verify is None or card.get("task") == verify.model_dump(mode="json"))
    return complete and refinement.out.exists()


def trial_scores(
    refinement: Refinement, number: int, weights: Path, engine: Engine, tell: Callable[[str], object]
) -> dict[str, dict[str, Any]] | None:
    """Return the metrics of the task --verify by split, of the head that is best on validation; None without a task."""
    task = refinement.request.verify
    if task is None:
        return None
    outcome = run([task], [f"{refinement.name}@{weights}"], refinement.setup, engine)
    raise_first_failure(outcome.failures)
    best = min(outcome.records, key=validation_error)
    scores = {"valid": best.valid, "test": best.test}
    tell(f"{f'after round {number}' if number else 'before'}: {trial_scores_sentence(task.name, scores)}")
    return scores


def validation_error(record: Record) -> float:
    """The error on validation, infinite where the head diverged."""
    value = record.valid[record.metric]
    return math.inf if value is None else float(value)


def write_final_weights(refinement: Refinement) -> Path:
    """Write the weights of the last round as the final weights, unless these exist, and return their path."""
    from upstreams.safety.checkpoints import not_finite, read_weights

    if refinement.out.exists():
        return refinement.out
    tensors = read_weights(refinement.weights(refinement.request.rounds))
    if refinement.request.training.half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        if large := not_finite(tensors):
            raise UserError(f"{large[0]} has weights too large for half precision; leave out --half")
    ensure_space(refinement.out, sum(tensor.nbytes for tensor in tensors.values()) + (1 << 20))
    with atomic_path(refinement.out) as partial:
        write_tensors(partial, tensors, {"identity": final_identity(refinement)})
    return refinement.out
