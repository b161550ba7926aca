"""Upstreams at work: waveforms of many lengths in, rows of features out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from benchmark.data.audio import read
from benchmark.errors import UserError
from benchmark.values import Clip, Setup


def prefetched(every: Sequence[tuple[Clip, ...]], rate: int) -> Iterator[tuple[tuple[Clip, ...], list[np.ndarray]]]:
    """Batches with their waveforms, the next two being read while one is at work."""
    with ThreadPoolExecutor(1) as reader:
        load = lambda batch: [read(clip.stretch, rate) for clip in batch]  # noqa: E731
        ahead = [reader.submit(load, batch) for batch in every[:2]]
        for place, batch in enumerate(every):
            if place + 2 < len(every):
                ahead.append(reader.submit(load, every[place + 2]))
            yield batch, ahead.pop(0).result()


def padded(waveforms: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Waveforms of (S,) each as one zero-padded tensor (B, S) and lengths (B,)."""
    import torch

    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return batch, lengths


def encode(upstream: Any, waveforms: Sequence[np.ndarray], view: str, setup: Setup) -> list[np.ndarray]:
    """Rows (1 or T, L, D) of each clip; a batch too large for the accelerator's memory is halved until it fits."""
    import torch

    batch, lengths = padded(waveforms)
    try:
        with torch.inference_mode():
            values = _rows(upstream, batch.to(setup.device), lengths.to(setup.device), view)
    except torch.cuda.OutOfMemoryError:
        if len(waveforms) == 1:
            raise
        torch.cuda.empty_cache()
        middle = len(waveforms) // 2
        parts = (waveforms[:middle], waveforms[middle:])
        return [row for part in parts for row in encode(upstream, part, view, setup)]
    return values


def _rows(upstream: Any, batch: Any, lengths: Any, view: str) -> list[np.ndarray]:
    if view == "summary":
        return list(upstream.summarize(batch, lengths).float().cpu().numpy()[:, None])
    frames, valid = upstream(batch, lengths)
    frames = frames.half() if view == "frames" else frames.float()
    return [clip[:count] for clip, count in zip(frames.cpu().numpy(), valid.tolist(), strict=True)]


@lru_cache(maxsize=1)
def upstream_of(name: str, device: str, precision: str) -> Any:
    """Load an upstream, keeping the last one."""
    from upstreams import create
    from upstreams.precision import at

    keep_memory()
    exact(device)
    return at(precision, create(name).to(device).eval())


def exact(device: str) -> None:
    """Full single precision on CUDA, where convolutions otherwise round to ten bits and batches begin to matter."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = False


def summary_shape(upstream: Any, name: str) -> tuple[int, int]:
    """(L', D') of its summaries, found by encoding a second of noise; raises UserError where frames are not as told."""
    import torch

    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, upstream.sample_rate, generator=generator) * 0.1
    lengths = torch.tensor([clip.shape[1]])
    with torch.inference_mode():
        frames, valid = upstream(clip, lengths)
        summary = upstream.summarize(clip, lengths)
    found = (int(valid), *frames.shape[2:])
    told = (int(upstream.frame_lengths(lengths)), upstream.layers, upstream.dim)
    if found != told or summary.dim() != 3:
        raise UserError(
            f"upstream {name!r} gives (T, L, D) = {found} for a second of audio where its hop, window, layers and dim"
            f" say {told}; see: bench check {name}"
        )
    return int(summary.shape[1]), int(summary.shape[2])


@lru_cache(maxsize=1)
def keep_memory() -> None:
    """Let glibc keep freed memory: faulting fresh pages for every activation costs up to half the speed on a CPU."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(-4, 0)  # M_MMAP_MAX
            library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
