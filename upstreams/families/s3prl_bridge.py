"""Import s3prl 0.4.18 and build its upstreams with a current torch, safely and offline.

s3prl calls functions that torchaudio removed in 2.9, evaluates text from checkpoints, opens pickles without restriction
and downloads missing files. Within `s3prl_build` it does none of these. The files of s3prl are not modified.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import random
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from torch import Tensor

from upstreams import torchaudio_guard
from upstreams.base import UpstreamError
from upstreams.families.hub import hub_reachable
from upstreams.families.s3prl_entries import import_timm
from upstreams.safety import checkpoints
from upstreams.safety.build_limits import Allowance, count_construction

KALDI = re.compile(r"torchaudio\.compliance\.kaldi\.(fbank|mfcc|spectrogram)")


@dataclass
class BuildRecord:
    """The files that s3prl read while it built an entry, their contents, and the errors that it may have caught."""

    checkpoint: Path | None
    files: dict[str, Path] = field(default_factory=dict)  # by name
    loaded: list[Any] = field(default_factory=list)  # torch checkpoints, in the order they were opened
    refusals: list[UpstreamError] = field(default_factory=list)
    allowance: Allowance = field(default_factory=Allowance)

    def spend(self, elements: int) -> None:
        """Spend from the allowance and record a refusal, so that it is raised even if s3prl catches it."""
        with recording_refusals():
            self.allowance.spend(elements)


_builds: list[BuildRecord] = []


@cache
def import_hub() -> ModuleType:
    """Import and patch `s3prl.hub`, which has one builder per entry; raises UpstreamError if that fails."""
    torchaudio_guard.guard()
    paths = list(sys.path)
    with translated_errors("s3prl cannot be imported"), s3prl_quiet(), torchaudio_guard.before_2_9():
        download = importlib.import_module("s3prl.util.download")
        original = vars(download)["_urls_to_filepaths"]
        find = file_finder(original)
        vars(download).update(_urls_to_filepaths=find, urls_to_filepaths=find)  # before other modules import it by name
        module = importlib.import_module("s3prl.hub")
        for name, loaded in list(sys.modules.items()):
            if name.startswith(("s3prl.upstream.", "s3prl.downstream.")):
                patch_module(name, loaded, original, find)
    sys.path[:] = paths  # importing pkg_resources adds the paths of setuptools
    return module


def patch_module(name: str, module: ModuleType, original: Callable[..., Any], find: Callable[..., Any]) -> None:
    """Replace functions of an s3prl module that are unsafe with untrusted checkpoints, fail, or are very slow."""
    names = vars(module)
    if names.get("_urls_to_filepaths") is original:
        names["_urls_to_filepaths"] = find
    if isinstance(names.get("device"), torch.device):  # s3prl builds on a GPU if there is one
        names["device"] = torch.device("cpu")
    if "get_sinusoid_table" in names:
        names["get_sinusoid_table"] = sinusoid_table
    if "compute_timestamp_stats" in names:
        names["compute_timestamp_stats"] = positive_deviation(names["compute_timestamp_stats"])
    if not name.endswith(".expert") and name != "s3prl.upstream.interfaces":  # these evaluate constants of s3prl
        names["eval"] = evaluate_literal


@cache
def sinusoid_table(size: int) -> Tensor:
    """Return the sinusoidal positions (24000, size) of TERA and related models; s3prl's own loop takes 10 s."""
    if _builds:
        _builds[-1].spend(8 * 24_000 * size)  # elements of 4 bytes, including intermediate arrays
    columns = np.arange(size)
    angles = np.arange(24_000)[:, None] / np.power(10_000, 2 * (columns // 2) / size)
    return torch.from_numpy(np.where(columns % 2, np.cos(angles), np.sin(angles)).astype(np.float32))


def positive_deviation(statistics: Callable[[Tensor], list[float]]) -> Callable[[Tensor], list[float]]:
    """Wrap the function that gives BYOL-S its mean and standard deviation, so that silence has no deviation of 0."""

    def positive(features: Tensor) -> list[float]:
        mean, deviation = statistics(features)
        return [mean, max(deviation, 1e-6)]

    return positive


def evaluate_literal(text: str) -> Any:
    """Replace `eval` in s3prl: return the value of a literal, or a front end of Kaldi by name; run nothing else."""
    match = KALDI.fullmatch(text) if isinstance(text, str) else None
    if match:
        return getattr(importlib.import_module("torchaudio.compliance.kaldi"), match.group(1))
    with recording_refusals():
        return checkpoints.literal_value(text)


@contextmanager
def recording_refusals() -> Iterator[None]:
    """Record every UpstreamError raised within the context."""
    try:
        yield
    except UpstreamError as error:
        raise record_refusal(error) from error


def record_refusal(error: UpstreamError) -> UpstreamError:
    """Record an error in the current build and return it; s3prl catches errors and raises less specific ones."""
    if _builds:
        _builds[-1].refusals.append(error)
    return error


def file_finder(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for s3prl's downloads that returns the user's file, or the one downloaded before."""

    def find(*urls: str, refresh: bool = False, download: bool = True) -> Any:
        if not _builds:
            return original(*urls, refresh=refresh, download=download)
        paths = [str(file_for(str(url), original)) for url in urls]
        return paths if len(paths) > 1 else paths[0]

    return find


def file_for(url: str, original: Callable[..., Any]) -> Path:
    """Return the local file that replaces a URL in the current build; raises UpstreamError if it is missing."""
    record, name = _builds[-1], unquote(Path(urlsplit(url).path).name)
    if record.checkpoint is None:
        path = downloaded(url, original)
    elif record.checkpoint.is_dir():
        path = record.checkpoint / name
    else:
        path = record.checkpoint
    if not path.is_file():
        raise record_refusal(UpstreamError(f"no file '{path}'; download it from {url}"))
    if path in record.files.values() and name not in record.files:
        both = " and ".join((*record.files, name))
        raise record_refusal(UpstreamError(f"it reads several files, {both}; give the folder that holds them"))
    record.files[name] = path
    return path


def downloaded(url: str, original: Callable[..., Any]) -> Path:
    """Return the path of s3prl's copy of a file, downloaded if needed; raises UpstreamError if that fails."""
    path = Path(original(url, download=False))
    if not path.is_file():
        advice = f"download it from {url} and give the file as s3prl:NAME@CHECKPOINT"
        if not hub_reachable():
            raise record_refusal(UpstreamError(f"no checkpoint is given, and the network is out of reach; {advice}"))
        try:
            original(url)
        except Exception as error:
            raise record_refusal(UpstreamError(f"its checkpoint cannot be downloaded ({error}); {advice}")) from error
    return path


@contextmanager
def s3prl_build(checkpoint: Path | None) -> Iterator[BuildRecord]:
    """Let s3prl build an entry of its hub from a checkpoint, or a folder of several files, and from no other files.

    Every error of s3prl is raised as one UpstreamError. Without a checkpoint, the entry's own download is used.
    """
    import_hub()
    record = BuildRecord(checkpoint)
    _builds.append(record)
    place = f"s3prl cannot build it from '{checkpoint}'" if checkpoint else "s3prl cannot build it"
    try:
        with (
            translated_errors(place, record),
            s3prl_quiet(),
            generators_preserved(),
            torchaudio_guard.before_2_9(),
            checkpoints.safe_loading(),
            recording_loads(record),
        ):
            import_timm()
            with count_construction(record.spend):
                yield record
            if record.refusals:  # s3prl caught the error and continued
                raise record.refusals[0]
    finally:
        _builds.pop()


@contextmanager
def recording_loads(record: BuildRecord) -> Iterator[None]:
    """Record what s3prl loads with torch.load; with a checkpoint, switch the Hugging Face hub off."""
    from huggingface_hub import constants

    load, offline, optimizers = torch.load, constants.HF_HUB_OFFLINE, sys.modules.get("optimizers")

    def load_and_record(file: Any, *args: Any, **kwargs: Any) -> Any:
        with recording_refusals():
            content = load(file, *args, **kwargs)
            record.allowance.add(content)
        if isinstance(file, (str, Path)) and Path(file) not in record.files.values():
            record.files[Path(file).name] = Path(file)
        record.loaded.append(content)
        return content

    vars(torch)["load"], constants.HF_HUB_OFFLINE = load_and_record, offline or record.checkpoint is not None
    try:
        yield
    finally:
        vars(torch)["load"], constants.HF_HUB_OFFLINE = load, offline
        sys.modules.pop("optimizers", None)  # s3prl leaves its own module under this name when it fails
        if optimizers is not None:
            sys.modules["optimizers"] = optimizers


@contextmanager
def translated_errors(place: str, record: BuildRecord | None = None) -> Iterator[None]:
    """Raise every error or exit of s3prl as an UpstreamError of one sentence, or as the first recorded refusal."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if record and record.refusals:
            raise record.refusals[0] from error
        if isinstance(error, UpstreamError):
            if record is None and str(error).startswith(("it ", "its ")):
                raise UpstreamError(f"{place}: {error}") from error
            raise
        raise UpstreamError(f"{place}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """Return one sentence about an error of s3prl."""
    if isinstance(error, ModuleNotFoundError):
        return f"it needs the package '{error.name}', which is not installed"
    while isinstance(error.__context__, Exception) and "NOT loaded" in str(error):  # the cause is in the context
        error = error.__context__
    kind = type(error).__name__
    if "alloc_cpu.cpp" in str(error) or isinstance(error, MemoryError):
        return "its configuration asks for more memory than there is"
    if isinstance(error, IndexError):
        return f"s3prl's code does not fit this checkpoint: {kind}: {checkpoints.one_line(error)}"
    if "task_cfg" in str(error):
        return "it is not in the format that s3prl converts fairseq's to; give one of fairseq's own as fairseq:FILE"
    if str(error):
        return f"{kind}: {checkpoints.one_line(error)}"
    lines = traceback.extract_tb(error.__traceback__)
    return f"{kind} at `{lines[-1].line}`" if lines else kind


@contextmanager
def generators_preserved() -> Iterator[None]:
    """Restore the global generators of Python and numpy afterwards; s3prl draws from them even without dropout."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def s3prl_quiet() -> Iterator[None]:
    """Suppress s3prl's output, warnings and logging, and restore the handlers of the root logger afterwards."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers
