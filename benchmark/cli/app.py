"""`bench`: the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import (
    HOME,
    REFERENCE,
    BudgetOption,
    DataOption,
    DeviceOption,
    HomeOption,
    LimitOption,
    PerLayerOption,
    PrecisionOption,
    ProtocolOption,
    ResultsOption,
    SkipBadOption,
    SuiteOption,
    TaskOption,
    UpstreamArgument,
    UpstreamArguments,
    WorkersOption,
    expanded,
    pairs_of,
    precision_of,
    protocol_of,
    setup_of,
    tasks_of,
)
from benchmark.cli.output import board_of, draw, families, finish, readable, say, show, warn, write_tables
from benchmark.cli.table_commands import compare, report
from benchmark.cli.training_commands import claims, pretrain, pseudo_label
from benchmark.environment import device_of
from benchmark.errors import as_users, is_users

app = typer.Typer(
    help="Is my speech or audio SSL checkpoint better, at what, and is the difference real?",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
data_app = typer.Typer(help="Corpora: list, prepare and check them.", no_args_is_help=True)
list_app = typer.Typer(help="What there is: upstreams, tasks, corpora, suites.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(list_app, name="list")


@app.command()
def run(
    upstreams: UpstreamArguments,
    task: TaskOption = None,
    suite: SuiteOption = None,
    protocol: ProtocolOption = None,
    data: DataOption = None,
    home: HomeOption = HOME,
    results: ResultsOption = Path("results"),
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    limit: LimitOption = None,
    budget: BudgetOption = 20.0,
    skip_bad: SkipBadOption = False,
    per_layer: PerLayerOption = False,
) -> None:
    """Run tasks on upstreams and write the leaderboard; the same command again goes on where it stopped."""
    from benchmark import run as harness
    from benchmark.engines.local import engine

    tasks = tasks_of(protocol, task, suite)
    setup = setup_of(data, home, results, device, precision, limit, budget, skip_bad, per_layer)
    outcome = harness.run(tasks, upstreams, setup, engine(workers), say)
    if outcome.records:
        names = [each.name for each in tasks]
        asked = {record.id for record in outcome.records}
        records = readable(setup.results, asked)
        board, outcomes = board_of(setup.results, records)
        counted = asked <= {record.id for record in records}  # unless a full run stands before this limited one
        own = board if counted else board_of(setup.results, outcome.records)[0]
        show({key: cell for key, cell in own.table.items() if key in outcome.table}, upstreams, names)
        write_tables(setup.results, board, outcomes, records, upstreams, names)
        say("nothing was left to do" if not outcome.trained else f"{outcome.trained} jobs done")
    finish(outcome.failures, bool(outcome.records))


@app.command()
def plan(
    upstreams: UpstreamArguments,
    task: TaskOption = None,
    suite: SuiteOption = None,
    protocol: ProtocolOption = None,
    data: DataOption = None,
    home: HomeOption = HOME,
    results: ResultsOption = Path("results"),
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    limit: LimitOption = None,
    budget: BudgetOption = 20.0,
    skip_bad: SkipBadOption = False,
    per_layer: PerLayerOption = False,
) -> None:
    """Show the jobs, what is done already, and the bytes to extract, before anything is encoded or trained."""
    from benchmark import run as harness
    from benchmark.engines.local import engine
    from benchmark.features.store import bytes_missing, hours_missing
    from benchmark.plan import extractions
    from benchmark.records import Results

    setup = setup_of(data, home, results, device, precision, limit, budget, skip_bad, per_layer)
    sweeps, failures, _ = harness.plan(tasks_of(protocol, task, suite), upstreams, setup, engine(workers))
    store = Results(setup.results)
    rest = [harness.remaining(sweep, store) for sweep in sweeps]
    rows = [
        [sweep.task.name, sweep.card.name, sweep.fold or "", sweep.features + ", by layer" * sweep.by_layer,
         str(len(sweep.jobs)), str(len(sweep.jobs) - len(left.jobs))]
        for sweep, left in zip(sweeps, rest, strict=True)
    ]  # fmt: skip
    draw(["task", "upstream", "fold", "features", "jobs", "done"], rows)
    for sentence in harness.without_probes(sweeps, setup):
        say(sentence)
    todo = sorted(extractions(sweep for sweep in rest if sweep.jobs), key=lambda each: each.card.name)
    sizes = [bytes_missing(each, setup.home) for each in todo]
    rows = [
        [each.card.name, each.view, str(len(each.clips)), f"{hours_missing(each, setup.home):.2f}", f"{size:,}"]
        for each, size in zip(todo, sizes, strict=True)
    ]
    if rows:
        draw(["to extract with", "view", "clips", "hours left", "bytes left"], rows)
    jobs, left = (sum(len(sweep.jobs) for sweep in some) for some in (sweeps, rest))
    say(
        f"{jobs} jobs, {jobs - left} done, {left} to do; {sum(sizes):,} bytes to extract into {setup.home / 'features'}"
    )
    finish(failures, bool(sweeps))


@app.command()
def rerun(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="A record's .json, or the id of a job.")],
    data: DataOption = None,
    home: HomeOption = HOME,
    results: ResultsOption = Path("results"),
    device: DeviceOption = "auto",
) -> None:
    """Do a recorded job again, elsewhere, and say whether the same comes out, and what differs where it does not."""
    from benchmark.reproduction import agreement
    from benchmark.reproduction import rerun as again

    path = again.find(record, expanded(results))
    found = again.read(path)
    setup = again.setup_of(found.record, expanded(home).resolve(), tuple(sorted(pairs_of(data).items())), device)
    repeat = again.rerun(path, found, setup)
    draw(["", "recorded", "now", ""], agreement.table(repeat))
    say(agreement.verdict(repeat))
    if not agreement.same(repeat):
        say(f"of the environment: {'; '.join(agreement.differences(repeat)) or 'nothing that was recorded differs'}")
    if not agreement.agrees(repeat):
        raise typer.Exit(1)


@app.command()
def extract(
    upstream: UpstreamArgument,
    audio: Annotated[list[Path], typer.Argument(metavar="AUDIO...", help="Files, or folders searched for files.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="An .npz file.")],
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    skip_bad: SkipBadOption = False,
) -> None:
    """Write layerwise features of any audio: one float32 array (T, L, D) per file, keyed by its path in the folder."""
    from benchmark.features.export import export

    count, skipped = export(upstream, audio, output, device_of(device), precision_of(precision), skip_bad)
    say(f"wrote {count} arrays to {output}" + (f", left out {skipped} files" if skipped else ""))


@app.command()
def check(upstream: UpstreamArgument, device: DeviceOption = "auto", precision: PrecisionOption = "fp32") -> None:
    """Test an upstream against the contract, explaining each fault, and measure what it costs."""
    from benchmark.features.encoding import upstream_of
    from upstreams.contract.check import check as examine

    findings = examine(upstream_of(upstream, device_of(device), precision_of(precision)))
    draw(["", "check", "finding"], [["ok" if each.ok else "FAIL", each.name, each.detail] for each in findings])
    failed = [each.name for each in findings if not each.ok]
    if failed:
        warn(f"{upstream} breaks the contract in {len(failed)} of {len(findings)} checks: {', '.join(failed)}")
        raise typer.Exit(1)
    say(f"{upstream} keeps the contract: {len(findings)} checks passed")


app.command()(report)
app.command()(compare)
app.command()(pretrain)
app.command("pseudo-label")(pseudo_label)
app.command()(claims)


@data_app.command("list")
def data_list(home: HomeOption = HOME) -> None:
    """Corpora, where they come from, and whether they are prepared."""
    _list_corpora(home)


@data_app.command("prepare")
def data_prepare(
    names: Annotated[list[str], typer.Argument(metavar="CORPUS...")],
    data: DataOption = None,
    protocol: ProtocolOption = None,
    home: HomeOption = HOME,
    workers: WorkersOption = 1,
) -> None:
    """Make or look over corpora, so that a run finds them ready, and check the tasks that use them, built in or not."""
    from benchmark.data.inspection import contradictions, notes, ruled_out
    from benchmark.data.manifest import prepare
    from benchmark.engines.local import engine

    known, unfit = protocol_of(None).tasks | protocol_of(protocol).tasks, False
    for name in names:
        manifest = prepare(name, home, pairs_of(data), engine(workers))
        bad = [clip for clip in manifest.clips if clip.problem]
        hours = sum(clip.seconds for clip in manifest.clips) / 3600
        say(
            f"{name}: {len(manifest.clips)} clips, {hours:.2f} h, {len(manifest.trials)} trials, digest"
            f" {manifest.digest[:12]}"
        )
        if bad:
            warn(
                f"{len(bad)} clips cannot be used, {bad[0].stretch.audio} first: it {bad[0].problem}; see: bench data"
                f" check {name}"
            )
        tasks = [each for each in known.values() if each.corpus == name]
        refused = ruled_out(manifest, tasks, home)
        for sentence in refused + contradictions(manifest, tasks):
            warn(sentence)
        for sentence in notes(manifest):
            say(f"{name}: {sentence}")
        unfit = unfit or bool(refused)
    if unfit:
        raise typer.Exit(2)


@data_app.command("check")
def data_check(
    names: Annotated[list[str], typer.Argument(metavar="CORPUS...")],
    data: DataOption = None,
    protocol: ProtocolOption = None,
    home: HomeOption = HOME,
    workers: WorkersOption = 1,
) -> None:
    """Count clips, hours and labels of each split, and check every task that uses the corpus: splits, leaks, trials."""
    from benchmark.data.inspection import notes, problems, summary
    from benchmark.data.manifest import prepare
    from benchmark.engines.local import engine

    faults = 0
    for name in names:
        manifest = prepare(name, home, pairs_of(data), engine(workers))
        draw(["label", "split", "clips", "hours", "values", "speakers"], summary(manifest))
        tasks = [each for each in protocol_of(protocol).tasks.values() if each.corpus == name]
        found = problems(manifest, tasks, home)
        for sentence in found:
            warn(sentence)
        for sentence in notes(manifest):
            say(f"{name}: {sentence}")
        faults += len(found)
        say(
            f"{name}: {len(found) or 'no'} problems; checked the audio of {len(manifest.clips)} clips and the splits of"
            f" {len(tasks)} tasks"
        )
    if faults:
        raise typer.Exit(2)


@list_app.command("upstreams")
def list_upstreams() -> None:
    """Encoders by name, and those of s3prl by family."""
    from upstreams import entries
    from upstreams.families import s3prl_entries

    own = [(f"{each.name}@FILE" if each.checkpoint else each.name, each) for each in entries().values()]
    draw(["upstream", "what it is"], [[reference, each.description] for reference, each in sorted(own)])
    there = s3prl_entries.entries()
    draw(["of s3prl", "s3prl:NAME, or s3prl:NAME@FILE with a checkpoint", "cannot run here"], families(there))
    say(f"also: {REFERENCE}")


@list_app.command("tasks")
def list_tasks(protocol: ProtocolOption = None) -> None:
    """Tasks of the built-in protocol, or of a file."""
    tasks = protocol_of(protocol).tasks.values()
    rows = [
        [
            each.name,
            each.corpus,
            each.target,
            each.head,
            f"{len(each.lr)} lr × {len(each.seeds)} seeds",
            str(each.epochs),
        ]
        for each in tasks
    ]
    draw(["task", "corpus", "target", "head", "grid", "epochs"], rows)


@list_app.command("corpora")
def list_corpora(home: HomeOption = HOME) -> None:
    """As `bench data list`."""
    _list_corpora(home)


@list_app.command("suites")
def list_suites(protocol: ProtocolOption = None) -> None:
    """Suites of tasks."""
    draw(["suite", "tasks"], [[name, ", ".join(tasks)] for name, tasks in protocol_of(protocol).suites.items()])


def _list_corpora(home: Path) -> None:
    from benchmark.corpora import corpora

    rows = []
    for name, each in corpora().items():
        ready = any((home / "manifests").glob(f"{name}-*.json"))
        origin = "made here" if each.make else f"--data {name}=FOLDER"
        rows.append([name, each.datasheet.splitlines()[0], origin, "yes" if ready else "no"])
    draw(["corpus", "what it is", "audio", "prepared"], rows)
    say("your own: --data NAME=FOLDER_OR_TABLE with tasks in a --protocol file; see README")


def main() -> None:
    """Entry point: mistakes of the user's end in one sentence and exit code 2, without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(prog_name="bench")
    except (SystemExit, KeyboardInterrupt) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # click's answer to ctrl-c
            raise
        warn("interrupted; the same command goes on where this one stopped")
        sys.exit(130)
    except Exception as error:
        error_ = as_users(error)
        if not is_users(error_):
            raise
        warn(str(error_))
        sys.exit(2)
