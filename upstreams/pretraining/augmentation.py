"""Noise and reverberation for segments of clips, by SpeechBrain's functions (Ravanelli et al., 2021).

Noises and room impulse responses are read from the user's folders, such as MUSAN (Snyder et al., 2015) and the impulse
responses of Ko et al. (2017), or are synthetic: coloured noise, and impulse responses of exponentially decaying noise.
All random numbers come from torch's generators.
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
SHARES = (0.45, 0.7)  # of the clips that get reverberation, and that get noise
SNR = (0.0, 18.0)  # dB
COLOURS = (0.0, 0.8)  # exponents of the fall of amplitude over frequency, from white noise to red
TAIL = RATE // 2  # samples of an impulse response that are used
DECAYS = (0.1, 0.6)  # seconds in which a synthetic impulse response falls by 60 dB
GAIN, POINTS = 3.0, 8  # of the gains of a synthetic room: standard deviation in dB, and number of frequencies
DIRECT = (0.0, 12.0)  # dB of the direct sound relative to the reverberation
KINDS = (".wav", ".flac", ".ogg", ".mp3")
SOUND = 0.0001  # of full scale; an impulse response with a lower peak counts as silent

Draw = Callable[[int, int], Tensor]  # maps (number, size) to sounds (number, size)


class Sources(NamedTuple):
    """Functions that draw noises and room impulse responses; None: synthetic ones."""

    noises: Draw | None = None
    rooms: Draw | None = None


SYNTHETIC = Sources()


@torch.no_grad()
def augmented(
    waveforms: Tensor, lengths: Tensor, sources: Sources = SYNTHETIC, shares: tuple[float, float] = SHARES
) -> Tensor:
    """Return clips (B, S) of lengths (B,), random ones with reverberation, then noise; zero beyond their lengths.

    shares: probabilities that a clip gets reverberation, and noise, independently of the other clips.
    """
    clean = waveforms.masked_fill(~valid(lengths, waveforms.shape[1]), 0.0)
    steps = zip(shares, (add_reverberation, add_background_noise), (sources.rooms, sources.noises), strict=True)
    for share, augment, source in steps:
        rows = (torch.rand(len(clean), device="cpu") < share).nonzero()[:, 0].to(clean.device)
        if len(rows):
            clean = clean.index_copy(0, rows, augment(clean[rows], lengths[rows], source))
    return clean.masked_fill_(~valid(lengths, clean.shape[1]), 0.0)


def add_reverberation(waveforms: Tensor, lengths: Tensor, source: Draw | None = None) -> Tensor:
    """Return clips (N, S), each convolved with a room impulse response, with unchanged mean amplitude."""
    guard()
    from speechbrain.processing.signal_processing import compute_amplitude, convolve1d, rescale

    rooms = (source or room_impulse_responses)(len(waveforms), TAIL).to(waveforms.device)
    count = lengths[:, None]
    before = compute_amplitude(waveforms, count)
    size = waveforms.shape[1]
    room = F.pad(waveforms, (0, fast_fft_size(size + TAIL) - size))
    reverberated = convolve1d(room[:, :, None], rooms[:, :, None], use_fft=True)[:, :size, 0]
    return rescale(reverberated.masked_fill(~valid(lengths, size), 0.0), count, before)


def add_background_noise(waveforms: Tensor, lengths: Tensor, source: Draw | None = None) -> Tensor:
    """Return clips (N, S), each with a noise added at a signal-to-noise ratio of 0 to 18 dB."""
    guard()
    from speechbrain.processing.signal_processing import compute_amplitude, dB_to_amplitude

    size, count = waveforms.shape[1], lengths[:, None]
    noise = (source or power_law_noise)(len(waveforms), size).to(waveforms.device)
    noise = noise.masked_fill(~valid(lengths, size), 0.0)
    loud, quiet = (compute_amplitude(signal, count, amp_type="rms") for signal in (waveforms, noise))
    below = dB_to_amplitude(uniform_samples(len(waveforms), *SNR)).to(waveforms.device)[:, None]
    return waveforms + noise * loud / (quiet * below).clamp(min=1e-10)


def fast_fft_size(size: int) -> int:
    """Return the least number of samples, not below `size`, for which the Fourier transform is fast."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def uniform_samples(number: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(number, device="cpu")


def power_law_noise(number: int, size: int) -> Tensor:
    """Return noises (number, size) whose amplitudes fall as f^-a, with a drawn from COLOURS."""
    guard()
    from speechbrain.augment.time_domain import pink_noise_like

    return pink_noise_like(torch.empty(number, fast_fft_size(size), device="cpu"), *COLOURS, sample_rate=RATE)[:, :size]


def room_impulse_responses(number: int, size: int) -> Tensor:
    """Return impulse responses (number, size): a filtered click, and noise that falls by 60 dB in 0.1 to 0.6 s."""
    times = torch.arange(size, device="cpu") / RATE
    tail = torch.randn(number, size, device="cpu") * 1000 ** (-times / uniform_samples(number, *DECAYS)[:, None])
    tail[:, 0] = 0.0
    rooms = tail * 10 ** (-uniform_samples(number, *DIRECT)[:, None] / 20) / tail.square().sum(1, keepdim=True).sqrt()
    rooms[:, 0] = 1.0
    size_of_both = fast_fft_size(2 * size)
    both = torch.fft.rfft(rooms, size_of_both) * torch.fft.rfft(room_filters(number, size), size_of_both)
    return torch.fft.irfft(both, size_of_both)[:, :size]


def room_filters(number: int, size: int) -> Tensor:
    """Return minimum-phase filters (number, size) with gains of 0 +- 3 dB at 8 frequencies, interpolated between."""
    bins = fast_fft_size(size) // 2 + 1
    gains = GAIN * math.log(10) / 20 * torch.randn(number, 1, POINTS, device="cpu")
    smooth = F.interpolate(gains, bins, mode="linear", align_corners=True)[:, 0]
    cepstrum = torch.fft.irfft(smooth)
    folded = torch.cat([cepstrum[:, :1], 2 * cepstrum[:, 1 : bins - 1], cepstrum[:, bins - 1 : bins]], dim=1)
    return torch.fft.irfft(torch.fft.rfft(folded, 2 * (bins - 1)).exp())[:, :size]


class Folder:
    """The audio files (KINDS, 16 kHz) in a folder and its subfolders, read when drawn; other files are ignored."""

    def __init__(self, path: str, option: str) -> None:
        """Raises UpstreamError if the folder is missing or empty, or if one of its audio files cannot be used.

        option: the name of the option whose value is the path, for messages.
        """
        self.root = Path(os.path.expanduser(path))
        self.option = option
        setting = f"{option} of dino is '{printable(path)}'"
        if not path or not os.path.isdir(self.root):  # Path.is_dir fails on names that are too long
            raise UpstreamError(f"{setting}, which is no folder; give one of audio files, such as MUSAN's")
        self.files = sorted(file for file in self.root.rglob("*") if file.suffix.lower() in KINDS and file.is_file())
        if not self.files:
            raise UpstreamError(f"{setting}, in which there is no {', '.join(KINDS)}; give a folder of audio files")
        for file in self.files:  # now rather than after hours of training, which resumes only with the same files
            self.opened(file).close()

    def digest(self) -> str:
        """Return the SHA-256 of the names and sizes of all files."""
        listing = "".join(f"{file.relative_to(self.root)} {file.stat().st_size}\n" for file in self.files)
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()

    def noises(self, number: int, size: int) -> Tensor:
        """Return random segments (number, size) of random files; a shorter file is repeated."""
        return torch.stack([self.segment(self.random_file(), size) for _ in range(number)])

    def rooms(self, number: int, size: int) -> Tensor:
        """Return impulse responses (number, size) that begin at their peak, which is scaled to 1."""
        return torch.stack([self.room(self.random_file(), size) for _ in range(number)])

    def random_file(self) -> Path:
        return self.files[int(torch.randint(len(self.files), (), device="cpu"))]

    def segment(self, file: Path, size: int) -> Tensor:
        place = float(torch.rand((), device="cpu"))
        with self.opened(file) as sound:
            samples = self.read(file, sound, int(place * (max(len(sound) - size, 0) + 1)), size)
        return samples.repeat(-(-size // len(samples)))[:size]

    def room(self, file: Path, size: int) -> Tensor:
        with self.opened(file) as sound:
            samples = self.read(file, sound)
        peak = int(samples.abs().argmax())
        if not float(samples[peak].abs()) > SOUND:
            raise UpstreamError(f"{self.label(file)} is silent; take it out of the folder")
        response = samples[peak : peak + size] / samples[peak]
        return F.pad(response, (0, size - len(response)))

    def opened(self, file: Path) -> Any:
        """Open an audio file; raises UpstreamError unless it is readable, not empty and sampled at 16 kHz."""
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
            raise UpstreamError(f"{self.label(file)} has {rate} samples per second; resample the folder to {RATE}")
        raise UpstreamError(f"{self.label(file)} is empty; take it out of the folder")

    def read(self, file: Path, sound: Any, first: int = 0, size: int = -1) -> Tensor:
        """Return at most `size` samples (S,) from sample `first` on, averaged over the channels."""
        import soundfile

        try:
            sound.seek(first)
            samples = torch.from_numpy(sound.read(size, dtype="float32", always_2d=True)).mean(1)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise self.unreadable(file) from error
        if not len(samples) or not bool(samples.isfinite().all()):
            raise self.unreadable(file)
        return samples

    def unreadable(self, file: Path) -> UpstreamError:
        return UpstreamError(f"{self.label(file)} is not readable audio; take it out of the folder")

    def label(self, file: Path) -> str:
        return f"'{printable(str(file))}' in {self.option} of dino"
