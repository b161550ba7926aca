"""The environment of a computation: code, package versions, machine and device."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmark.errors import UserError, unknown_name
from benchmark.files import PACKAGES

CODE = ("benchmark", "upstreams", "downstreams", "tasks.yaml")


@cache
def commit(root: Path = PACKAGES) -> str:
    """Return the commit of a checkout, followed by "+" if its code was changed since; "" outside of a checkout."""
    if not _git(root, "ls-files", "--", CODE[0]):  # an installed package may lie inside the checkout of another project
        return ""
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE) if head else ""
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    """The output of git, "" where it fails."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with suppress(OSError, subprocess.SubprocessError):
        process = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=20, check=True, env=plain | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
        return process.stdout.strip()
    return ""


def machine_facts(device: str) -> dict[str, str]:
    """Return the system, processor, instruction set that torch uses, cores, memory and accelerator."""
    import torch

    facts = {
        "system": platform.platform(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(cores()),
        "memory": memory_size(),
    }
    return facts | ({"accelerator": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def processor_name() -> str:
    """Return the model name of the processor where the system provides it, else its architecture."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def memory_size() -> str:
    """Return the memory of the machine in GB, "" where the system does not provide it."""
    with suppress(OSError, ValueError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    return ""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that can affect results."""
    versions = {"python": platform.python_version()}
    for package in (
        "ssl-bench",
        "torch",
        "torchaudio",
        "transformers",
        "s3prl",
        "speechbrain",
        "timm",
        "scikit-learn",
        "jiwer",
        "numpy",
        "soxr",
    ):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def device_name(device: str) -> str:
    """Return the name of the processor or accelerator that "cpu" or "cuda" stands for."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {cores()} cores"


def resolve_device(name: str) -> str:
    """Return an available device; "auto" selects the GPU, if there is one.

    Raises UserError for a device that does not exist.
    """
    if name == "cpu" or (name == "auto" and not any(Path("/dev").glob("nvidia[0-9]*"))):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] != "cuda":
        raise unknown_name("device", name, ["auto", "cpu", "cuda"])
    number = int(name.split(":")[1]) if name.partition(":")[2].isdigit() else 0
    if number >= torch.cuda.device_count():
        raise UserError(
            f"no device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here; use --device cpu"
        )
    return name


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
