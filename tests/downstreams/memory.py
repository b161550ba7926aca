"""A split held in memory, and small problems that heads can solve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from downstreams.base import Batch, Trial


@dataclass
class Clips:
    """clips: one tensor each, (L, D) summaries, (T, L, D) frames or (S,) waveforms; reads: epochs asked for."""

    targets: list[str]
    clips: list[Tensor]
    size: int = 8
    prefix: str = "clip"
    reads: list[int | None] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [f"{self.prefix}{number}" for number in range(len(self.clips))]

    @property
    def references(self) -> dict[str, str]:
        return dict(zip(self.ids, self.targets, strict=True))

    def __len__(self) -> int:
        return len(self.clips)

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        self.reads.append(epoch)
        order = list(range(len(self)))
        if epoch is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(order), self.size):
            yield self.batch(order[start : start + self.size])

    def batch(self, numbers: list[int]) -> Batch:
        chosen = [self.clips[number] for number in numbers]
        ids, targets = [self.ids[number] for number in numbers], [self.targets[number] for number in numbers]
        if chosen[0].dim() == 2:
            return Batch(ids, torch.stack(chosen), None, targets)
        lengths = torch.tensor([len(clip) for clip in chosen])
        return Batch(ids, torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True), lengths, targets)


def classes(
    clips: int = 48, layers: int = 3, dim: int = 10, seed: int = 0, noise: float = 1.0, kinds: int = 4
) -> Clips:
    """Summaries whose class shows in one layer only."""
    random = torch.Generator().manual_seed(seed)
    kinds = 4
    centres = torch.randn(kinds, dim, generator=torch.Generator().manual_seed(99))
    labels = [number % kinds for number in range(clips)]
    summaries = noise * torch.randn(clips, layers, dim, generator=random)
    summaries[:, 1] += 2 * centres[labels]
    return Clips([f"class {label}" for label in labels], list(summaries), prefix=f"s{seed}-")


def spoken(clips: int = 32, layers: int = 2, dim: int = 8, seed: int = 0) -> Clips:
    """Frames in which every character lasts three or four frames, with gaps."""
    random = torch.Generator().manual_seed(seed)
    shapes = torch.randn(4, dim, generator=torch.Generator().manual_seed(98))

    def draw(high: int, low: int = 0) -> int:
        return int(torch.randint(low, high, (1,), generator=random))

    texts, frames = [], []
    for _ in range(clips):
        text = "".join("abc"[draw(3)] for _ in range(draw(5, 2)))
        steps = [row for letter in text for row in [" abc".index(letter)] * draw(5, 3) + [0] * draw(3, 1)]
        noise = 0.3 * torch.randn(len(steps), layers, dim, generator=random)
        frames.append(noise + shapes[steps][:, None])
        texts.append(text)
    return Clips(texts, frames, prefix=f"t{seed}-")


def voices(speakers: int = 6, each: int = 6, layers: int = 3, dim: int = 12, seed: int = 0, first: int = 0) -> Clips:
    """Frames of speakers whose voice shows in layer 1 only, behind an offset common to all."""
    random = torch.Generator().manual_seed(seed)
    voice = torch.randn(100, dim, generator=torch.Generator().manual_seed(97))
    labels = [first + number % speakers for number in range(speakers * each)]
    frames = []
    for label in labels:
        clip = torch.randn(int(torch.randint(12, 30, (1,), generator=random)), layers, dim, generator=random)
        clip[:, 1] += voice[label]
        frames.append(clip + 3.0)
    return Clips([f"speaker {label}" for label in labels], frames, prefix=f"v{seed}-{first}-")


def summarized(data: Clips) -> Clips:
    """The same clips by their time means."""
    return Clips(data.targets, [clip.mean(0) for clip in data.clips], data.size, data.prefix)


def trials(data: Clips) -> list[Trial]:
    """Every pair of clips."""
    pairs = [(a, b) for a in range(len(data)) for b in range(a + 1, len(data))]
    return [Trial(data.ids[a], data.ids[b], data.targets[a] == data.targets[b]) for a, b in pairs]
