"""A run that is killed, or whose disk fills up, loses nothing that was done; the same command resumes."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark import files
from tests.conftest import Bench

ROOT = Path(__file__).parent.parent.parent
# Where tests run as a job in the background, Ctrl-C is ignored, which a process inherits: this one heeds it.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " from benchmark.cli.app import main; main()"
)
UPSTREAMS = ["fbank", "mfcc", "spectrogram"]
PROTOCOL = """
tasks:
  words: {corpus: tones, target: keyword, head: classification, lr: [1e-3, 1e-2], seeds: [0, 1], epochs: 20, batch: 8}
  same: {corpus: tones, target: verify, head: cosine}
  letters:
    corpus: tones
    target: text
    head: transcription
    head_args: {projection: 16, hidden: 16, recurrent_layers: 1, stride: 3, dropout: 0.0}
    lr: [1e-2]
    seeds: [0]
    epochs: 3
"""


class Run:
    """One `bench run` in a process of its own, over and over in the same folders."""

    def __init__(self, folder: Path, tones: Path, workers: int) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "mine.yaml").write_text(PROTOCOL)
        self.arguments = [
            "run", *UPSTREAMS, "--protocol", "mine.yaml", "--data", f"tones={tones}", "--home", "home",
            "--results", "results", "--device", "cpu", "--workers", str(workers),
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", START, *self.arguments], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def finish(self) -> str:
        process = self.start()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said

    def made(self) -> int:
        """Files under home and results, partial ones too."""
        return sum(len(names) for part in ("home", "results") for _, _, names in os.walk(self.folder / part))

    def board(self) -> str:
        return (self.folder / "results" / "leaderboard.csv").read_text()

    def records(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.glob("results/runs/**/*.json")}


@pytest.fixture(scope="module")
def undisturbed(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The leaderboard of a run that nothing interrupted."""
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run", tones, workers=1)
    assert "18 jobs done" in run.finish()
    return run.board()


def children(parent: int) -> set[int]:
    """Processes of its own that a process started, and those that they started."""
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found |= {int(status.parent.name)} | children(int(status.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def kill_after(run: Run, more: int, pause: float) -> tuple[bool, set[int]]:
    """Kill the parent alone once it has made so many more files, and a pause later; gives the processes it had."""
    process, before, began = run.start(), run.made(), time.monotonic()
    while process.poll() is None and run.made() < before + more and time.monotonic() - began < 60:
        time.sleep(0.002)
    time.sleep(pause)
    workers = children(process.pid)
    killed = process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()
    return killed, workers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("workers", "kills"), [pytest.param(1, 4, marks=pytest.mark.slow), (2, 3)])
def test_killed_runs_end_in_the_same_table_and_leave_no_process(
    workers: int, kills: int, tones: Path, tmp_path: Path, undisturbed: str
) -> None:
    dice = random.Random(workers)
    run = Run(tmp_path / "run", tones, workers)
    done: dict[Path, bytes] = {}
    really = 0
    for _ in range(kills):
        killed, processes = kill_after(run, dice.randint(1, 8), dice.uniform(0, 0.3))
        really += killed
        now = run.records()
        assert {path: now[path] for path in done} == done
        done = now
        limit = time.monotonic() + 10
        while any(map(alive, processes)) and time.monotonic() < limit:
            time.sleep(0.02)
        assert not [process for process in processes if alive(process)]
    assert really >= 2
    run.finish()
    assert run.board() == undisturbed
    assert {path: content for path, content in run.records().items() if path in done} == done
    assert "nothing was left to do" in run.finish()


def test_an_interrupted_run_says_how_to_go_on(tones: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tones, workers=1)
    process = run.start()
    began = time.monotonic()
    while run.made() < 8 and time.monotonic() - began < 60:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "bench: interrupted; the same command resumes where this one stopped"
    assert "Traceback" not in said
    assert not list(run.folder.rglob("*.partial"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds a few files only; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def arguments(tones: Path, protocol: Path, home: Path, results: Path) -> list[Any]:
    tasks = ["--task", "words", "--task", "same", "--protocol", protocol, "--data", f"tones={tones}"]
    return ["run", "fbank", *tasks, "--home", home, "--results", results, "--device", "cpu"]


def test_a_full_disk_is_told_in_one_sentence_and_the_same_command_goes_on(
    bench: Bench, tones: Path, protocol: Path, tmp_path: Path, small_disk: Path
) -> None:
    command = arguments(tones, protocol, tmp_path / "home", small_disk / "results")
    answer = bench(*command)
    assert answer.code == 2
    assert "the disk is full" in answer.complaint
    records = {path: path.read_bytes() for path in small_disk.rglob("*.json")}
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    answer = bench(*command)
    assert answer.code == 0
    assert {path: path.read_bytes() for path in records} == records
    assert len(list(small_disk.rglob("*.json"))) == 5
    assert not list(small_disk.rglob("*.partial"))


@pytest.mark.parametrize("write", range(1, 12, 2))
def test_no_room_for_any_one_file_is_told_in_one_sentence_and_the_same_command_goes_on(
    write: int, bench: Bench, tones: Path, protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = arguments(tones, protocol, tmp_path / "home", tmp_path / "results")
    written = 0
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        nonlocal written
        written += 1
        if written >= write:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        answer = bench(*command)
        assert written >= write
    assert answer.code == 2
    assert "the disk is full" in answer.complaint
    assert not list(tmp_path.rglob("*.partial"))
    answer = bench(*command)
    assert answer.code == 0
    assert len(list(tmp_path.glob("results/runs/*/*/*.json"))) == 5
    assert not list(tmp_path.rglob("*.error.txt"))


def test_a_folder_without_permission_to_write_is_told_of(
    bench: Bench, tones: Path, protocol: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "results").mkdir(mode=0o500)
    answer = bench(*arguments(tones, protocol, tmp_path / "home", tmp_path / "results"))
    assert answer.code == 2
    assert "no permission to read or write" in answer.complaint
