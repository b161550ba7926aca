"""What lets s3prl 0.4.18 be imported and build its upstreams under today's torch, safely and offline.

s3prl calls functions that torchaudio dropped in 2.9, evaluates text out of checkpoints, opens pickles without a rule
and downloads whatever is not there. While `opened`, it does none of these; its own files are left as they are.
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
from upstreams.families.hub import reachable
from upstreams.families.s3prl_entries import entries as entries
from upstreams.families.s3prl_entries import import_timm
from upstreams.safety import checkpoints
from upstreams.safety.build_limits import Allowance, counted

KALDI = re.compile(r"torchaudio\.compliance\.kaldi\.(fbank|mfcc|spectrogram)")


@dataclass
class Opened:
    """What s3prl read while it built an entry: the files, and what each of them held."""

    checkpoint: Path | None
    files: dict[str, Path] = field(default_factory=dict)  # by name
    loaded: list[Any] = field(default_factory=list)  # torch checkpoints, in the order they were opened
    refusals: list[UpstreamError] = field(default_factory=list)
    allowance: Allowance = field(default_factory=Allowance)

    def spend(self, elements: int) -> None:
        """As that of the allowance, but s3prl cannot catch it for good."""
        with remembered():
            self.allowance.spend(elements)


_opened: list[Opened] = []


@cache
def hub() -> ModuleType:
    """`s3prl.hub`, which has a builder by the name of every entry; raises UpstreamError where it cannot be imported."""
    torchaudio_guard.guard()
    paths = list(sys.path)
    with told("s3prl cannot be imported"), quiet(), torchaudio_guard.before_2_9():
        download = importlib.import_module("s3prl.util.download")
        original = vars(download)["_urls_to_filepaths"]
        find = finder(original)
        vars(download).update(_urls_to_filepaths=find, urls_to_filepaths=find)  # before anyone imports it by name
        module = importlib.import_module("s3prl.hub")
        for name, each in list(sys.modules.items()):
            if name.startswith(("s3prl.upstream.", "s3prl.downstream.")):
                tame(name, each, original, find)
    sys.path[:] = paths  # as setuptools adds its own when pkg_resources is imported
    return module


def tame(name: str, module: ModuleType, original: Callable[..., Any], find: Callable[..., Any]) -> None:
    """Take from a module of s3prl what it must not do with a stranger's checkpoint, and what would keep us waiting."""
    own = vars(module)
    if own.get("_urls_to_filepaths") is original:
        own["_urls_to_filepaths"] = find
    if isinstance(own.get("device"), torch.device):  # builds where a GPU is, wherever the model is to be
        own["device"] = torch.device("cpu")
    if "get_sinusoid_table" in own:
        own["get_sinusoid_table"] = sinusoids
    if "compute_timestamp_stats" in own:
        own["compute_timestamp_stats"] = spread(own["compute_timestamp_stats"])
    if not name.endswith(".expert") and name != "s3prl.upstream.interfaces":  # these evaluate constants of s3prl's
        own["eval"] = evaluate


@cache
def sinusoids(size: int) -> Tensor:
    """Positions of TERA and its kin, (24000, size): s3prl's table, which takes it 10 s to fill number by number."""
    if _opened:
        _opened[-1].spend(8 * 24_000 * size)  # in numbers of 4 bytes, with those on the way
    columns = np.arange(size)
    angles = np.arange(24_000)[:, None] / np.power(10_000, 2 * (columns // 2) / size)
    return torch.from_numpy(np.where(columns % 2, np.cos(angles), np.sin(angles)).astype(np.float32))


def spread(statistics: Callable[[Tensor], list[float]]) -> Callable[[Tensor], list[float]]:
    """Mean and standard deviation as BYOL-S takes them, but never 0, by which it would divide silence."""

    def positive(features: Tensor) -> list[float]:
        mean, deviation = statistics(features)
        return [mean, max(deviation, 1e-6)]

    return positive


def evaluate(text: str) -> Any:
    """What `eval` is to s3prl: the value of literals, and the front ends of Kaldi by name; nothing else runs."""
    wanted = KALDI.fullmatch(text) if isinstance(text, str) else None
    if wanted:
        return getattr(importlib.import_module("torchaudio.compliance.kaldi"), wanted.group(1))
    with remembered():
        return checkpoints.literal(text)


@contextmanager
def remembered() -> Iterator[None]:
    """Remembers what is raised within."""
    try:
        yield
    except UpstreamError as error:
        raise refused(error) from error


def refused(error: UpstreamError) -> UpstreamError:
    """Remembers an error, as s3prl catches many and raises one that says less."""
    if _opened:
        _opened[-1].refusals.append(error)
    return error


def finder(original: Callable[..., Any]) -> Callable[..., Any]:
    """What stands for s3prl's downloads: the file that the user gave, or the one downloaded before."""

    def find(*urls: str, refresh: bool = False, download: bool = True) -> Any:
        if not _opened:
            return original(*urls, refresh=refresh, download=download)
        paths = [str(file_for(str(url), original)) for url in urls]
        return paths if len(paths) > 1 else paths[0]

    return find


def file_for(url: str, original: Callable[..., Any]) -> Path:
    now, name = _opened[-1], unquote(Path(urlsplit(url).path).name)
    if now.checkpoint is None:
        path = downloaded(url, original)
    elif now.checkpoint.is_dir():
        path = now.checkpoint / name
    else:
        path = now.checkpoint
    if not path.is_file():
        raise refused(UpstreamError(f"no file '{path}'; download it from {url}"))
    if path in now.files.values() and name not in now.files:
        both = " and ".join((*now.files, name))
        raise refused(UpstreamError(f"it reads several files, {both}; give the folder that holds them"))
    now.files[name] = path
    return path


def downloaded(url: str, original: Callable[..., Any]) -> Path:
    """Path of s3prl's own copy of a file, which is downloaded where there is none and the network answers."""
    path = Path(original(url, download=False))
    if not path.is_file():
        advice = f"download it from {url} and give the file as s3prl:NAME@CHECKPOINT"
        if not reachable():
            raise refused(UpstreamError(f"no checkpoint is given, and the network is out of reach; {advice}"))
        try:
            original(url)
        except Exception as error:
            raise refused(UpstreamError(f"its checkpoint cannot be downloaded ({error}); {advice}")) from error
    return path


@contextmanager
def opened(checkpoint: Path | None) -> Iterator[Opened]:
    """Within it, an entry of `hub` is built from a checkpoint, or a folder of several files, and from nothing else.

    Whatever s3prl raises becomes one UpstreamError. Without a checkpoint, the entry's own download is used.
    """
    hub()
    now = Opened(checkpoint)
    _opened.append(now)
    place = f"s3prl cannot build it from '{checkpoint}'" if checkpoint else "s3prl cannot build it"
    try:
        with (
            told(place, now),
            quiet(),
            generators_kept(),
            torchaudio_guard.before_2_9(),
            checkpoints.only_safe(),
            reading(now),
        ):
            import_timm()
            with counted(now.spend):
                yield now
            if now.refusals:  # which s3prl caught, to go on without
                raise now.refusals[0]
    finally:
        _opened.pop()


@contextmanager
def reading(now: Opened) -> Iterator[None]:
    """Keeps what s3prl loads, and keeps transformers from looking elsewhere for what a folder lacks."""
    from huggingface_hub import constants

    load, offline, optimizers = torch.load, constants.HF_HUB_OFFLINE, sys.modules.get("optimizers")

    def recorded(file: Any, *args: Any, **kwargs: Any) -> Any:
        with remembered():
            content = load(file, *args, **kwargs)
            now.allowance.add(content)
        if isinstance(file, (str, Path)) and Path(file) not in now.files.values():
            now.files[Path(file).name] = Path(file)
        now.loaded.append(content)
        return content

    vars(torch)["load"], constants.HF_HUB_OFFLINE = recorded, offline or now.checkpoint is not None
    try:
        yield
    finally:
        vars(torch)["load"], constants.HF_HUB_OFFLINE = load, offline
        sys.modules.pop("optimizers", None)  # s3prl leaves its own under this name when it fails
        if optimizers is not None:
            sys.modules["optimizers"] = optimizers


@contextmanager
def told(place: str, now: Opened | None = None) -> Iterator[None]:
    """Turns whatever s3prl raises or exits with into one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if now and now.refusals:
            raise now.refusals[0] from error
        if isinstance(error, UpstreamError):
            if now is None and str(error).startswith(("it ", "its ")):
                raise UpstreamError(f"{place}: {error}") from error
            raise
        raise UpstreamError(f"{place}: {explained(error)}") from error


def explained(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"it needs the package '{error.name}', which is not installed"
    while isinstance(error.__context__, Exception) and "NOT loaded" in str(error):  # says nothing of the cause
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
def generators_kept() -> Iterator[None]:
    """Leaves the generators of Python and numpy as they are; s3prl draws from them even where nothing is dropped."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps s3prl's announcements off the terminal; importing it must not set up logging for everybody."""
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
