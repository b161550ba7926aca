"""What keeps the three packages apart, and the command line quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmark", "upstreams", "downstreams")
READERS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "exists", "is_file", "glob", "iterdir"}
FILE_CALLS = {f"np.{name}" for name in ("load", "save", "savez", "fromfile", "memmap", "loadtxt")} | {
    f"torch.{name}" for name in ("load", "save")
}
FILE_MODULES = {"pathlib", "os", "io", "shutil", "tempfile", "soundfile", "csv", "sqlite3", "h5py", "pickle"}


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports anywhere, also inside functions and for type checking only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("upstreams", {"downstreams", "benchmark"}),
        ("downstreams", {"upstreams", "benchmark"}),
        ("benchmark", {"tests"}),
    ],
)
def test_packages_import_only_whom_they_may(package: str, forbidden: set[str]) -> None:
    guilty = {str(path) for path in files(package) if forbidden & set(imported(path))}
    assert not guilty


def test_the_benchmark_defines_no_network_and_runs_no_backward_pass() -> None:
    for path in files("benchmark"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bases = [ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
        assert not [base for base in bases if base.split(".")[-1] in ("Module", "Head", "Upstream")], path
        assert not [call for call in calls(path) if call.endswith((".backward", "autograd.grad"))], path


def test_heads_touch_no_files() -> None:
    for path in files("downstreams"):
        assert not FILE_MODULES & set(imported(path)), path
        called = set(calls(path))
        assert not called & (FILE_CALLS | {"open"}), path
        assert not [call for call in called if "." in call and call.rsplit(".", 1)[1] in READERS], path


def python(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )


LISTED = "import sys, atexit; atexit.register(lambda: print('MODULES', *sorted(sys.modules), file=sys.stderr));"
START = LISTED + "from benchmark.cli.app import main; sys.argv = ['bench', *sys.argv[1:]]; main()"
SLOW = {"torch", "transformers", "speechbrain", "s3prl", "sklearn", "jiwer"}


def loaded(answer: subprocess.CompletedProcess[str]) -> set[str]:
    line = next(line for line in answer.stderr.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["list", "tasks"], ["list", "suites"], ["list", "upstreams"]]
)
def test_help_and_lists_import_no_slow_library(arguments: list[str]) -> None:
    answer = python("-c", START, *arguments)
    assert answer.returncode == 0, answer.stderr
    assert not SLOW & loaded(answer)
    assert "pandas" not in loaded(answer)


def test_a_run_with_nothing_left_to_do_does_not_import_torch(tones: Path, protocol: Path, tmp_path: Path) -> None:
    arguments = ["run", "fbank", "--task", "same", "--protocol", protocol, "--data", f"tones={tones}"]
    arguments += ["--home", tmp_path / "home", "--results", tmp_path / "results", "--device", "cpu"]
    first, second = (python("-c", START, *arguments) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "torch" in loaded(first)
    assert second.returncode == 0, second.stderr
    assert "nothing was left to do" in second.stdout
    assert not SLOW & loaded(second)
