"""Run an upstream: load it, read waveforms ahead, pad them to batches and encode these to rows of features."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from benchmark.data.audio import read_stretch
from benchmark.errors import UserError
from benchmark.values import Clip, Setup


def read_ahead(batches: Sequence[tuple[Clip, ...]], rate: int) -> Iterator[tuple[tuple[Clip, ...], list[np.ndarray]]]:
    """Yield batches of clips with their waveforms; a thread reads the next two while the caller works on one."""
    with ThreadPoolExecutor(1) as reader:
        load = lambda batch: [read_stretch(clip.stretch, rate) for clip in batch]  # noqa: E731
        ahead = [reader.submit(load, batch) for batch in batches[:2]]
        for place, batch in enumerate(batches):
            if place + 2 < len(batches):
                ahead.append(reader.submit(load, batches[place + 2]))
            yield batch, ahead.pop(0).result()


def pad_waveforms(waveforms: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Return waveforms (S,) as one zero-padded tensor (B, S) and their lengths (B,)."""
    import torch

    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return batch, lengths


def encode_clips(upstream: Any, waveforms: Sequence[np.ndarray], view: str, setup: Setup) -> list[np.ndarray]:
    """Return the rows (1 or T, L, D) of each clip; a batch too large for the GPU memory is halved until it fits."""
    import torch

    batch, lengths = pad_waveforms(waveforms)
    try:
        with torch.inference_mode():
            values = _rows(upstream, batch.to(setup.device), lengths.to(setup.device), view)
    except torch.cuda.OutOfMemoryError:
        if len(waveforms) == 1:
            raise
        torch.cuda.empty_cache()
        middle = len(waveforms) // 2
        parts = (waveforms[:middle], waveforms[middle:])
        return [row for part in parts for row in encode_clips(upstream, part, view, setup)]
    return values


def _rows(upstream: Any, batch: Any, lengths: Any, view: str) -> list[np.ndarray]:
    if view == "summary":
        return list(upstream.summarize(batch, lengths).float().cpu().numpy()[:, None])
    frames, valid = upstream(batch, lengths)
    frames = frames.half() if view == "frames" else frames.float()
    return [clip[:count] for clip, count in zip(frames.cpu().numpy(), valid.tolist(), strict=True)]


@lru_cache(maxsize=1)
def load_upstream(name: str, device: str, precision: str) -> Any:
    """Load an upstream in eval mode; the last one stays in memory for the next call."""
    from upstreams import create
    from upstreams.precision import with_precision

    keep_freed_memory()
    disable_tf32(device)
    return with_precision(precision, create(name).to(device).eval())


def disable_tf32(device: str) -> None:
    """Switch TF32 convolutions off on CUDA: they round to ten bits, so that features would depend on the batch."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = False


def summary_shape(upstream: Any, name: str) -> tuple[int, int]:
    """Return (L', D') of the summaries by encoding one second of noise.

    Raises UserError where the shape of the frames is not what the upstream's hop, window, layers and dim say.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, upstream.sample_rate, generator=generator) * 0.1
    lengths = torch.tensor([clip.shape[1]])
    with torch.inference_mode():
        frames, valid = upstream(clip, lengths)
        summary = upstream.summarize(clip, lengths)
    actual = (int(valid), *frames.shape[2:])
    expected = (int(upstream.frame_lengths(lengths)), upstream.layers, upstream.dim)
    if actual != expected or summary.dim() != 3:
        raise UserError(
            f"upstream {name!r} gives (T, L, D) = {actual} for a second of audio where its hop, window, layers and dim"
            f" say {expected}; see: bench check {name}"
        )
    return int(summary.shape[1]), int(summary.shape[2])


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Make glibc keep freed memory: page faults for every new activation cost up to half the speed on a CPU."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(-4, 0)  # M_MMAP_MAX
            library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
