"""What is told of a pre-trained model, beside its weights: Markdown to read, and the same facts as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from shlex import quote
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.environment import device_name, installed
from benchmark.pretraining.label_weights import told
from benchmark.tables.markdown import code, plain, table

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.pretraining.requests import PretrainingRequest, Training
    from upstreams.pretraining.loop import History

ROWS = 20  # of the loss curve that the Markdown shows


class CurveRow(NamedTuple):
    """Means of the terms since the point before. step: steps done by then. lr: of the last of them."""

    step: int
    lr: float
    terms: dict[str, float]


def usage(request: PretrainingRequest) -> str:
    """The command that runs the benchmark on what was pre-trained."""
    return f"bench run {quote(request.method.partition('?')[0] + '@' + str(request.output))}"


def command(request: PretrainingRequest) -> str:
    """The command that was given, without what does not change its result."""
    words = ["bench", "pretrain", request.method, "--corpus", request.corpus]
    words += ["--size", request.size, "--seed", str(request.seed)]
    for name in ("steps", "hours", "batch", "lr", "precision", "out"):
        value = getattr(request, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += [] if request.metadata is None else ["--metadata", told(dict(request.metadata))]
    words += [] if request.strength is None else ["--strength", str(request.strength)]
    words += ["--only", request.only] if request.only else []
    words += ["--accumulate", str(request.accumulate)] * (request.accumulate > 1)
    words += ["--half"] * request.half + ["--skip-bad"] * request.skip_bad
    words += [word for name, path in request.data for word in ("--data", f"{name}={path}")]
    return " ".join(map(quote, words))


def facts_of(
    training: Training, history: History, tensors: Mapping[str, Tensor], run: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the card tells, as JSON values. run: how it went, see `pretraining`."""
    from upstreams.pretraining.optimization import learning_rate

    request, recipe, crops = training.request, training.recipe, training.crops
    rows = recipe.steps * recipe.batch
    labels = _labels(training)
    only = {"only": training.pool.only, "without": training.pool.without} if training.pool.only else {}
    origin = dict(training.method.origin)
    return {
        "method": request.method,
        "size": request.size,
        "seed": request.seed,
        "weights": sum(each.numel() for each in tensors.values() if each.is_floating_point()),
        "half": request.half,
        "data": {
            "corpus": training.pool.corpus,
            "split": training.pool.split,
            "digest": training.pool.digest,
            "clips": len(training.pool.clips),
            "hours": training.pool.hours,
            "hours_heard": rows * crops.seconds / 3600,
            "epochs": rows / len(crops),
            "left_out": training.pool.left_out,
            **only,
            **({"labels": labels} if labels else {}),
            **({} if request.strength is None else {"strength": request.strength}),
        },
        **({"origin": origin} if origin else {}),
        "recipe": asdict(recipe),
        "run": _run(request, run),
        "curve": [CurveRow(step, learning_rate(recipe, step - 1), terms)._asdict() for step, terms in history],
        "command": command(request),
        "use": usage(request),
    }


def _labels(training: Training) -> list[dict[str, Any]]:
    """The kinds that were learnt from: their weights, clips that have one, and how many there are."""
    found = []
    for kind, weight in training.metadata.items():
        labels = [label for label in training.pool.labels(kind) if label is not None]
        found.append({"kind": kind, "weight": weight, "clips": len(labels), "values": len(set(labels))})
    return found


def _run(request: PretrainingRequest, run: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    seconds = run["seconds"]
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(request.device),
        "processes": run["world"],
        "parts of a step": run["parts"],
        "threads": torch.get_num_threads(),
        "readers": run["readers"],
        "seconds": round(seconds, 1),
        "share of it waiting for data": round(run["waited"] / seconds, 4),
        "resumed": run["resumed"],
        "versions": installed(),
    }


def card(facts: Mapping[str, Any]) -> str:
    """The model card in Markdown, of what `facts_of` gathers."""
    data, run, recipe = facts["data"], facts["run"], facts["recipe"]
    curve = [CurveRow(**point) for point in facts["curve"]]
    lines = [
        f"# {facts['method']}, size {facts['size']}, seed {facts['seed']}",
        "",
        f"{facts['weights']:,} weights{' in half precision' if facts['half'] else ''}, pre-trained by `bench pretrain`"
        f" for {recipe['steps']:,} steps {_supervision(data.get('labels', []))}.",
        "",
        "## Use",
        "",
        *code(facts["use"]),
        "## Data",
        "",
        *table(
            ["", ""],
            [
                ["corpus", f"{data['corpus']}, split {data['split']}"],
                ["digest of audio and names", f"`{data['digest']}`"],
                ["clips", f"{data['clips']:,} ({data['hours']:.2f} h)"],
                *_chosen(data),
                ["left out, because they could not be used", f"{len(data['left_out']):,}"],
                ["heard", f"{data['hours_heard']:.2f} h, {data['epochs']:.2f} epochs"],
            ],
        ),
        "",
        *_left_out(data["left_out"]),
        *[f"- {name}: SHA-256 `{sum_}`" for name, sum_ in facts.get("origin", {}).items()],
        "## Recipe",
        "",
        *table(["", ""], [[key, plain(value)] for key, value in recipe.items()]),
        "",
        "## Run",
        "",
        *table(["", ""], [[key, _told(value)] for key, value in run.items()]),
        "",
        "## Loss",
        "",
        *_curve(curve),
        "## Again",
        "",
        *code(facts["command"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _supervision(labels: Sequence[Mapping[str, Any]]) -> str:
    told = [f"{each['kind']} (weight {each['weight']:g})" for each in labels]
    return f"with labels of {' and '.join(told)}" if told else "without labels"


def _chosen(data: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table on data: which clips were taken, and what is known of the labels that were learnt from."""
    only = [["only those with a label", f"{data['only']}; {data['without']:,} have none"]] if "only" in data else []
    labels = [
        [f"label {each['kind']}", f"{each['values']:,} values, on {each['clips']:,} clips"]
        for each in data.get("labels", [])
    ]
    strength = [["strength of the term on labels", plain(data["strength"])]] if "strength" in data else []
    return only + labels + strength


def _left_out(clips: Sequence[tuple[str, str]]) -> list[str]:
    told = [f"- left out: {' '.join(name.split())} {problem}" for name, problem in clips[:ROWS]]
    more = [f"- and {len(clips) - ROWS} more, which the .json beside this names"] * (len(clips) > ROWS)
    return [*told, *more, ""] if told else []


def thinned(curve: Sequence[CurveRow], rows: int = ROWS) -> list[CurveRow]:
    """So many points at most, each the mean of those since the one before."""
    ends = sorted({round((row + 1) * len(curve) / rows) for row in range(rows)} - {0})
    groups = [curve[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [group[-1]._replace(terms=_mean([point.terms for point in group])) for group in groups]


def _mean(terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(each[name] for each in terms) for name in terms[0]}


def _curve(curve: Sequence[CurveRow]) -> list[str]:
    if not curve:
        return ["No step was made: these are the weights that training starts from.", ""]
    names = list(curve[0].terms)
    rows = [[str(at.step), *(f"{at.terms[name]:.4g}" for name in names), f"{at.lr:.3g}"] for at in thinned(curve)]
    told = f"Means of the steps since the row before; all {len(curve)} points are in the .json beside this."
    return [told, "", *table(["step", *names, "lr"], rows), ""]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return plain(value)
