"""The commands of `bench`, and its entry point."""

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
    ProtocolFileOption,
    ProtocolOption,
    ResultsOption,
    SkipBadOption,
    SuiteOption,
    TaskOption,
    UpstreamArgument,
    UpstreamArguments,
    WorkersOption,
    checked_precision,
    corpus_paths,
    expand_home,
    read_protocol,
    selected_tasks,
    setup_from_options,
)
from benchmark.cli.output import (
    exit_on_failures,
    family_rows,
    print_leaderboard,
    print_table,
    read_board,
    read_current_records,
    say,
    warn,
    write_tables,
)
from benchmark.cli.table_commands import compare_command, pack_command, report_command
from benchmark.cli.training_commands import claims_command, pretrain_command, pseudo_label_command
from benchmark.environment import resolve_device
from benchmark.errors import as_user_error, is_user_error

app = typer.Typer(
    help="Benchmark self-supervised speech and audio encoders: which is better, on which tasks, significantly?",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
data_app = typer.Typer(help="List, prepare and check corpora.", no_args_is_help=True)
list_app = typer.Typer(help="List upstreams, tasks, corpora or suites.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(list_app, name="list")


@app.command("run")
def run_command(
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
    """Run tasks on upstreams and write the leaderboard.

    An interrupted command, given again, resumes where it stopped.
    """
    from benchmark import run as harness
    from benchmark.engines.local import make_engine

    tasks = selected_tasks(protocol, task, suite)
    setup = setup_from_options(data, home, results, device, precision, limit, budget, skip_bad, per_layer)
    outcome = harness.run(tasks, upstreams, setup, make_engine(workers), say)
    if outcome.records:
        names = [task_.name for task_ in tasks]
        ids = {record.id for record in outcome.records}
        records = read_current_records(setup.results, ids)
        board, outcomes = read_board(setup.results, records)
        included = ids <= {record.id for record in records}  # not where a full run outranks this limited one
        own = board if included else read_board(setup.results, outcome.records)[0]
        print_leaderboard({key: cell for key, cell in own.table.items() if key in outcome.table}, upstreams, names)
        write_tables(setup.results, board, outcomes, records, upstreams, names)
        say("nothing was left to do" if not outcome.trained else f"{outcome.trained} jobs done")
    exit_on_failures(outcome.failures, bool(outcome.records))


@app.command("plan")
def plan_command(
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
    """Show the jobs of a run, and what is left to do.

    Shows how many jobs are done and the size of the features to extract; nothing is encoded or trained.
    """
    from benchmark import run as harness
    from benchmark.engines.local import make_engine
    from benchmark.features.store import bytes_missing, hours_missing
    from benchmark.plan import distinct_extractions
    from benchmark.records import Results

    setup = setup_from_options(data, home, results, device, precision, limit, budget, skip_bad, per_layer)
    sweeps, failures, _ = harness.plan(selected_tasks(protocol, task, suite), upstreams, setup, make_engine(workers))
    store = Results(setup.results)
    rest = [harness.remaining(sweep, store) for sweep in sweeps]
    rows = [
        [sweep.task.name, sweep.card.name, sweep.fold or "", sweep.features + ", by layer" * sweep.by_layer,
         str(len(sweep.jobs)), str(len(sweep.jobs) - len(left.jobs))]
        for sweep, left in zip(sweeps, rest, strict=True)
    ]  # fmt: skip
    print_table(["task", "upstream", "fold", "features", "jobs", "done"], rows)
    for sentence in harness.without_probes(sweeps, setup):
        say(sentence)
    todo = sorted(
        distinct_extractions(sweep for sweep in rest if sweep.jobs), key=lambda extraction: extraction.card.name
    )
    sizes = [bytes_missing(extraction, setup.home) for extraction in todo]
    rows = [
        [
            extraction.card.name,
            extraction.view,
            str(len(extraction.clips)),
            f"{hours_missing(extraction, setup.home):.2f}",
            f"{size:,}",
        ]
        for extraction, size in zip(todo, sizes, strict=True)
    ]
    if rows:
        print_table(["to extract with", "view", "clips", "hours left", "bytes left"], rows)
    jobs, left = (sum(len(sweep.jobs) for sweep in group) for group in (sweeps, rest))
    say(
        f"{jobs} jobs, {jobs - left} done, {left} to do; {sum(sizes):,} bytes to extract into {setup.home / 'features'}"
    )
    exit_on_failures(failures, bool(sweeps))


@app.command("rerun")
def rerun_command(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="JSON file of a record, or the id of its job.")],
    data: DataOption = None,
    home: HomeOption = HOME,
    results: ResultsOption = Path("results"),
    device: DeviceOption = "auto",
) -> None:
    """Run a recorded job again and compare it with the record.

    Compares scores, epoch, outcomes and environment. The record is not changed. Exits with 1 where the score lies
    outside the interval of the recorded one.
    """
    from benchmark.reproduction import agreement, rerun

    recorded = rerun.find_recorded_job(record, expand_home(results))
    setup = rerun.recorded_setup(
        recorded.record, expand_home(home).resolve(), tuple(sorted(corpus_paths(data).items())), device
    )
    result = rerun.rerun_job(recorded, setup)
    print_table(["", "recorded", "now", ""], agreement.agreement_rows(result))
    say(agreement.agreement_sentence(result))
    if not agreement.identical(result):
        differences = agreement.environment_differences(result)
        say(f"differences in the environment: {'; '.join(differences) or 'none in what was recorded'}")
    if not agreement.agrees_within_interval(result):
        raise typer.Exit(1)


@app.command("extract")
def extract_command(
    upstream: UpstreamArgument,
    audio: Annotated[
        list[Path], typer.Argument(metavar="AUDIO...", help="Audio files, or folders that are searched for them.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, ending in .npz.")],
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    skip_bad: SkipBadOption = False,
) -> None:
    """Write the features of all layers for audio files.

    The .npz file has one float32 array per audio file, of shape (frames, layers, dimension), keyed by the path of the
    file in its folder.
    """
    from benchmark.features.export import export

    count, skipped = export(upstream, audio, output, resolve_device(device), checked_precision(precision), skip_bad)
    say(f"wrote {count} arrays to {output}" + (f", left out {skipped} files" if skipped else ""))


@app.command("check")
def check_command(
    upstream: UpstreamArgument, device: DeviceOption = "auto", precision: PrecisionOption = "fp32"
) -> None:
    """Check that an upstream meets the interface contract.

    Explains each violation, and measures the computational cost.
    """
    from benchmark.features.encoding import load_upstream
    from upstreams.contract.check import check_contract as examine

    findings = examine(load_upstream(upstream, resolve_device(device), checked_precision(precision)))
    print_table(
        ["", "check", "finding"],
        [["ok" if finding.ok else "FAIL", finding.name, finding.detail] for finding in findings],
    )
    failed = [finding.name for finding in findings if not finding.ok]
    if failed:
        warn(f"{upstream} breaks the contract in {len(failed)} of {len(findings)} checks: {', '.join(failed)}")
        raise typer.Exit(1)
    say(f"{upstream} keeps the contract: {len(findings)} checks passed")


app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("pack")(pack_command)
app.command("pretrain")(pretrain_command)
app.command("pseudo-label")(pseudo_label_command)
app.command("claims")(claims_command)


@data_app.command("list")
def data_list(home: HomeOption = HOME) -> None:
    """List corpora, where their audio comes from, and whether they are prepared."""
    _list_corpora(home)


@data_app.command("prepare")
def data_prepare(
    names: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="Names of corpora; see: bench list corpora.")],
    data: DataOption = None,
    protocol: ProtocolFileOption = None,
    home: HomeOption = HOME,
    workers: WorkersOption = 1,
) -> None:
    """Prepare corpora in advance of a run, and check all tasks that use them.

    Generated corpora are written; others are inspected where they are.
    """
    from benchmark.data.inspection import corpus_notes, label_contradictions, task_errors
    from benchmark.data.manifest import prepare_manifest
    from benchmark.engines.local import make_engine

    known, refused_any = read_protocol(None).tasks | read_protocol(protocol).tasks, False
    for name in names:
        manifest = prepare_manifest(name, home, corpus_paths(data), make_engine(workers))
        bad = [clip for clip in manifest.clips if clip.problem]
        hours = sum(clip.seconds for clip in manifest.clips) / 3600
        say(
            f"{name}: {len(manifest.clips)} clips, {hours:.2f} h, {len(manifest.trials)} trials, digest"
            f" {manifest.digest[:12]}"
        )
        if bad:
            warn(
                f"{len(bad)} clips cannot be used; the first is {bad[0].stretch.audio}: it {bad[0].problem}; see:"
                f" bench data check {name}"
            )
        tasks = [task for task in known.values() if task.corpus == name]
        refused = task_errors(manifest, tasks, home)
        for sentence in refused + label_contradictions(manifest, tasks):
            warn(sentence)
        for sentence in corpus_notes(manifest):
            say(f"{name}: {sentence}")
        refused_any = refused_any or bool(refused)
    if refused_any:
        raise typer.Exit(2)


@data_app.command("check")
def data_check(
    names: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="Names of corpora; see: bench list corpora.")],
    data: DataOption = None,
    protocol: ProtocolFileOption = None,
    home: HomeOption = HOME,
    workers: WorkersOption = 1,
) -> None:
    """Count the clips, hours and labels of each split, and check all tasks that use the corpus.

    Checks the audio, the splits of each task, leaks between splits, and trials. Exits with 2 if there are problems.
    """
    from benchmark.data.inspection import corpus_notes, corpus_problems, corpus_summary
    from benchmark.data.manifest import prepare_manifest
    from benchmark.engines.local import make_engine

    faults = 0
    for name in names:
        manifest = prepare_manifest(name, home, corpus_paths(data), make_engine(workers))
        print_table(["label", "split", "clips", "hours", "values", "speakers"], corpus_summary(manifest))
        tasks = [task for task in read_protocol(protocol).tasks.values() if task.corpus == name]
        problems = corpus_problems(manifest, tasks, home)
        for sentence in problems:
            warn(sentence)
        for sentence in corpus_notes(manifest):
            say(f"{name}: {sentence}")
        faults += len(problems)
        say(
            f"{name}: {len(problems) or 'no'} problems; checked the audio of {len(manifest.clips)} clips and the splits"
            f" of {len(tasks)} tasks"
        )
    if faults:
        raise typer.Exit(2)


@list_app.command("upstreams")
def list_upstreams() -> None:
    """List upstreams by name, and those of s3prl by family."""
    from upstreams import entries
    from upstreams.families import s3prl_entries

    named = [(f"{entry.name}@FILE" if entry.checkpoint else entry.name, entry) for entry in entries().values()]
    print_table(["upstream", "what it is"], [[reference, entry.description] for reference, entry in sorted(named)])
    hub = s3prl_entries.s3prl_entries()
    print_table(
        ["s3prl family", "s3prl:NAME, or s3prl:NAME@FILE with a checkpoint", "cannot run here because"],
        family_rows(hub),
    )
    say(f"also: {REFERENCE}")


@list_app.command("tasks")
def list_tasks(protocol: ProtocolFileOption = None) -> None:
    """List the built-in tasks, or those of a file."""
    tasks = read_protocol(protocol).tasks.values()
    rows = [
        [
            task.name,
            task.corpus,
            task.target,
            task.head,
            f"{len(task.lr)} lr × {len(task.seeds)} seeds",
            str(task.epochs),
        ]
        for task in tasks
    ]
    print_table(["task", "corpus", "target", "head", "grid", "epochs"], rows)


@list_app.command("corpora")
def list_corpora(home: HomeOption = HOME) -> None:
    """List corpora, as `bench data list` does."""
    _list_corpora(home)


@list_app.command("suites")
def list_suites(protocol: ProtocolFileOption = None) -> None:
    """List suites and their tasks."""
    print_table(
        ["suite", "tasks"], [[name, ", ".join(tasks)] for name, tasks in read_protocol(protocol).suites.items()]
    )


def _list_corpora(home: Path) -> None:
    from benchmark.corpora import registered_corpora

    rows = []
    for name, corpus in registered_corpora().items():
        ready = any((home / "manifests").glob(f"{name}-*.json"))
        origin = "generated" if corpus.make else f"--data {name}=FOLDER"
        rows.append([name, corpus.datasheet.splitlines()[0], origin, "yes" if ready else "no"])
    print_table(["corpus", "what it is", "audio", "prepared"], rows)
    say("to use your own: --data NAME=FOLDER_OR_TABLE, with tasks in a --protocol file; see README.md")


def main() -> None:
    """Run the command line; a user error ends with one sentence and exit code 2, without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(prog_name="bench")
    except (SystemExit, KeyboardInterrupt) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # the exit code of click after ctrl-c
            raise
        warn("interrupted; the same command resumes where this one stopped")
        sys.exit(130)
    except Exception as error:
        readable = as_user_error(error)
        if not is_user_error(readable):
            raise
        warn(str(readable))
        sys.exit(2)
