"""Commands that train encoders: `bench pretrain`, `bench pseudo-label` and `bench claims`."""

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
    checked_precision,
    corpus_paths,
    expand_home,
    read_protocol,
    setup_from_options,
)
from benchmark.cli.output import exit_on_failures, print_table, read_current_records, say
from benchmark.environment import resolve_device

CorpusOption = Annotated[
    str, typer.Option("--corpus", metavar="NAME|FOLDER", help="Name of a corpus, or a folder of audio.")
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="Audio segments per step; the learning rate is not scaled with it.")
]
RateOption = Annotated[float | None, typer.Option("--lr", help="Peak learning rate, at the end of the warm-up.")]
AccumulateOption = Annotated[
    int, typer.Option("--accumulate", min=1, help="Number of parts that a step is computed in, to save memory.")
]
AutocastOption = Annotated[
    str | None, typer.Option("--precision", help="Precision of training: fp32 or bf16 (autocast).")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="File to write, ending in .safetensors. [default: a file in pretrained/]")
]
HalfOption = Annotated[bool, typer.Option("--half", help="Store the weights in half precision.")]


def pretrain_command(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="Method: ssast, atst, dino, masr or pms; options follow it: 'ssast?variant=frame'."
        ),
    ],
    corpus: CorpusOption,
    size: Annotated[str, typer.Option("--size", help="Model size: mini, base or another size of the method.")] = "mini",
    steps: Annotated[
        int | None, typer.Option("--steps", min=0, help="Number of training steps; 0 writes the initial weights.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", help="Hours of audio to train on, instead of --steps.")
    ] = None,
    batch: BatchOption = None,
    lr: RateOption = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Random seed of the weights, the order of clips and all else.")
    ] = 0,
    accumulate: AccumulateOption = 1,
    precision: AutocastOption = None,
    out: OutOption = None,
    half: HalfOption = False,
    metadata: Annotated[
        str | None,
        typer.Option(
            "--metadata",
            metavar="KIND=WEIGHT,...|none",
            help="Kinds of labels to learn from, with weights: language=1,speaker=0.5. [default: those of the method]",
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="Factor of the loss term on labels. [default: 0.3]")
    ] = None,
    only: OnlyOption = None,
    save_every: SaveEveryOption = None,
    data: DataOption = None,
    home: HomeOption = HOME,
    workers: ReadersOption = 0,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
) -> None:
    """Pre-train an encoder on audio.

    An interrupted command, given again, resumes where it stopped. Steps, batch, learning rate and precision are by
    default those of the method's recipe.
    """
    from benchmark.engines.local import make_engine
    from benchmark.environment import cores
    from benchmark.pretraining.label_weights import parse_label_weights
    from benchmark.pretraining.requests import PretrainingRequest
    from benchmark.pretraining.training import pretrain

    request = PretrainingRequest(
        method, corpus, expand_home(home).resolve(), out, size, seed, steps, hours, batch, lr,
        None if precision is None else checked_precision(precision), accumulate, half,
        tuple(sorted(corpus_paths(data).items())),
        resolve_device(device), workers, save_every, skip_bad, parse_label_weights(metadata), only, strength,
    )  # fmt: skip
    pretrain(request, make_engine(workers or min(8, cores())), say)


def pseudo_label_command(
    reference: Annotated[
        str, typer.Argument(metavar="NAME@FILE", help="Encoder and its file of weights, such as dino@FILE.")
    ],
    corpus: CorpusOption,
    rounds: Annotated[int, typer.Option("--rounds", help="Number of rounds of clustering and tuning.")] = 1,
    clusters: Annotated[
        int | None, typer.Option("--clusters", help="Number of clusters. [default: one for every ten clips]")
    ] = None,
    smallest: Annotated[
        int | None,
        typer.Option("--smallest", help="Fewest clips in a cluster that is kept. [default: 4, or 8 from 10,000 clips]"),
    ] = None,
    largest: Annotated[int, typer.Option("--largest", help="Most clips in a cluster that is kept.")] = 50,
    nearest: Annotated[
        float, typer.Option("--nearest", help="Share of a cluster's clips that is kept: those nearest to its mean.")
    ] = 0.75,
    scale: Annotated[
        float | None, typer.Option("--scale", help="Scale of AAM-softmax. [default: depends on the encoder]")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", help="Margin of AAM-softmax, in radians. [default: depends on the encoder]"),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify", metavar="TASK", help="Task with trials to score before and after each round, for information."
        ),
    ] = None,
    protocol: Annotated[
        Path | None, typer.Option("--protocol", help="YAML file like tasks.yaml, with the task of --verify.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Number of training steps per round.")] = None,
    batch: BatchOption = None,
    lr: RateOption = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Random seed of the clusters, the order of clips and all else.")
    ] = 0,
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
    """Tune an encoder on clusters of its own embeddings.

    This is iterative pseudo-labelling (Cho et al., 2022): it runs in rounds and uses no labels. An interrupted command,
    given again, resumes where it stopped. Steps, batch, learning rate and precision are by default those of the
    encoder's size.
    """
    from benchmark.engines.local import make_engine
    from benchmark.environment import cores
    from benchmark.pretraining.pseudo_labels import pseudo_label_request, refine
    from benchmark.pretraining.requests import PretrainingRequest

    training = PretrainingRequest(
        "", corpus, expand_home(home).resolve(), out, seed=seed, steps=steps, batch=batch, lr=lr,
        precision=None if precision is None else checked_precision(precision), accumulate=accumulate, half=half,
        data=tuple(sorted(corpus_paths(data).items())), device=resolve_device(device), readers=workers,
        save_every=save_every, skip_bad=skip_bad, only=only,
    )  # fmt: skip
    task = None if verify is None else read_protocol(protocol).choose([verify], [])[0]
    request = pseudo_label_request(
        reference, training, rounds=rounds, clusters=clusters, smallest=smallest, largest=largest, nearest=nearest,
        scale=scale, margin=margin, verify=task, protocol=protocol,
    )  # fmt: skip
    refine(request, make_engine(workers or min(8, cores())), say)


def claims_command(
    systems: Annotated[
        list[str] | None,
        typer.Argument(metavar="SYSTEM", help="Systems: ssast, atst, dino, masr or pms. [default: all]"),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of pre-trainings of each variant.")] = 3,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of each pre-training. [default: those of its recipe]")
    ] = None,
    home: HomeOption = HOME,
    results: ResultsOption = Path("results"),
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Number of processes that share the work; 0: one per core.")
    ] = 0,
    device: DeviceOption = "auto",
    report: Annotated[bool, typer.Option("--report", help="Only write the tables again from the records.")] = False,
) -> None:
    """Test the main claims of the seed systems' papers.

    Pre-trains small versions of the systems, with and without what a paper claims to help, and compares them.
    """
    from benchmark.claims import execution, verdicts
    from benchmark.engines.local import make_engine
    from benchmark.environment import cores
    from benchmark.records import Results

    setup = setup_from_options(None, home, results / "claims", device, "fp32", None, 20.0, False)
    plan = execution.plan_claims(systems or [], seeds, execution.claim_tasks())
    if report:
        records = read_current_records(setup.results)
    else:
        workers = workers or cores()
        processes = make_engine(workers)
        plan = execution.with_checkpoints(plan, setup, steps, processes)
        say(plan.summary(workers))
        outcome = execution.run_claims(plan, setup, processes, say)
        exit_on_failures(outcome.failures, bool(outcome.records))
        records = outcome.records
    summary = verdicts.judge_claims(plan, records, Results(setup.results), steps)
    print_table(verdicts.COLUMNS, [row for verdict in summary.verdicts for row in verdicts.verdict_rows(verdict)])
    print_table(["system", "regime", *summary.tasks], summary.scores)
    for text in (*map(verdicts.verdict_sentence, summary.verdicts), *summary.notes):
        say(f"  {text}")
    for path in verdicts.write_claims(setup.results, summary):
        say(f"wrote {path}")
