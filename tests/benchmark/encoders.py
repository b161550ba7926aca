"""Upstreams of a user's own, as text of the files they would write."""

from __future__ import annotations

from pathlib import Path

TINY = '''
import torch
from torch import nn

from upstreams.base import Features, Upstream, valid


class Tiny(Upstream):
    hop, window, layers, dim = 320, 400, 2, 16

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 16, 400, 320)
        self.second = nn.Linear(16, 16)

    def forward(self, waveforms, lengths):
        waveforms = waveforms.masked_fill(~valid(lengths, waveforms.shape[1]), 0.0)
        short = max(0, self.window - waveforms.shape[1])
        sound = nn.functional.pad(waveforms, (0, short))
        hidden = (5 * self.first(sound[:, None])).abs().transpose(1, 2)
        frames = torch.stack([hidden, hidden + self.second(hidden).relu()], 2)
        counts = self.frame_lengths(lengths)
        FAULT
        return Features(frames * valid(counts, frames.shape[1])[:, :, None, None], counts)


def tiny():
    """A small encoder with weights."""
    return Tiny()
'''

FAULTS = {
    "none": "",
    "raises": 'raise RuntimeError("out of cheese")',
    "raises late": 'if len(waveforms) > 1: raise RuntimeError("out of cheese")',
    "not a number": "frames = frames * float('nan')",
    "too many frames": "frames, counts = torch.cat([frames, frames[:, :1]], 1), counts + 1",
    "too few frames": "frames, counts = frames[:, : int(counts.max()) - 1], (counts - 1).clamp(min=1)",
    "too large": "frames = frames * 1e6",
}


def write_encoder(path: Path, fault: str = "none", rate: int = 16_000) -> str:
    """Write the file and give the reference of its encoder."""
    shape = "hop, window, layers, dim = 320, 400, 2, 16"
    assert shape in TINY
    path.write_text(
        TINY.replace("FAULT", FAULTS[fault]).replace(shape, f"{shape}\n    sample_rate = {rate}"), encoding="utf-8"
    )
    return f"{path}:tiny"
