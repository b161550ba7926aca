"""`bench pretrain`, `bench pseudo-label` and `bench claims`: the commands that train encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import (
    HOME,
    DataOption,
    DeviceOption,
    HomeOption,
    OnlyOption,
    ReadersOption,
    ResultsOption,
    SaveEveryOption,
    SkipBadOption,
    expanded,
    pairs_of,
    precision_of,
    protocol_of,
    setup_of,
)
from benchmark.cli.output import draw, finish, readable, say
from benchmark.environment import device_of

CorpusOption = Annotated[str, typer.Option("--corpus", metavar="NAME|FOLDER", help="A corpus, or any folder of audio.")]
BatchOption = Annotated[int | None, typer.Option("--batch", min=1, help="Stretches in a step; --lr stays.")]
RateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate at the end of the warm-up.")]
AccumulateOption = Annotated[int, typer.Option("--accumulate", min=1, help="Parts of a step, to save memory.")]
AutocastOption = Annotated[str | None, typer.Option("--precision", help="fp32 or bf16 (autocast).")]
OutOption = Annotated[Path | None, typer.Option("--out", help="A .safetensors file; by default in pretrained/.")]
HalfOption = Annotated[bool, typer.Option("--half", help="Store the weights in half precision.")]


def pretrain(
    method: Annotated[
        str, typer.Argument(help="ssast, atst, dino, masr or pms, with its options: 'ssast?variant=frame'.")
    ],
    corpus: CorpusOption,
    size: Annotated[str, typer.Option("--size", help="mini, base or another one of the method.")] = "mini",
    steps: Annotated[int | None, typer.Option("--steps", min=0, help="0 writes the weights it starts from.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="Of audio to hear, instead of --steps.")] = None,
    batch: BatchOption = None,
    lr: RateOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, order and all else that is drawn.")] = 0,
    accumulate: AccumulateOption = 1,
    precision: AutocastOption = None,
    out: OutOption = None,
    half: HalfOption = False,
    metadata: Annotated[
        str | None,
        typer.Option(
            "--metadata",
            metavar="KIND=WEIGHT,...|none",
            help="Kinds of labels to learn from too: language=1,speaker=0.5. [default: the method's own, if any]",
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="Of what labels add to the loss. [default: 0.3]")
    ] = None,
    only: OnlyOption = None,
    save_every: SaveEveryOption = None,
    data: DataOption = None,
    home: HomeOption = HOME,
    workers: ReadersOption = 0,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
) -> None:
    """Pre-train an encoder on audio; the same command again goes on where it stopped."""
    from benchmark.engines.local import engine
    from benchmark.environment import cores
    from benchmark.pretraining.label_weights import parsed
    from benchmark.pretraining.requests import PretrainingRequest
    from benchmark.pretraining.training import pretrain

    request = PretrainingRequest(
        method, corpus, expanded(home).resolve(), out, size, seed, steps, hours, batch, lr,
        None if precision is None else precision_of(precision), accumulate, half, tuple(sorted(pairs_of(data).items())),
        device_of(device), workers, save_every, skip_bad, parsed(metadata), only, strength,
    )  # fmt: skip
    pretrain(request, engine(workers or min(8, cores())), say)


def pseudo_label(
    reference: Annotated[str, typer.Argument(metavar="NAME@FILE", help="An encoder, such as dino@FILE.")],
    corpus: CorpusOption,
    rounds: Annotated[int, typer.Option("--rounds", help="Of clustering and tuning.")] = 1,
    clusters: Annotated[
        int | None, typer.Option("--clusters", help="To make. [default: one for each ten clips]")
    ] = None,
    smallest: Annotated[
        int | None, typer.Option("--smallest", help="Fewest clips of one that is kept. [default: 4; of many clips 8]")
    ] = None,
    largest: Annotated[int, typer.Option("--largest", help="Most clips of one that is kept.")] = 50,
    nearest: Annotated[float, typer.Option("--nearest", help="Share of a cluster's clips that is kept.")] = 0.75,
    scale: Annotated[float | None, typer.Option("--scale", help="Of the softmax with a margin.")] = None,
    margin: Annotated[float | None, typer.Option("--margin", help="Of that softmax, in radians.")] = None,
    verify: Annotated[
        str | None,
        typer.Option("--verify", metavar="TASK", help="A task with trials, told before and after each round."),
    ] = None,
    protocol: Annotated[
        Path | None, typer.Option("--protocol", help="A file like tasks.yaml that --verify names a task of.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of a round.")] = None,
    batch: BatchOption = None,
    lr: RateOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of clusters, order and all else that is drawn.")] = 0,
    accumulate: AccumulateOption = 1,
    precision: AutocastOption = None,
    out: OutOption = None,
    half: HalfOption = False,
    only: OnlyOption = None,
    save_every: SaveEveryOption = None,
    data: DataOption = None,
    home: HomeOption = HOME,
    workers: ReadersOption = 0,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
) -> None:
    """Tune an encoder on clusters of its own embeddings, round by round; no label of the corpus is used."""
    from benchmark.engines.local import engine
    from benchmark.environment import cores
    from benchmark.pretraining.pseudo_labels import refine, request_of
    from benchmark.pretraining.requests import PretrainingRequest

    training = PretrainingRequest(
        "", corpus, expanded(home).resolve(), out, seed=seed, steps=steps, batch=batch, lr=lr,
        precision=None if precision is None else precision_of(precision), accumulate=accumulate, half=half,
        data=tuple(sorted(pairs_of(data).items())), device=device_of(device), readers=workers, save_every=save_every,
        skip_bad=skip_bad, only=only,
    )  # fmt: skip
    task = None if verify is None else protocol_of(protocol).choose([verify], [])[0]
    request = request_of(
        reference, training, rounds=rounds, clusters=clusters, smallest=smallest, largest=largest, nearest=nearest,
        scale=scale, margin=margin, verify=task, protocol=protocol,
    )  # fmt: skip
    refine(request, engine(workers or min(8, cores())), say)


def claims(
    systems: Annotated[
        list[str] | None, typer.Argument(metavar="SYSTEM", help="ssast, atst, dino, masr or pms; without any: all.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Pre-trainings of each kind.")] = 3,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of each. [default: those of its recipe]")] = None,
    home: HomeOption = HOME,
    results: ResultsOption = Path("results"),
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that share the work; 0: one a core.")] = 0,
    device: DeviceOption = "auto",
    report: Annotated[bool, typer.Option("--report", help="Make the tables anew from the records alone.")] = False,
) -> None:
    """Pre-train the seed systems in miniature, and re-run the contrasts that their papers' headlines rest on."""
    from benchmark.claims import execution, verdicts
    from benchmark.engines.local import engine
    from benchmark.environment import cores

    setup = setup_of(None, home, results / "claims", device, "fp32", None, 20.0, False)
    plan = execution.plan(systems or [], seeds, execution.tasks_of())
    if report:
        records = readable(setup.results)
    else:
        workers = workers or cores()
        processes = engine(workers)
        plan = execution.with_checkpoints(plan, setup, steps, processes)
        say(plan.told(workers))
        outcome = execution.perform(plan, setup, processes, say)
        finish(outcome.failures, bool(outcome.records))
        records = outcome.records
    told = verdicts.reach(plan, records, setup, steps)
    draw(verdicts.COLUMNS, [row for verdict in told.verdicts for row in verdicts.cells(verdict)])
    draw(["system", "regime", *told.tasks], told.scores)
    for text in (*map(verdicts.sentence, told.verdicts), *told.notes):
        say(f"  {text}")
    for path in verdicts.write(setup.results, told):
        say(f"wrote {path}")
