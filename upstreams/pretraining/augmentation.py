"""Noise and reverberation for crops of clips, with SpeechBrain's functions (Ravanelli et al., 2021).

Sounds come from folders of the user's own, such as MUSAN (Snyder et al., 2015) and room impulse responses (Ko et al.,
2017), or else are synthetic: coloured noise, and rooms that answer with decaying noise. All that is random is drawn
from torch's generators.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upstreams.base import UpstreamError, valid
from upstreams.safety.allow_list import printable
from upstreams.torchaudio_guard import guard

RATE = 16_000  # Hz
SHARES = (0.45, 0.7)  # of clips that are within a room, and in noise
SNR = (0.0, 18.0)  # dB
COLOURS = (0.0, 0.8)  # exponents that amplitudes fall with over frequency: white noise to red
TAIL = RATE // 2  # samples of a room's answer that are kept
DECAYS = (0.1, 0.6)  # seconds in which a synthetic room's answer falls by 60 dB
GAIN, POINTS = 3.0, 8  # of what a synthetic room does to frequencies: standard deviation in dB, and at how many
DIRECT = (0.0, 12.0)  # dB of the direct sound over all that follows it
KINDS = (".wav", ".flac", ".ogg", ".mp3")
SOUND = 0.0001  # of full scale: rooms that answer no louder hold nothing

Draw = Callable[[int, int], Tensor]  # so many sounds of so many samples, (number, samples)


class Sources(NamedTuple):
    """Where noises and rooms' answers are drawn from; None: synthetic."""

    noises: Draw | None = None
    rooms: Draw | None = None


SYNTHETIC = Sources()


@torch.no_grad()
def augmented(
    waveforms: Tensor, lengths: Tensor, sources: Sources = SYNTHETIC, shares: tuple[float, float] = SHARES
) -> Tensor:
    """Clips (B, S) of lengths (B,), some within a room, then some with noise 0 to 18 dB below; zero beyond them.

    shares: how likely a clip is to be in either, whatever becomes of the others.
    """
    clean = waveforms.masked_fill(~valid(lengths, waveforms.shape[1]), 0.0)
    steps = zip(shares, (reverberant, noisy), (sources.rooms, sources.noises), strict=True)
    for share, change, source in steps:
        rows = (torch.rand(len(clean), device="cpu") < share).nonzero()[:, 0].to(clean.device)
        if len(rows):
            clean = clean.index_copy(0, rows, change(clean[rows], lengths[rows], source))
    return clean.masked_fill_(~valid(lengths, clean.shape[1]), 0.0)


def reverberant(waveforms: Tensor, lengths: Tensor, source: Draw | None = None) -> Tensor:
    """Clips (N, S) as heard in a room each, their mean amplitude unchanged."""
    guard()
    from speechbrain.processing.signal_processing import compute_amplitude, convolve1d, rescale

    rooms = (source or answers)(len(waveforms), TAIL).to(waveforms.device)
    count = lengths[:, None]
    before = compute_amplitude(waveforms, count)
    size = waveforms.shape[1]
    room = F.pad(waveforms, (0, quick(size + TAIL) - size))
    heard = convolve1d(room[:, :, None], rooms[:, :, None], use_fft=True)[:, :size, 0]
    return rescale(heard.masked_fill(~valid(lengths, size), 0.0), count, before)


def noisy(waveforms: Tensor, lengths: Tensor, source: Draw | None = None) -> Tensor:
    """Clips (N, S) with a noise each behind them, 0 to 18 dB below."""
    guard()
    from speechbrain.processing.signal_processing import compute_amplitude, dB_to_amplitude

    size, count = waveforms.shape[1], lengths[:, None]
    noise = (source or coloured)(len(waveforms), size).to(waveforms.device)
    noise = noise.masked_fill(~valid(lengths, size), 0.0)
    loud, quiet = (compute_amplitude(each, count, amp_type="rms") for each in (waveforms, noise))
    below = dB_to_amplitude(uniform(len(waveforms), *SNR)).to(waveforms.device)[:, None]
    return waveforms + noise * loud / (quiet * below).clamp(min=1e-10)


def quick(size: int) -> int:
    """The least number of samples, at least `size`, whose Fourier transform is fast."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def uniform(number: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(number, device="cpu")


def coloured(number: int, size: int) -> Tensor:
    """Noises (number, size) whose amplitudes fall with a power of frequency, from none to its first."""
    guard()
    from speechbrain.augment.time_domain import pink_noise_like

    return pink_noise_like(torch.empty(number, quick(size), device="cpu"), *COLOURS, sample_rate=RATE)[:, :size]


def answers(number: int, size: int) -> Tensor:
    """Impulse responses (number, size): a click coloured by the room, and noise that falls by 60 dB in 0.1 to 0.6 s."""
    times = torch.arange(size, device="cpu") / RATE
    tail = torch.randn(number, size, device="cpu") * 1000 ** (-times / uniform(number, *DECAYS)[:, None])
    tail[:, 0] = 0.0
    rooms = tail * 10 ** (-uniform(number, *DIRECT)[:, None] / 20) / tail.square().sum(1, keepdim=True).sqrt()
    rooms[:, 0] = 1.0
    size_of_both = quick(2 * size)
    both = torch.fft.rfft(rooms, size_of_both) * torch.fft.rfft(colours(number, size), size_of_both)
    return torch.fft.irfft(both, size_of_both)[:, :size]


def colours(number: int, size: int) -> Tensor:
    """Filters (number, size) of minimum phase, with gains of 0 +- 3 dB at 8 frequencies and in between."""
    bins = quick(size) // 2 + 1
    gains = GAIN * math.log(10) / 20 * torch.randn(number, 1, POINTS, device="cpu")
    smooth = F.interpolate(gains, bins, mode="linear", align_corners=True)[:, 0]
    cepstrum = torch.fft.irfft(smooth)
    folded = torch.cat([cepstrum[:, :1], 2 * cepstrum[:, 1 : bins - 1], cepstrum[:, bins - 1 : bins]], dim=1)
    return torch.fft.irfft(torch.fft.rfft(folded, 2 * (bins - 1)).exp())[:, :size]


class Folder:
    """Sounds of KINDS at 16 kHz in a folder and those within it, read as they are drawn; others are passed over."""

    def __init__(self, path: str, option: str) -> None:
        """Raises UpstreamError where there is no such folder, no sound in it, or one that cannot be used.

        option: whose value the path is.
        """
        self.root = Path(os.path.expanduser(path))
        self.option = option
        told = f"{option} of dino is '{printable(path)}'"
        if not path or not os.path.isdir(self.root):  # Path.is_dir fails on names that are too long
            raise UpstreamError(f"{told}, which is no folder; give one of audio files, such as MUSAN's")
        self.files = sorted(file for file in self.root.rglob("*") if file.suffix.lower() in KINDS and file.is_file())
        if not self.files:
            raise UpstreamError(f"{told}, in which there is no {', '.join(KINDS)}; give a folder of audio files")
        for file in self.files:  # not hours later: a training goes on only with the files that it began with
            self.opened(file).close()

    def digest(self) -> str:
        """SHA-256 of the names and sizes of all files."""
        listing = "".join(f"{file.relative_to(self.root)} {file.stat().st_size}\n" for file in self.files)
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()

    def noises(self, number: int, size: int) -> Tensor:
        """Stretches (number, size) of files at random; a shorter file is repeated."""
        return torch.stack([self.stretch(self.drawn(), size) for _ in range(number)])

    def rooms(self, number: int, size: int) -> Tensor:
        """Impulse responses (number, size) from their loudest sample on, which is 1."""
        return torch.stack([self.room(self.drawn(), size) for _ in range(number)])

    def drawn(self) -> Path:
        return self.files[int(torch.randint(len(self.files), (), device="cpu"))]

    def stretch(self, file: Path, size: int) -> Tensor:
        place = float(torch.rand((), device="cpu"))
        with self.opened(file) as sound:
            found = self.read(file, sound, int(place * (max(len(sound) - size, 0) + 1)), size)
        return found.repeat(-(-size // len(found)))[:size]

    def room(self, file: Path, size: int) -> Tensor:
        with self.opened(file) as sound:
            found = self.read(file, sound)
        peak = int(found.abs().argmax())
        if not float(found[peak].abs()) > SOUND:
            raise UpstreamError(f"{self.told(file)} is silent; take it out of the folder")
        found = found[peak : peak + size] / found[peak]
        return F.pad(found, (0, size - len(found)))

    def opened(self, file: Path) -> Any:
        """The file, which holds sound at 16 kHz."""
        import soundfile

        try:
            sound = soundfile.SoundFile(file)
        except (soundfile.SoundFileError, RuntimeError, OSError) as error:
            raise self.unreadable(file) from error
        rate, size = sound.samplerate, len(sound)
        if rate == RATE and size:
            return sound
        sound.close()
        if rate != RATE:
            raise UpstreamError(f"{self.told(file)} has {rate} samples per second; resample the folder to {RATE}")
        raise UpstreamError(f"{self.told(file)} is empty; take it out of the folder")

    def read(self, file: Path, sound: Any, first: int = 0, size: int = -1) -> Tensor:
        """At most `size` samples (S,) from the first on, the mean of all channels."""
        import soundfile

        try:
            sound.seek(first)
            found = torch.from_numpy(sound.read(size, dtype="float32", always_2d=True)).mean(1)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise self.unreadable(file) from error
        if not len(found) or not bool(found.isfinite().all()):
            raise self.unreadable(file)
        return found

    def unreadable(self, file: Path) -> UpstreamError:
        return UpstreamError(f"{self.told(file)} is not readable audio; take it out of the folder")

    def told(self, file: Path) -> str:
        return f"'{printable(str(file))}' in {self.option} of dino"
