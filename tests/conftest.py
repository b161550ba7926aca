"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from benchmark.engines.local import in_process
from benchmark.tasks import Task, load_tasks
from benchmark.values import Setup
from tests.benchmark.sounds import PROTOCOL, write_tones

if TYPE_CHECKING:
    from benchmark.run import Outcome

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("busy machine", deadline=None)  # time says nothing where others compute too
settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def _aliases_of_speechbrain() -> None:
    """Hypothesis asks every module for its file; SpeechBrain's aliases would import what is not installed."""
    for module in list(sys.modules.values()):
        if type(module).__module__ == "speechbrain.utils.importutils":
            module.__dict__.setdefault("__file__", None)


@dataclass(frozen=True)
class Answer:
    """What a command answered: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on standard error that is for the user."""
        lines = [line for line in self.err.splitlines() if line.startswith("bench: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@dataclass(frozen=True)
class Finished:
    """A run, where it read and wrote, and what came of it."""

    setup: Setup
    outcome: Outcome


Bench = Callable[..., Answer]


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of tones, read only."""
    return write_tones(tmp_path_factory.mktemp("corpora") / "tones")


@pytest.fixture(scope="session")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protocol file with a task of each kind on the corpus of tones."""
    path = tmp_path_factory.mktemp("protocol") / "tones.yaml"
    path.write_text(PROTOCOL, encoding="utf-8")
    return path


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    """Run `bench` with these arguments in this process."""
    from benchmark.cli.app import main
    from benchmark.features.encoding import load_upstream

    def run(*arguments: object) -> Answer:
        load_upstream.cache_clear()  # as in a process of its own
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture(scope="session")
def tasks(protocol: Path) -> dict[str, Task]:
    """The tasks of `protocol` by name."""
    return load_tasks(protocol).tasks


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder that read-only tests share, so that features are extracted once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def finished(tones: Path, tasks: dict[str, Task], home: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Every task of `protocol` run on `fbank`; read only."""
    from benchmark.run import run

    setup = Setup(home, tmp_path_factory.mktemp("results"), (("tones", str(tones)),))
    return Finished(setup, run(list(tasks.values()), ["fbank"], setup, in_process))
