"""The engine is `map`, in this process or over several."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmark import environment
from benchmark.engines import local
from benchmark.engines.local import ProcessPool, in_process, item_is_running, progress, progress_bar
from benchmark.errors import UserError
from benchmark.files import atomic_path, cached_json, remove_partial_files, write_text

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says who its parent is by prctl")


def square(number: int) -> int:
    time.sleep(0.001 * (7 - number) % 5)
    return number * number


def where(number: int) -> tuple[int, str]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UserError("three is too many")
    return number


def die_at_one(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(20 if number == 0 else 0)
    return number


def half_way(number: int) -> int:
    progress(1, 2)
    return number


def whether_mapped(number: int) -> list[bool]:
    before = item_is_running()
    in_process(square, [1, 2], "inside")
    return [before, item_is_running()]


@pytest.mark.parametrize("run", [in_process, ProcessPool(2)])
def test_within_an_item_nothing_is_shown_but_its_progress(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert not item_is_running()
    assert run(whether_mapped, [1, 2], "outside") == [[True, True]] * 2
    assert not item_is_running()
    said = capfd.readouterr().err
    assert "outside: done" in said
    assert "inside" not in said


@pytest.mark.parametrize("run", [in_process, ProcessPool(2)])
def test_results_come_in_the_order_of_the_items(run: Any) -> None:
    assert run(square, iter(range(8))) == [number * number for number in range(8)]
    assert run(square, []) == []
    assert run(square, [5]) == [25]


def test_workers_share_the_cores() -> None:
    found = ProcessPool(2)(where, range(4))
    assert all(process != os.getpid() for process, _ in found)
    assert {threads for _, threads in found} == {str(max(1, environment.cores() // 2))}


@pytest.mark.parametrize("run", [in_process, ProcessPool(2)])
def test_a_failure_is_raised_here_as_what_it_was(run: Any) -> None:
    with pytest.raises(UserError, match="three is too many"):
        run(fail_at_three, range(6))


@linux
def test_a_worker_that_is_killed_is_told_of_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"a worker process was killed, .* fewer --workers"):
        ProcessPool(2)(die_at_one, range(2))
    assert time.monotonic() - began < 15


def test_progress_is_shown_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 11))
    monkeypatch.setattr(local.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with progress_bar("learn", 100.0) as show:
        show(25.0)
        show(50.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["learn: 25%, about 0:33 left", "learn: 50%, about 0:22 left", "learn: done in 0:33"]


def test_the_progress_of_an_item_counts_by_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float] = []

    class Bar:
        def __enter__(self) -> Any:
            return shown.append

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr(local, "progress_bar", lambda title, total: Bar())
    in_process(half_way, [1, 3], "x", float)
    assert shown == [0.5, 1.0, 2.5, 4.0]
    progress(1, 2)
    assert len(shown) == 4


def interrupted(path: Path) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        assert partial.parent == path.parent
        assert not path.exists() or path.read_text() == "old"
        partial.write_text(f"{1 / 0}")


def test_what_killed_processes_left_half_written_is_cleared_away_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    names = {
        "dead": f".a.json.{platform.node()}.{gone.stdout.strip()}.partial",
        "alive": f".a.json.{platform.node()}.{os.getpid()}.partial",
        "elsewhere": f".a.json.elsewhere.{gone.stdout.strip()}.partial",
        "whole": "a.json",
    }
    for name in names.values():
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names.values()) - {names["dead"]}
    with atomic_path(tmp_path / "b.json") as partial:
        partial.touch()
        remove_partial_files(tmp_path)
        assert partial.exists()


def test_a_file_written_aside_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(ZeroDivisionError):
        interrupted(path)
    assert list(path.parent.iterdir()) == []
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        interrupted(path)
    assert [each.read_text() for each in path.parent.iterdir()] == ["old"]
    calls: list[int] = []

    def compute() -> list[int]:
        calls.append(1)
        return calls

    for key, expected in (("a", 1), ("a", 1), ("b", 2)):
        assert len(cached_json(tmp_path / "memo.json", key, compute)) == expected
    (tmp_path / "memo.json").write_text("[1")
    assert len(cached_json(tmp_path / "memo.json", "b", compute)) == 3
    assert len(cached_json(tmp_path / "other.json", "b", compute, lambda value: False)) == 4
    assert not (tmp_path / "other.json").exists()
