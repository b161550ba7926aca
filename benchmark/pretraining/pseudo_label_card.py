"""What is told of an encoder that was tuned on pseudo-labels, beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from benchmark.pretraining.model_card import usage
from benchmark.tables.markdown import code, plain, table

if TYPE_CHECKING:
    from benchmark.pretraining.requests import Refinement

Scores = Mapping[str, Mapping[str, Any]]  # by split and metric
COLUMNS = (
    "round", "clusters kept", "clips kept", "purity, all and kept", "NMI, all and kept", "loss", "EER %, minDCF: valid",
    "test",
)  # fmt: skip


def facts_of(asked: Refinement, scores: Sequence[Scores | None]) -> dict[str, Any]:
    """All that the card tells, as JSON values. scores: before the first round, and after each."""
    request = asked.request
    rounds = [told for number in range(1, request.rounds + 1) if (told := told_of(asked.weights(number)))]
    return {
        "method": "pseudo-labels",
        "encoder": asked.name,
        "start": {"file": str(request.start), "sha256": asked.identity["start"], "scores": scores[0]},
        "task": None if request.verify is None else request.verify.model_dump(mode="json"),
        "settings": {
            "clusters": asked.clusters,
            "smallest": asked.smallest,
            "largest": request.largest,
            "nearest": request.nearest,
            "scale": asked.tuning.scale,
            "margin": asked.tuning.margin,
            "seed": request.training.seed,
            "half": request.training.half,
            **asdict(asked.tuning.recipe),
        },
        "rounds": [{**told, "scores": after} for told, after in zip(rounds, scores[1:], strict=True)],
        "command": command(asked),
        "use": usage(request.training),
    }


def told_of(weights: Path) -> dict[str, Any] | None:
    """What is told beside the weights of a round or of them all, or None where that is gone or broken."""
    try:
        return dict(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def command(asked: Refinement) -> str:
    """The command that was given, without what does not change its result."""
    request, training = asked.request, asked.request.training
    words = ["bench", "pseudo-label", f"{asked.name}@{request.start}", "--corpus", training.corpus]
    words += ["--rounds", str(request.rounds), "--clusters", str(asked.clusters), "--smallest", str(asked.smallest)]
    words += ["--largest", str(request.largest), "--nearest", str(request.nearest), "--seed", str(training.seed)]
    words += ["--scale", str(asked.tuning.scale), "--margin", str(asked.tuning.margin)]
    for name in ("steps", "batch", "lr", "precision", "only", "out"):
        value = getattr(training, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--accumulate", str(training.accumulate)] * (training.accumulate > 1)
    words += ["--half"] * training.half + ["--skip-bad"] * training.skip_bad
    words += ["--verify", request.verify.name] if request.verify else []
    words += ["--protocol", str(request.protocol)] if request.verify and request.protocol else []
    words += [word for name, path in training.data for word in ("--data", f"{name}={path}")]
    return " ".join(map(quote, words))


def card(facts: Mapping[str, Any]) -> str:
    """The model card in Markdown, of what `facts_of` gathers."""
    start, task = facts["start"], facts["task"]
    first = facts["rounds"][0]["data"]
    lines = [
        f"# {facts['encoder']}, tuned on pseudo-labels",
        "",
        f"Weights of `{facts['encoder']}`, tuned by `bench pseudo-label`, rounds: {len(facts['rounds'])}. In each the"
        " embeddings of all clips are clustered, and the encoder learns to tell the clusters apart. It started from"
        f" {start['file']}, SHA-256 `{start['sha256']}`.",
        "",
        "## Use",
        "",
        *code(facts["use"]),
        "## Data",
        "",
        f"Corpus {first['corpus']}, split {first['split']}: {first['clips']:,} clips ({first['hours']:.2f} h), digest"
        f" `{first['digest']}`." + (f" Only clips with a label '{first['only']}'." if "only" in first else ""),
        "",
        "## Rounds",
        "",
        "No value of a label was used. Purity and NMI (normalised mutual information) compare clusters with the"
        " corpus's speakers, if it has any, and trials are scored before and after each round; both are told only."
        + (f" Trials are those of the task {task['name']}." if task else ""),
        "",
        *table(COLUMNS, [_before(start["scores"]), *map(_row, range(1, 1 + len(facts["rounds"])), facts["rounds"])]),
        "",
        "## Settings",
        "",
        *table(["", ""], [[key, plain(value)] for key, value in facts["settings"].items()]),
        "",
        "## Run",
        "",
        *table(["round", "seconds", "device"], [_run(*each) for each in enumerate(facts["rounds"], 1)]),
        "",
        "## Again",
        "",
        *code(facts["command"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def scored(task: str, scores: Scores) -> str:
    """In a sentence."""
    told = [f"EER {_number(found['eer'], 2)} % and minDCF {_number(found['min_dcf'], 3)} on {split}"
            for split, found in scores.items()]  # fmt: skip
    return f"{', '.join(told)} of {task}"


def _before(scores: Scores | None) -> list[str]:
    return ["before", *[""] * 5, *_scores(scores)]


def _row(number: int, told: Mapping[str, Any]) -> list[str]:
    speakers, curve = told["speakers"], told["curve"]
    match = [
        ", ".join(f"{speakers[what][name]:.3f}" for what in ("all", "kept")) if speakers else ""
        for name in ("purity", "nmi")
    ]
    loss = f"{curve[0]['terms']['loss']:.3g} to {curve[-1]['terms']['loss']:.3g}" if curve else ""
    clusters, clips = (
        f"{told[kept]:,} of {told[of]:,}" for kept, of in (("kept", "clusters"), ("kept_clips", "clips"))
    )
    return [str(number), clusters, clips, *match, loss, *_scores(told["scores"])]


def _scores(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["", ""]
    return [f"{_number(each['eer'], 2)}, {_number(each['min_dcf'], 3)}" for each in (scores["valid"], scores["test"])]


def _run(number: int, told: Mapping[str, Any]) -> list[str]:
    return [str(number), f"{told['run']['seconds']:g}", told["run"]["device"]]


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
