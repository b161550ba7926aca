"""Augmented views of a clip: random segments, mixing in the log-mel domain, and random resize crops.

The augmentations are those of BYOL for Audio (Niizumi et al., 2021) as ATST uses them (Li & Li, 2022). BYOL for Audio
mixes with one of the last 2000 clips; this module mixes with another clip of the batch, so that no state but the
weights is kept between steps. Random numbers come from torch's CPU generator, so they are the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upstreams.base import valid

SCALES = (0.6, 1.5)  # least and largest size of a resize crop, relative to the clip, in frequency and in time
CANVAS = 1.5  # duration of the zero-filled canvas from which a crop is cut, relative to the clip
SHARPNESS = -0.75  # parameter a of the cubic kernel (Keys, 1981), as in torch.nn.functional.interpolate


def view_segments(waveforms: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return a segment of `size` samples at a random place of each clip of (B, S), and the segments' lengths (B,).

    A shorter clip is returned whole; values beyond its length are undefined.
    """
    segment_lengths = lengths.clamp(max=size)
    samples = torch.arange(min(size, waveforms.shape[1]), device=lengths.device)
    places = random_integers(lengths - segment_lengths + 1)[:, None] + samples
    return waveforms.gather(1, places.clamp(max=waveforms.shape[1] - 1)), segment_lengths


def randomly_mixed(mel: Tensor, lengths: Tensor, most: float) -> Tensor:
    """Mix each clip of (B, bands, M) with another clip of the batch, whose share is random from 0 to `most`.

    If the two lengths differ, the shorter clip is placed at random within the longer one. lengths: (B,) frames.
    """
    number = len(mel)
    if number < 2:
        return mel
    clips = torch.arange(number, device=mel.device)
    others = (clips + 1 + random_integers(torch.full_like(clips, number - 1))) % number
    spare = lengths[others] - lengths
    return mix(
        mel,
        lengths,
        others,
        most * random_fractions(clips).to(mel.dtype),
        spare.sign() * random_integers(spare.abs() + 1),
    )


def mix(mel: Tensor, lengths: Tensor, others: Tensor, shares: Tensor, shifts: Tensor) -> Tensor:
    """Return log((1 - share) exp x + share exp z) for clips x and others z; frame t + shift of z is added to frame t.

    mel: (B, bands, M), logarithmic. lengths, others, shares, shifts: (B,). Frames of x without one of z are unchanged.
    """
    places = torch.arange(mel.shape[2], device=mel.device) + shifts[:, None]
    overlapping = (places >= 0) & (places < lengths[others][:, None])
    index = places.clamp(0, mel.shape[2] - 1)[:, None].expand_as(mel)
    background = mel[others].gather(2, index)
    shares = shares[:, None, None]
    return torch.where(
        overlapping[:, None], torch.logaddexp(mel + torch.log1p(-shares), background + shares.log()), mel
    )


def randomly_resized(mel: Tensor, lengths: Tensor) -> Tensor:
    """Cut a random crop from each clip of (B, bands, M) and resize it to the clip's size; lengths (B,) are unchanged.

    The crop is cut from a canvas of zeros that is 1.5 times as long as the clip and has the clip in its middle.
    """
    bands = torch.full_like(lengths, mel.shape[1])
    canvas = (lengths * CANVAS).long()
    height = (random_scales(bands) * bands).long().clamp(min=1).minimum(bands)
    width = (random_scales(lengths) * lengths).long().clamp(min=1).minimum(canvas)
    top = random_integers(bands - height + 1)
    left = random_integers(canvas - width + 1) - (canvas - lengths) // 2
    return resize(mel, lengths, top, height, left, width)


def resize(mel: Tensor, lengths: Tensor, top: Tensor, height: Tensor, left: Tensor, width: Tensor) -> Tensor:
    """Resize bands [top, top + height) and frames [left, left + width) of each clip to its size, by cubic convolution.

    mel: (B, bands, M). All others: (B,). Frames before a clip's first and after its last are zero.
    """
    clean = mel.masked_fill(~valid(lengths, mel.shape[2])[:, None], 0.0)
    rows = interpolation_matrices(top, height, torch.full_like(lengths, mel.shape[1]), mel.shape[1])
    columns = interpolation_matrices(left, width, lengths, mel.shape[2])
    return rows @ clean @ columns.mT


def interpolation_matrices(start: Tensor, size: Tensor, number: Tensor, most: int) -> Tensor:
    """Return matrices (B, most, most) that interpolate `number` evenly spaced values in an interval, one per row.

    start, size: (B,) start and length of the interval; its end values are repeated beyond it.
    number: (B,) number of rows that are not zero. Values outside [0, most) count as zeros.
    """
    steps = torch.arange(most, device=start.device)
    places = steps * ((size - 1) / (number - 1).clamp(min=1))[:, None]
    taps = places.floor().long()[:, :, None] + torch.arange(-1, 3, device=start.device)
    weights = cubic_kernel((taps - places[:, :, None]).abs())
    index = taps.clamp(min=0).minimum(size[:, None, None] - 1) + start[:, None, None]
    counted = (index >= 0) & (index < most) & (steps < number[:, None])[:, :, None]
    matrices = weights.new_zeros(len(start), most, most)
    return matrices.scatter_add_(2, index.clamp(0, most - 1), weights * counted)


def cubic_kernel(distance: Tensor) -> Tensor:
    """Return the cubic convolution kernel of Keys (1981) at distances below 2."""
    a = SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, far)


def random_fractions(like: Tensor) -> Tensor:
    """Return one random number from [0, 1) per row, in float64, so that products with lengths are never rounded up."""
    return torch.rand(len(like), dtype=torch.float64).to(like.device)


def random_integers(limits: Tensor) -> Tensor:
    """Return a random integer from 0 to limit - 1 for each limit (B,)."""
    return (random_fractions(limits) * limits).long()


def random_scales(like: Tensor) -> Tensor:
    low, high = SCALES
    return low + (high - low) * random_fractions(like)
