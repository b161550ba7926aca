"""One round of pseudo-labelling: embed the clips, cluster them, select reliable clusters, tune the encoder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.errors import Failure, UserError
from benchmark.features.descriptions import describe
from benchmark.features.extraction import layout, make_extraction
from benchmark.features.store import extract_features, shard_path
from benchmark.files import atomic_path, digest, write_text
from benchmark.pretraining import training as pretraining
from benchmark.pretraining.checkpoint_files import (
    ensure_space,
    read_header_facts,
    refuse_other_identity,
    state_path,
    write_tensors,
)
from benchmark.pretraining.model_card import model_card_facts
from benchmark.pretraining.pseudo_label_card import read_card
from benchmark.pretraining.requests import Training
from benchmark.pretraining.segments import SegmentOrder, Share
from benchmark.pretraining.sources import TrainingAudio
from benchmark.values import Clip, Engine, Setup

if TYPE_CHECKING:
    from benchmark.pretraining.requests import Refinement
    from upstreams.pretraining.loop import History

CARD_FIELDS = ("data", "recipe", "run", "curve")  # facts of a training that the facts of a round include


def run_round(refinement: Refinement, number: int, engine: Engine, tell: Callable[[str], object]) -> None:
    """Cluster the embeddings of the encoder of the round before and tune it on them, unless the round is finished."""
    path = refinement.weights(number)
    if round_is_finished(refinement, number):
        state_path(path).unlink(missing_ok=True)
        tell(f"round {number} is finished already: {path}")
        return
    vectors = clip_embeddings(
        f"{refinement.name}@{refinement.weights(number - 1)}", refinement.audio.clips, refinement.setup, engine
    )
    labels, facts = cluster_labels(refinement, number, vectors)
    tell(f"round {number}: {clustering_sentence(facts)}")
    training = prepare_round(refinement, number, labels)
    ensure_space(path, pretraining.space_needed(training.method))
    pretraining.training_is_finished(training)
    train_round(training, number, facts, tell)


def round_is_finished(refinement: Refinement, number: int) -> bool:
    """Whether the weights and facts of a round exist; raises UserError for weights of another request there."""
    path = refinement.weights(number)
    if facts := read_header_facts(path):
        existing = {name: value for name, value in facts["identity"].items() if name != "labels"}
        refuse_other_identity(path, existing, {**refinement.identity, "round": number})
    return path.exists() and read_card(path) is not None


def clip_embeddings(reference: str, clips: Sequence[Clip], setup: Setup, engine: Engine) -> np.ndarray:
    """Return the last vector of an upstream's summary of each whole clip: (N, D) float32."""
    extraction = make_extraction(describe(reference, setup), "summary", clips)
    raise_first_failure(list(extract_features([extraction], setup, engine).values()))
    vectors = {}
    for shard in layout(extraction):
        rows = np.load(shard_path(extraction, shard, setup.home))
        vectors.update({clip.id: row[-1] for clip, row in zip(shard.clips, rows, strict=True)})
    return np.stack([vectors[clip.id] for clip in clips])


def raise_first_failure(failures: Sequence[Failure]) -> None:
    """Raise the first failure, if there is one."""
    for failed in failures:
        raise UserError(failed.message) if failed.users else RuntimeError(f"{failed.where}: {failed.trace}")


def cluster_labels(refinement: Refinement, number: int, vectors: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the cluster (N,) of each clip, UNKNOWN for clips left out, and the facts for the card.

    Raises UserError where fewer than two clusters are kept.
    """
    from upstreams.pretraining.clustering import kmeans_clusters, pseudo_labels_of, standardized_directions

    largest, points = refinement.request.largest, standardized_directions(vectors)
    clusters = kmeans_clusters(points, refinement.clusters, refinement.seed(number))
    labels = pseudo_labels_of(points, clusters, refinement.smallest, largest, refinement.request.nearest)
    sizes = sorted(np.bincount(clusters).tolist(), reverse=True)
    kept = int(labels.max()) + 1
    if kept < 2:
        raise UserError(
            f"{kept} of {len(sizes)} clusters have {refinement.smallest} to {largest} clips, and 2 are needed; the"
            f" largest have {', '.join(map(str, sizes[:5]))}; give other --clusters, --smallest or --largest"
        )
    counts = {"clips": len(labels), "kept_clips": int((labels >= 0).sum()), "clusters": len(sizes), "kept": kept}
    return labels, {**counts, "sizes": sizes, "speakers": speaker_agreement(refinement.audio, clusters, labels)}


def speaker_agreement(audio: TrainingAudio, clusters: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    """Return how well all clusters, and those that are kept, agree with the speakers; None where no clip has one."""
    from upstreams.pretraining.clustering import agreement

    names = audio.labels("speaker")
    agreements = {}
    for subset, numbers in (("all", clusters), ("kept", labels)):
        places = [place for place, name in enumerate(names) if name is not None and numbers[place] >= 0]
        if not places:
            return None
        agreements[subset] = agreement(numbers[places], [str(names[place]) for place in places])._asdict()
    return agreements


def clustering_sentence(facts: dict[str, Any]) -> str:
    """Return a summary of the clustering for the user."""
    clips = f"{facts['kept_clips']:,} of {facts['clips']:,} clips"
    speakers = facts["speakers"]
    purity = f"; speaker purity {speakers['kept']['purity']:.2f}" if speakers else ""
    return f"kept {facts['kept']:,} of {facts['clusters']:,} clusters, {clips}{purity}"


def prepare_round(refinement: Refinement, number: int, labels: np.ndarray) -> Training:
    """Return the training of a round, on the clips that have a pseudo-label."""
    import torch

    from upstreams.pretraining.aam_softmax import KIND, MarginTuning
    from upstreams.pretraining.methods import METHODS

    module, path, seed = (
        importlib.import_module(METHODS[refinement.name]),
        refinement.weights(number),
        refinement.seed(number),
    )
    network = module.network_of(str(refinement.weights(number - 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = MarginTuning(network, int(labels.max()) + 1, refinement.tuning, module.network_state)
    places, recipe = np.flatnonzero(labels >= 0).tolist(), refinement.tuning.recipe
    clips, rate = [refinement.audio.clips[place] for place in places], method.sample_rate
    kinds = {KIND: labels[places].tolist()}
    segments = SegmentOrder(clips, rate, round(recipe.seconds * rate), recipe.batch, seed, kinds, balanced=False)
    identity = {**refinement.identity, "round": number, "labels": digest(labels.tolist())}
    request = replace(refinement.request.training, out=path, seed=seed)
    return Training(request, path, refinement.audio, method, recipe, segments, identity, {}, [])


def train_round(training: Training, number: int, facts: dict[str, Any], tell: Callable[[str], object]) -> None:
    """Make the remaining steps, saving a state to resume from at intervals, and write the weights at the end."""
    share = Share(parts=training.request.accumulate)
    history, run = pretraining.make_steps(training, share, tell, f"round {number} of {training.request.method}")
    write_round(training, history, run, facts)


def write_round(training: Training, history: History, run: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the weights and the facts of the round, both or neither, and delete the state."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in training.method.exported().items()}
    card = model_card_facts(training, history, tensors, run)
    pretraining.training_is_finished(training)
    with atomic_path(training.out) as partial:
        write_tensors(partial, tensors, {"identity": training.identity})
        content = {**facts, **{name: card[name] for name in CARD_FIELDS}}
        write_text(training.out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    state_path(training.out).unlink(missing_ok=True)
