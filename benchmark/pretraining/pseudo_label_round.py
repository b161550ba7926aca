"""A round of pseudo-labelling: embed, cluster, keep what can be trusted, tune."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.errors import Failure, UserError
from benchmark.features.descriptions import describe
from benchmark.features.store import extract, extraction, layout, path_of
from benchmark.files import aside, digest, write_text
from benchmark.pretraining import training as pretraining
from benchmark.pretraining.checkpoint_files import facts_in, make_room, refuse_another, state_of, write_tensors
from benchmark.pretraining.model_card import facts_of
from benchmark.pretraining.pseudo_label_card import told_of
from benchmark.pretraining.requests import Training
from benchmark.pretraining.segments import SegmentOrder, Share
from benchmark.pretraining.sources import TrainingAudio
from benchmark.values import Clip, Engine, Setup

if TYPE_CHECKING:
    from benchmark.pretraining.requests import Refinement
    from upstreams.pretraining.loop import History

TOLD = ("data", "recipe", "run", "curve")  # of a training


def perform(asked: Refinement, number: int, engine: Engine, tell: Callable[[str], object]) -> None:
    """Cluster the embeddings of the encoder there is, and tune that on the clusters, unless it is done already."""
    path = asked.weights(number)
    if done(asked, number):
        state_of(path).unlink(missing_ok=True)
        tell(f"round {number} is done already: {path}")
        return
    vectors = embeddings(f"{asked.name}@{asked.weights(number - 1)}", asked.pool.clips, asked.setup, engine)
    labels, facts = labelled(asked, number, vectors)
    tell(f"round {number}: {sentence(facts)}")
    training = prepared(asked, number, labels)
    make_room(path, pretraining.room_for(training.method))
    pretraining.done(training)
    train(training, number, facts, tell)


def done(asked: Refinement, number: int) -> bool:
    """Whether the weights after a round, and what is told of it, are there; raises UserError for others' weights."""
    path = asked.weights(number)
    if there := facts_in(path):
        kept = {name: value for name, value in there["identity"].items() if name != "labels"}
        refuse_another(path, kept, {**asked.identity, "round": number})
    return path.exists() and told_of(path) is not None


def embeddings(reference: str, clips: Sequence[Clip], setup: Setup, engine: Engine) -> np.ndarray:
    """Of whole clips, the last vector of an upstream's summary: (N, D) float32."""
    wanted = extraction(describe(reference, setup), "summary", clips)
    raise_first(list(extract([wanted], setup, engine).values()))
    found = {}
    for shard in layout(wanted):
        rows = np.load(path_of(wanted, shard, setup.home))
        found.update({clip.id: row[-1] for clip, row in zip(shard.clips, rows, strict=True)})
    return np.stack([found[clip.id] for clip in clips])


def raise_first(failures: Sequence[Failure]) -> None:
    """Raise the first of what went wrong, if anything did."""
    for failed in failures:
        raise UserError(failed.message) if failed.users else RuntimeError(f"{failed.where}: {failed.trace}")


def labelled(asked: Refinement, number: int, vectors: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The cluster (N,) of each clip, UNKNOWN for those that are left out, and what is told of them.

    Raises UserError where fewer than two clusters stay.
    """
    from upstreams.pretraining.clustering import clustered, comparable, trusted

    largest, points = asked.request.largest, comparable(vectors)
    clusters = clustered(points, asked.clusters, asked.seed(number))
    labels = trusted(points, clusters, asked.smallest, largest, asked.request.nearest)
    sizes = sorted(np.bincount(clusters).tolist(), reverse=True)
    kept = int(labels.max()) + 1
    if kept < 2:
        raise UserError(
            f"{kept} of {len(sizes)} clusters have {asked.smallest} to {largest} clips, where 2 are needed; the largest"
            f" have {', '.join(map(str, sizes[:5]))}; give other --clusters, --smallest or --largest"
        )
    counts = {"clips": len(labels), "kept_clips": int((labels >= 0).sum()), "clusters": len(sizes), "kept": kept}
    return labels, {**counts, "sizes": sizes, "speakers": match(asked.pool, clusters, labels)}


def match(pool: TrainingAudio, clusters: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    """How well all clusters, and what is kept of them, agree with the corpus's speakers, if it names any."""
    from upstreams.pretraining.clustering import agreement

    names = pool.labels("speaker")
    found = {}
    for what, numbers in (("all", clusters), ("kept", labels)):
        named = [place for place, name in enumerate(names) if name is not None and numbers[place] >= 0]
        if not named:
            return None
        found[what] = agreement(numbers[named], [str(names[place]) for place in named])._asdict()
    return found


def sentence(facts: dict[str, Any]) -> str:
    """What came of clustering."""
    clips = f"{facts['kept_clips']:,} of {facts['clips']:,} clips"
    speakers = facts["speakers"]
    match = f"; by their speakers, purity {speakers['kept']['purity']:.2f}" if speakers else ""
    return f"kept {facts['kept']:,} of {facts['clusters']:,} clusters, {clips}{match}"


def prepared(asked: Refinement, number: int, labels: np.ndarray) -> Training:
    """The training of a round, on the clips that have a label."""
    import torch

    from upstreams.pretraining.aam_softmax import KIND, MarginTuning
    from upstreams.pretraining.methods import METHODS

    module, path, seed = importlib.import_module(METHODS[asked.name]), asked.weights(number), asked.seed(number)
    network = module.network_of(str(asked.weights(number - 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = MarginTuning(network, int(labels.max()) + 1, asked.tuning, module.exported)
    places, recipe = np.flatnonzero(labels >= 0).tolist(), asked.tuning.recipe
    clips, rate = [asked.pool.clips[place] for place in places], method.sample_rate
    kinds = {KIND: labels[places].tolist()}
    crops = SegmentOrder(clips, rate, round(recipe.seconds * rate), recipe.batch, seed, kinds, balanced=False)
    own = {**asked.identity, "round": number, "labels": digest(labels.tolist())}
    request = replace(asked.request.training, out=path, seed=seed)
    return Training(request, path, asked.pool, method, recipe, crops, own, {}, [])


def train(training: Training, number: int, facts: dict[str, Any], tell: Callable[[str], object]) -> None:
    """Make the steps that are left, keep a state to resume from on the way, and write the weights in the end."""
    share = Share(parts=training.request.accumulate)
    history, run = pretraining.learn(training, share, tell, f"round {number} of {training.request.method}")
    write(training, history, run, facts)


def write(training: Training, history: History, run: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the weights and what is told of the round, all or nothing, and delete the state."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in training.method.exported().items()}
    told = facts_of(training, history, tensors, run)
    pretraining.done(training)
    with aside(training.out) as partial:
        write_tensors(partial, tensors, {"identity": training.identity})
        content = {**facts, **{name: told[name] for name in TOLD}}
        write_text(training.out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    state_of(training.out).unlink(missing_ok=True)
