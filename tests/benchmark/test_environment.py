"""What code ran, and where."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from benchmark.environment import commit, cores, machine_facts


def git(root: Path, *arguments: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    answer = subprocess.run(["git", "-C", root, *named, *arguments], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "benchmark").mkdir(parents=True)
    (root / "benchmark" / "run.py").write_text("1\n")
    (root / "README.md").write_text("1\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def told(root: Path) -> str:
    commit.cache_clear()
    return commit(root)


def test_the_commit_is_told_and_marked_where_its_code_was_changed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    assert told(checkout) == head
    (checkout / "README.md").write_text("2\n")
    (checkout / "benchmark" / "scratch.txt").write_text("untracked\n")
    assert told(checkout) == head, "neither of them can change a number"
    (checkout / "benchmark" / "run.py").write_text("2\n")
    assert told(checkout) == f"{head}+"
    git(checkout, "commit", "-q", "-a", "-m", "second")
    assert told(checkout) == git(checkout, "rev-parse", "HEAD") != head


def test_no_commit_is_told_of_what_is_no_checkout_or_lies_in_somebody_elses(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(tmp_path) == ""
    installed = checkout / "site-packages"
    (installed / "benchmark").mkdir(parents=True)
    (installed / "benchmark" / "run.py").write_text("1\n")
    assert told(installed) == ""
    monkeypatch.setenv("PATH", "")
    assert told(checkout) == ""


def test_a_repository_named_by_the_surroundings_is_not_taken_for_this_one(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = told(checkout)
    git(tmp_path, "init", "-q", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert told(checkout) == head


def test_a_machine_is_told_by_its_parts_and_not_by_its_name() -> None:
    found = machine_facts("cpu")
    assert found.keys() == {"system", "processor", "instructions", "cores", "memory"}
    assert all(found.values())
    assert found["cores"] == str(cores())
    assert platform.node() not in " ".join(found.values()).split()
