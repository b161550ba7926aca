"""Two views of one clip: random segments, mixed in the log-mel domain, and random resize crops of them.

After BYOL for Audio (Niizumi et al., 2021) as ATST uses it (Li & Li, 2022). Where BYOL for Audio mixes with one of the
last 2000 clips, ours mixes with another clip of the batch, so that nothing but weights is kept between steps. Random
numbers come from torch's generator of the CPU, and are the same wherever the mel frames are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upstreams.base import valid

SCALES = (0.6, 1.5)  # of the band and of the duration that a resize crop sees
CANVAS = 1.5  # duration of the silence-filled canvas that it is cut from, relative to the clip's
SHARPNESS = -0.75  # of the cubic kernel (Keys, 1981), as torch.nn.functional.interpolate has it


def segments(waveforms: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A stretch of `size` samples from each clip of (B, S), at a random place, and how long it is (B,).

    Clips that are shorter are taken whole; what lies beyond them is not defined.
    """
    kept = lengths.clamp(max=size)
    samples = torch.arange(min(size, waveforms.shape[1]), device=lengths.device)
    places = below(lengths - kept + 1)[:, None] + samples
    return waveforms.gather(1, places.clamp(max=waveforms.shape[1] - 1)), kept


def mixed(mel: Tensor, lengths: Tensor, most: float) -> Tensor:
    """Each clip of (B, bands, M) with another one of the batch in its background, of a share from 0 to `most`.

    Of clips of different lengths (B,), the shorter one lies at a random place within the longer one.
    """
    number = len(mel)
    if number < 2:
        return mel
    clips = torch.arange(number, device=mel.device)
    others = (clips + 1 + below(torch.full_like(clips, number - 1))) % number
    spare = lengths[others] - lengths
    return mix(mel, lengths, others, most * drawn(clips).to(mel.dtype), spare.sign() * below(spare.abs() + 1))


def mix(mel: Tensor, lengths: Tensor, others: Tensor, shares: Tensor, shifts: Tensor) -> Tensor:
    """log((1 - share) exp x + share exp z) of clips x and others z, z's frame t + shift being laid on x's frame t.

    mel: (B, bands, M), logarithmic. lengths, others, shares, shifts: (B,). Where there is no z, x stays.
    """
    places = torch.arange(mel.shape[2], device=mel.device) + shifts[:, None]
    there = (places >= 0) & (places < lengths[others][:, None])
    index = places.clamp(0, mel.shape[2] - 1)[:, None].expand_as(mel)
    background = mel[others].gather(2, index)
    shares = shares[:, None, None]
    return torch.where(there[:, None], torch.logaddexp(mel + torch.log1p(-shares), background + shares.log()), mel)


def resized(mel: Tensor, lengths: Tensor) -> Tensor:
    """A random part of each clip of (B, bands, M), at another scale in frequency and in time; lengths (B,) stay.

    The part is cut from a canvas of zeros half as long again as the clip, which lies in its middle, and is resized to
    the clip's size.
    """
    bands = torch.full_like(lengths, mel.shape[1])
    canvas = (lengths * CANVAS).long()
    height = (uniform(bands) * bands).long().clamp(min=1).minimum(bands)
    width = (uniform(lengths) * lengths).long().clamp(min=1).minimum(canvas)
    top = below(bands - height + 1)
    left = below(canvas - width + 1) - (canvas - lengths) // 2
    return resize(mel, lengths, top, height, left, width)


def resize(mel: Tensor, lengths: Tensor, top: Tensor, height: Tensor, left: Tensor, width: Tensor) -> Tensor:
    """The bands [top, top + height) and frames [left, left + width) of each clip, resized to its size by cubics.

    mel: (B, bands, M). Others: (B,); frames before a clip's first and after its last are zero.
    """
    clean = mel.masked_fill(~valid(lengths, mel.shape[2])[:, None], 0.0)
    rows = interpolation(top, height, torch.full_like(lengths, mel.shape[1]), mel.shape[1])
    columns = interpolation(left, width, lengths, mel.shape[2])
    return rows @ clean @ columns.mT


def interpolation(start: Tensor, size: Tensor, number: Tensor, most: int) -> Tensor:
    """Matrices (B, most, most): row i < number takes the value at place i of number, evenly spaced over a stretch.

    start, size: (B,) first place and length of the stretch, whose ends are repeated beyond it. number: (B,) rows that
    are not zero. Places out of [0, most) count as zeros.
    """
    steps = torch.arange(most, device=start.device)
    places = steps * ((size - 1) / (number - 1).clamp(min=1))[:, None]
    taps = places.floor().long()[:, :, None] + torch.arange(-1, 3, device=start.device)
    weights = keys((taps - places[:, :, None]).abs())
    index = taps.clamp(min=0).minimum(size[:, None, None] - 1) + start[:, None, None]
    counted = (index >= 0) & (index < most) & (steps < number[:, None])[:, :, None]
    matrices = weights.new_zeros(len(start), most, most)
    return matrices.scatter_add_(2, index.clamp(0, most - 1), weights * counted)


def keys(distance: Tensor) -> Tensor:
    """Cubic convolution kernel of Keys (1981) at distances below 2."""
    a = SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, far)


def drawn(like: Tensor) -> Tensor:
    """As many numbers from [0, 1), in double precision: products with lengths are then never rounded up."""
    return torch.rand(len(like), dtype=torch.float64).to(like.device)


def below(limits: Tensor) -> Tensor:
    """A whole number from 0 to limit - 1 for each limit (B,)."""
    return (drawn(limits) * limits).long()


def uniform(like: Tensor) -> Tensor:
    low, high = SCALES
    return low + (high - low) * drawn(like)
