"""Where a number was computed: what code, on what machine, with how many threads."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmark.errors import UserError, unknown
from benchmark.files import PACKAGES

CODE = ("benchmark", "upstreams", "downstreams", "tasks.yaml")


@cache
def commit(root: Path = PACKAGES) -> str:
    """The commit that a checkout is at, with "+" where its code was changed since; "" where there is none to tell."""
    if not _git(root, "ls-files", "--", CODE[0]):  # an installed package may lie within a checkout of something else
        return ""
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE) if head else ""
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    """What git says, "" where it fails."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=20, check=True, env=plain | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
        return answer.stdout.strip()
    return ""


def machine(device: str) -> dict[str, str]:
    """What kind of machine this is: system, processor, the instructions torch uses, cores, memory, accelerator."""
    import torch

    found = {
        "system": platform.platform(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(cores()),
        "memory": memory(),
    }
    return found | ({"accelerator": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def processor() -> str:
    """Its model's name where the system tells it, else its architecture."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def memory() -> str:
    """Of the machine, in GB, "" where the system does not tell."""
    with suppress(OSError, ValueError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    return ""


def installed() -> dict[str, str]:
    """Versions of what the numbers rest on."""
    found = {"python": platform.python_version()}
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
            found[package] = version(package)
    return found


def device_name(device: str) -> str:
    """The processor or accelerator behind "cpu" or "cuda"."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {cores()} cores"


def device_of(name: str) -> str:
    """A device that there is; of auto the GPU, if there is one."""
    if name == "cpu" or (name == "auto" and not any(Path("/dev").glob("nvidia[0-9]*"))):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] != "cuda":
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    number = int(name.split(":")[1]) if name.partition(":")[2].isdigit() else 0
    if number >= torch.cuda.device_count():
        raise UserError(
            f"no device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here; use --device cpu"
        )
    return name


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
