"""The model card beside pre-trained weights: Markdown to read, and the same facts as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from shlex import quote
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.environment import device_name, package_versions
from benchmark.pretraining.label_weights import format_label_weights
from benchmark.tables.markdown import code_block, table_lines, value_text

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.pretraining.requests import PretrainingRequest, Training
    from upstreams.pretraining.loop import History

MAX_ROWS = 20  # the most rows of the loss curve, and lines of clips left out, that the Markdown shows


class CurveRow(NamedTuple):
    """A point of the loss curve.

    step: number of steps made. lr: learning rate of the last one. terms: means since the point before, by name.
    """

    step: int
    lr: float
    terms: dict[str, float]


def usage_command_line(request: PretrainingRequest) -> str:
    """Return the command line that runs the benchmark on the pre-trained weights."""
    return f"bench run {quote(request.method.partition('?')[0] + '@' + str(request.output))}"


def pretrain_command_line(request: PretrainingRequest) -> str:
    """Return the command line of the pre-training, without options that do not change its result."""
    words = ["bench", "pretrain", request.method, "--corpus", request.corpus]
    words += ["--size", request.size, "--seed", str(request.seed)]
    for name in ("steps", "hours", "batch", "lr", "precision", "out"):
        value = getattr(request, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += [] if request.metadata is None else ["--metadata", format_label_weights(dict(request.metadata))]
    words += [] if request.strength is None else ["--strength", str(request.strength)]
    words += ["--only", request.only] if request.only else []
    words += ["--accumulate", str(request.accumulate)] * (request.accumulate > 1)
    words += ["--half"] * request.half + ["--skip-bad"] * request.skip_bad
    words += [word for name, path in request.data for word in ("--data", f"{name}={path}")]
    return " ".join(map(quote, words))


def model_card_facts(
    training: Training, history: History, tensors: Mapping[str, Tensor], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the facts of the model card as JSON values. run: as `make_steps` in `training.py` returns it."""
    from upstreams.pretraining.optimization import learning_rate

    request, recipe, segments = training.request, training.recipe, training.segments
    rows = recipe.steps * recipe.batch
    labels = _labels(training)
    only = {"only": training.audio.only, "without": training.audio.without} if training.audio.only else {}
    origin = dict(training.method.origin)
    return {
        "method": request.method,
        "size": request.size,
        "seed": request.seed,
        "weights": sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
        "half": request.half,
        "data": {
            "corpus": training.audio.corpus,
            "split": training.audio.split,
            "digest": training.audio.digest,
            "clips": len(training.audio.clips),
            "hours": training.audio.hours,
            "hours_heard": rows * segments.seconds / 3600,
            "epochs": rows / len(segments),
            "left_out": training.audio.left_out,
            **only,
            **({"labels": labels} if labels else {}),
            **({} if request.strength is None else {"strength": request.strength}),
        },
        **({"origin": origin} if origin else {}),
        "recipe": asdict(recipe),
        "run": _run(request, run),
        "curve": [CurveRow(step, learning_rate(recipe, step - 1), terms)._asdict() for step, terms in history],
        "command": pretrain_command_line(request),
        "use": usage_command_line(request),
    }


def _labels(training: Training) -> list[dict[str, Any]]:
    """The kinds of labels learnt from: weight, number of clips with such a label, and number of distinct values."""
    kinds = []
    for kind, weight in training.metadata.items():
        labels = [label for label in training.audio.labels(kind) if label is not None]
        kinds.append({"kind": kind, "weight": weight, "clips": len(labels), "values": len(set(labels))})
    return kinds


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
        "versions": package_versions(),
    }


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the model card in Markdown from the facts of `model_card_facts`."""
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
        *code_block(facts["use"]),
        "## Data",
        "",
        *table_lines(
            ["", ""],
            [
                ["corpus", f"{data['corpus']}, split {data['split']}"],
                ["digest of audio and names", f"`{data['digest']}`"],
                ["clips", f"{data['clips']:,} ({data['hours']:.2f} h)"],
                *_selection_rows(data),
                ["left out, because they could not be used", f"{len(data['left_out']):,}"],
                ["heard", f"{data['hours_heard']:.2f} h, {data['epochs']:.2f} epochs"],
            ],
        ),
        "",
        *_left_out(data["left_out"]),
        *[f"- {name}: SHA-256 `{sum_}`" for name, sum_ in facts.get("origin", {}).items()],
        "## Recipe",
        "",
        *table_lines(["", ""], [[key, value_text(value)] for key, value in recipe.items()]),
        "",
        "## Run",
        "",
        *table_lines(["", ""], [[key, _cell_text(value)] for key, value in run.items()]),
        "",
        "## Loss",
        "",
        *_curve(curve),
        "## Again",
        "",
        *code_block(facts["command"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _supervision(labels: Sequence[Mapping[str, Any]]) -> str:
    kinds = [f"{label['kind']} (weight {label['weight']:g})" for label in labels]
    return f"with labels of {' and '.join(kinds)}" if kinds else "without labels"


def _selection_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the data table on the selection of clips and on the labels learnt from."""
    only = [["only those with a label", f"{data['only']}; {data['without']:,} have none"]] if "only" in data else []
    labels = [
        [f"label {label['kind']}", f"{label['values']:,} values, on {label['clips']:,} clips"]
        for label in data.get("labels", [])
    ]
    strength = [["strength of the term on labels", value_text(data["strength"])]] if "strength" in data else []
    return only + labels + strength


def _left_out(clips: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"- left out: {' '.join(name.split())} {problem}" for name, problem in clips[:MAX_ROWS]]
    more = [f"- and {len(clips) - MAX_ROWS} more, which the .json file beside this one names"] * (len(clips) > MAX_ROWS)
    return [*lines, *more, ""] if lines else []


def thinned_curve(curve: Sequence[CurveRow], rows: int = MAX_ROWS) -> list[CurveRow]:
    """Return at most `rows` points, each with the means of the points since the one before."""
    ends = sorted({round((row + 1) * len(curve) / rows) for row in range(rows)} - {0})
    groups = [curve[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [group[-1]._replace(terms=_mean([point.terms for point in group])) for group in groups]


def _mean(terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(point[name] for point in terms) for name in terms[0]}


def _curve(curve: Sequence[CurveRow]) -> list[str]:
    if not curve:
        return ["No step was made: these are the initial weights.", ""]
    names = list(curve[0].terms)
    rows = [
        [str(point.step), *(f"{point.terms[name]:.4g}" for name in names), f"{point.lr:.3g}"]
        for point in thinned_curve(curve)
    ]
    note = f"Each row has the means since the row before; the .json file beside this one has all {len(curve)} points."
    return [note, "", *table_lines(["step", *names, "lr"], rows), ""]


def _cell_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return value_text(value)
