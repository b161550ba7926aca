"""Probes of single layers, beside the ordinary jobs and without a trace in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.data.manifest import prepare_manifest
from benchmark.engines.local import in_process
from benchmark.features.descriptions import describe
from benchmark.features.encoding import load_upstream
from benchmark.plan import make_sweeps
from benchmark.records import Record, Results
from benchmark.run import Outcome, run
from benchmark.tasks import Task
from benchmark.values import Setup, Sweep
from tests.benchmark.encoders import write_encoder
from tests.conftest import Bench

NAMES = ("words", "sounds", "same")
LATER = {"created", "seconds", "cost"}  # what a clock tells


class Probed:
    """Three tasks on an encoder of two layers, run without and with probes of its layers."""

    def __init__(self, folder: Path, tones: Path, tasks: dict[str, Task]) -> None:
        self.upstream = write_encoder(folder / "mine.py")
        self.tasks = [tasks[name].model_copy(update={"epochs": 4}) for name in NAMES]
        self.plain = Setup(folder / "home", folder / "plain", (("tones", str(tones)),))
        self.deep = replace(self.plain, results=folder / "deep", per_layer=True)
        self.told: list[str] = []
        self.ordinary = self.run(self.plain)
        self.both = self.run(self.deep)

    def run(self, setup: Setup) -> Outcome:
        load_upstream.cache_clear()
        outcome = run([*self.tasks], [self.upstream], setup, in_process, self.told.append)
        assert outcome.failures == []
        return outcome

    def layers(self) -> list[Record]:
        return [record for record in self.both.records if record.layer is not None]


@pytest.fixture(scope="module")
def probed(tones: Path, tasks: dict[str, Task], tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return Probed(tmp_path_factory.mktemp("probed"), tones, tasks)


def test_ordinary_jobs_and_the_table_are_what_they_are_without_probes(probed: Probed) -> None:
    beside = [record for record in probed.both.records if record.layer is None]
    plain = [record.model_dump(exclude=LATER) for record in probed.ordinary.records]
    assert [record.model_dump(exclude=LATER) for record in beside] == plain
    assert probed.both.table == probed.ordinary.table
    for record in beside:
        assert Results(probed.deep.results).outcomes(record) == Results(probed.plain.results).outcomes(record)


def test_every_layer_has_the_whole_grid_and_nothing_but_itself(probed: Probed) -> None:
    grid = {
        "words": [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)],
        "sounds": [(1e-2, 0), (1e-2, 1)],
        "same": [(None, 0)],
    }
    found = [(record.task["name"], record.layer, record.lr, record.seed) for record in probed.layers()]
    assert found == [(name, layer, *point) for name in NAMES for layer in (0, 1) for point in grid[name]]
    for record in probed.layers():
        assert record.layer_weights == [float(place == record.layer) for place in range(2)]
        assert (record.lr, record.seed, record.layer) in record.beside
        assert {layer for _, _, layer in record.beside} == {0, 1}
    assert len({record.id for record in probed.both.records}) == len(probed.both.records)


def test_layers_score_differently_and_the_better_one_is_what_an_untrained_head_chooses(probed: Probed) -> None:
    errors = {record.layer: record.valid["eer"] for record in probed.layers() if record.task["name"] == "same"}
    (chosen,) = [record for record in probed.ordinary.records if record.task["name"] == "same"]
    assert errors[0] != errors[1]
    assert chosen.valid["eer"] == min(errors.values())
    losses = {record.layer: record.curve[0][0] for record in probed.layers() if record.task["name"] == "words"}
    assert losses[0] != losses[1]


def test_a_layer_scores_as_an_upstream_that_has_no_other(probed: Probed, tmp_path: Path) -> None:
    text = Path(probed.upstream.removesuffix(":tiny")).read_text(encoding="utf-8")
    alone = tmp_path / "alone.py"
    cut = text.replace("layers, dim = 320, 400, 2", "layers, dim = 320, 400, 1").replace(
        "torch.stack([hidden, hidden + self.second(hidden).relu()], 2)",
        "(hidden + self.second(hidden).relu())[:, :, None]",
    )
    assert cut.count("400, 1, 16") == cut.count("[:, :, None]\n") == 1
    alone.write_text(cut, encoding="utf-8")
    setup = replace(probed.plain, results=tmp_path / "results")
    outcome = run(probed.tasks, [f"{alone}:tiny"], setup, in_process)
    assert outcome.failures == []
    top = [record for record in probed.layers() if record.layer == 1]
    for record, single in zip(top, outcome.records, strict=True):
        assert (record.task["name"], record.lr, record.seed) == (single.task["name"], single.lr, single.seed)
        losses = [loss for loss, _ in record.curve]
        assert losses == pytest.approx([loss for loss, _ in single.curve], rel=1e-4)
        assert record.test[record.metric] == pytest.approx(single.test[record.metric], abs=5)


def test_probes_can_be_added_later_and_are_done_once(probed: Probed) -> None:
    assert probed.run(probed.deep).trained == 0
    added = probed.run(replace(probed.plain, per_layer=True, results=probed.plain.results))
    assert added.trained == len(probed.layers())
    assert added.table == probed.both.table
    assert probed.run(probed.plain).trained == 0


def test_what_cannot_be_probed_is_told_in_one_line(
    tones: Path, tasks: dict[str, Task], home: Path, tmp_path: Path
) -> None:
    setup = Setup(home, tmp_path, (("tones", str(tones)),), per_layer=True)
    told: list[str] = []
    chosen = [tasks[name].model_copy(update={"epochs": 1}) for name in ("same", "letters")]
    outcome = run(chosen, ["fbank"], setup, in_process, told.append)
    assert [record.layer for record in outcome.records] == [None, None]
    assert told[1:] == [
        "no per-layer probes of fbank on same: the upstream has one layer",
        "no per-layer probes of letters: its head reads frames",
    ]


@pytest.mark.parametrize("features", ["live", "frames", "finetune"])
def test_heads_that_are_not_fed_summaries_have_no_probes(features: str, probed: Probed, tasks: dict[str, Task]) -> None:
    task = Task(**{**tasks["words"].model_dump(), "features": features})
    assert not any(sweep.by_layer for sweep in planned([task], probed))
    assert any(sweep.by_layer for sweep in planned([tasks["words"]], probed))


def planned(tasks: list[Task], probed: Probed) -> list[Sweep]:
    load_upstream.cache_clear()
    card = describe(probed.upstream, probed.deep)
    manifest = prepare_manifest("tones", probed.deep.home, dict(probed.deep.data))
    return make_sweeps(tasks, [card], {"tones": manifest}, probed.deep)


def test_folds_are_probed_each(probed: Probed, tasks: dict[str, Task]) -> None:
    task = Task(**{**tasks["words"].model_dump(), "folds": "session"})
    sweeps = planned([task], probed)
    assert [(sweep.fold, sweep.by_layer, len(sweep.jobs)) for sweep in sweeps] == [
        (f"session{fold}", by_layer, 8 if by_layer else 4) for fold in range(4) for by_layer in (False, True)
    ]
    assert len({job.id for sweep in sweeps for job in sweep.jobs}) == 4 * 12


def test_the_command_line_plans_and_runs_probes(
    bench: Bench, protocol: Path, probed: Probed, tones: Path, tmp_path: Path
) -> None:
    common: list[Any] = [probed.upstream, "--task", "same", "--protocol", protocol, "--data", f"tones={tones}"]
    common += ["--home", probed.plain.home, "--results", tmp_path, "--device", "cpu"]
    counts: Callable[[str], list[str]] = lambda out: [line for line in out.splitlines() if " jobs, " in line]  # noqa: E731
    before = bench("plan", *common, "--per-layer")
    assert "summary, by layer" in before.out
    assert counts(before.out)[0].startswith("3 jobs, 0 done, 3 to do")
    answer = bench("run", *common, "--per-layer")
    assert answer.code == 0
    assert "3 jobs done" in answer.out
    assert counts(bench("plan", *common).out)[0].startswith("1 jobs, 1 done, 0 to do")
