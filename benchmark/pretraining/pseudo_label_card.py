"""The model card beside the weights of an encoder tuned on pseudo-labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from benchmark.pretraining.model_card import usage_command_line
from benchmark.tables.markdown import code_block, table_lines, value_text

if TYPE_CHECKING:
    from benchmark.pretraining.requests import Refinement

TrialScores = Mapping[str, Mapping[str, Any]]  # value by split and metric
COLUMNS = (
    "round", "clusters kept", "clips kept", "purity, all and kept", "NMI, all and kept", "loss", "EER %, minDCF: valid",
    "test",
)  # fmt: skip


def pseudo_label_card_facts(refinement: Refinement, scores: Sequence[TrialScores | None]) -> dict[str, Any]:
    """Return the facts of the model card as JSON values. scores: before the first round, and after each one."""
    request = refinement.request
    numbers = range(1, request.rounds + 1)
    rounds = [facts for number in numbers if (facts := read_card(refinement.weights(number)))]
    return {
        "method": "pseudo-labels",
        "encoder": refinement.name,
        "start": {"file": str(request.start), "sha256": refinement.identity["start"], "scores": scores[0]},
        "task": None if request.verify is None else request.verify.model_dump(mode="json"),
        "settings": {
            "clusters": refinement.clusters,
            "smallest": refinement.smallest,
            "largest": request.largest,
            "nearest": request.nearest,
            "scale": refinement.tuning.scale,
            "margin": refinement.tuning.margin,
            "seed": request.training.seed,
            "half": request.training.half,
            **asdict(refinement.tuning.recipe),
        },
        "rounds": [{**facts, "scores": after} for facts, after in zip(rounds, scores[1:], strict=True)],
        "command": pseudo_label_command_line(refinement),
        "use": usage_command_line(request.training),
    }


def read_card(weights: Path) -> dict[str, Any] | None:
    """Return the JSON facts beside the weights, of a round or final; None where they are missing or damaged."""
    try:
        return dict(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def pseudo_label_command_line(refinement: Refinement) -> str:
    """Return the command line of the refinement, without options that do not change its result."""
    request, training = refinement.request, refinement.request.training
    words = ["bench", "pseudo-label", f"{refinement.name}@{request.start}", "--corpus", training.corpus]
    words += [
        "--rounds",
        str(request.rounds),
        "--clusters",
        str(refinement.clusters),
        "--smallest",
        str(refinement.smallest),
    ]
    words += ["--largest", str(request.largest), "--nearest", str(request.nearest), "--seed", str(training.seed)]
    words += ["--scale", str(refinement.tuning.scale), "--margin", str(refinement.tuning.margin)]
    for name in ("steps", "batch", "lr", "precision", "only", "out"):
        value = getattr(training, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--accumulate", str(training.accumulate)] * (training.accumulate > 1)
    words += ["--half"] * training.half + ["--skip-bad"] * training.skip_bad
    words += ["--verify", request.verify.name] if request.verify else []
    words += ["--protocol", str(request.protocol)] if request.verify and request.protocol else []
    words += [word for name, path in training.data for word in ("--data", f"{name}={path}")]
    return " ".join(map(quote, words))


def pseudo_label_card(facts: Mapping[str, Any]) -> str:
    """Return the model card in Markdown from the facts of `pseudo_label_card_facts`."""
    start, task = facts["start"], facts["task"]
    first = facts["rounds"][0]["data"]
    lines = [
        f"# {facts['encoder']}, tuned on pseudo-labels",
        "",
        f"Weights of `{facts['encoder']}`, tuned by `bench pseudo-label`, rounds: {len(facts['rounds'])}. In each round"
        " the embeddings of all clips are clustered, and the encoder is tuned to classify the clusters. It started from"
        f" {start['file']}, SHA-256 `{start['sha256']}`.",
        "",
        "## Use",
        "",
        *code_block(facts["use"]),
        "## Data",
        "",
        f"Corpus {first['corpus']}, split {first['split']}: {first['clips']:,} clips ({first['hours']:.2f} h), digest"
        f" `{first['digest']}`." + (f" Only clips with a label '{first['only']}'." if "only" in first else ""),
        "",
        "## Rounds",
        "",
        "No label value was used in training. For information only, purity and NMI (normalised mutual information)"
        " compare the clusters with the corpus's speakers, if it names any, and trials are scored before and after each"
        " round." + (f" The trials are those of the task {task['name']}." if task else ""),
        "",
        *table_lines(
            COLUMNS, [_before(start["scores"]), *map(_row, range(1, 1 + len(facts["rounds"])), facts["rounds"])]
        ),
        "",
        "## Settings",
        "",
        *table_lines(["", ""], [[key, value_text(value)] for key, value in facts["settings"].items()]),
        "",
        "## Run",
        "",
        *table_lines(["round", "seconds", "device"], [_run(*numbered) for numbered in enumerate(facts["rounds"], 1)]),
        "",
        "## Again",
        "",
        *code_block(facts["command"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def trial_scores_sentence(task: str, scores: TrialScores) -> str:
    """Return EER and minDCF of each split of a task as text."""
    texts = [f"EER {_number(metrics['eer'], 2)} % and minDCF {_number(metrics['min_dcf'], 3)} on {split}"
             for split, metrics in scores.items()]  # fmt: skip
    return f"{', '.join(texts)} of {task}"


def _before(scores: TrialScores | None) -> list[str]:
    return ["before", *[""] * 5, *_scores(scores)]


def _row(number: int, facts: Mapping[str, Any]) -> list[str]:
    speakers, curve = facts["speakers"], facts["curve"]
    agreement = [
        ", ".join(f"{speakers[clusters][name]:.3f}" for clusters in ("all", "kept")) if speakers else ""
        for name in ("purity", "nmi")
    ]
    loss = f"{curve[0]['terms']['loss']:.3g} to {curve[-1]['terms']['loss']:.3g}" if curve else ""
    clusters, clips = (
        f"{facts[kept]:,} of {facts[total]:,}" for kept, total in (("kept", "clusters"), ("kept_clips", "clips"))
    )
    return [str(number), clusters, clips, *agreement, loss, *_scores(facts["scores"])]


def _scores(scores: TrialScores | None) -> list[str]:
    if scores is None:
        return ["", ""]
    return [
        f"{_number(metrics['eer'], 2)}, {_number(metrics['min_dcf'], 3)}"
        for metrics in (scores["valid"], scores["test"])
    ]


def _run(number: int, facts: Mapping[str, Any]) -> list[str]:
    return [str(number), f"{facts['run']['seconds']:g}", facts["run"]["device"]]


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
