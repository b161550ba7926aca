"""The encoder of Whisper and the Audio Spectrogram Transformer, whose input is a fixed number of log-mel frames.

A longer clip is cut into stretches of this length, which are encoded one by one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upstreams.base import Features, Upstream, UpstreamError, valid
from upstreams.families.front_end import FrontEnd
from upstreams.families.waveform_encoders import collect_states
from upstreams.safety.allow_list import short_repr
from upstreams.spectral import LogMel, trimmed

AT_ONCE = 8  # stretches in one forward pass; more would take gigabytes of hidden states


class Whisper(Upstream):
    """The encoder of Whisper (Radford et al., 2022); a clip longer than 30 s is encoded in stretches of 30 s.

    Layer 0 is the input of the first block; the last layer is the output after the final norm. A clip of S samples has
    S // 320 frames, at least one. The last stretch of a clip is padded with silence, as in training.
    """

    stable_name = "upstreams.spectrogram_encoders:Whisper"

    def __init__(self, encoder: Any, front_end: FrontEnd) -> None:
        super().__init__()
        config = encoder.config
        encoder.layerdrop = 0.0  # a dropped block would be missing among the layers
        self.encoder = encoder
        self.sample_rate = front_end.whole("sampling_rate")
        self.fft, self.mel_hop = front_end.whole("n_fft"), front_end.whole("hop_length")
        self.stretch = front_end.whole("chunk_length") * self.sample_rate
        self.frames_per_stretch = config.max_source_positions
        self.hop = self.window = 2 * self.mel_hop
        self.layers, self.dim = config.encoder_layers + 1, config.d_model
        bands = front_end.whole("feature_size")
        self.refuse_mismatch(bands, front_end)
        self.banks: Tensor
        self.taper: Tensor
        self.register_buffer("banks", slaney_banks(bands, self.fft, self.sample_rate))
        self.register_buffer("taper", torch.hann_window(self.fft))

    def refuse_mismatch(self, bands: int, front_end: FrontEnd) -> None:
        """Raise UpstreamError if the output of the front end does not match the input of the encoder."""
        config = self.encoder.config
        for key in ("padding_value", "dither"):  # earlier releases of transformers have no dither
            if front_end.get(key, 0.0) != 0.0:
                raise UpstreamError(
                    f"{key} in preprocessor_config.json is {short_repr(front_end[key])}, but stretches are filled with "
                    "silence and have no noise added; it must be 0"
                )
        if self.fft > self.stretch:
            raise UpstreamError(
                f"n_fft in preprocessor_config.json is {self.fft}, longer than a whole stretch of sound"
            )
        if self.stretch != self.frames_per_stretch * self.hop:
            raise UpstreamError(
                f"preprocessor_config.json gives stretches of {self.stretch / self.hop:g} frames, but "
                f"max_source_positions in config.json is {self.frames_per_stretch}; they must agree"
            )
        if bands != config.num_mel_bins:
            raise UpstreamError(
                f"preprocessor_config.json gives {bands} mel bands (feature_size), but num_mel_bins in config.json "
                f"is {config.num_mel_bins}; they must agree"
            )

    def settings(self) -> dict[str, object]:
        keys = ("encoder_attention_heads", "activation_function", "scale_embedding")
        config = {key: getattr(self.encoder.config, key, None) for key in keys}
        return {"fft": self.fft, "mel_hop": self.mel_hop, "stretch": self.stretch, **config}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        clean = trimmed(waveforms.float(), lengths, 0)
        number = -(-counts // self.frames_per_stretch)
        pieces, owner = cut_stretches(clean, number, self.stretch)
        longest = min(int(counts.max()), self.frames_per_stretch)
        frames = torch.cat([self.encode(batch, longest) for batch in pieces.split(AT_ONCE)])
        return join_stretches(frames, owner, counts)

    def encode(self, pieces: Tensor, longest: int) -> Tensor:
        """Return the first `longest` frames (N, longest, L, D) of stretches (N, stretch)."""
        with collect_states(self.encoder.layers) as states:
            output = self.encoder(self.log_mel(pieces))
        states[-1] = output[0]  # after the final norm, in every release of transformers
        return torch.stack([state[:, :longest].float() for state in states], dim=2)

    def log_mel(self, pieces: Tensor) -> Tensor:
        """Return log-mel frames (N, bands, 2 T) of stretches (N, stretch), as WhisperFeatureExtractor computes them."""
        with torch.autocast(pieces.device.type, enabled=False):
            spectrum = torch.stft(pieces, self.fft, self.mel_hop, window=self.taper, return_complex=True)[..., :-1]
            power = spectrum.real**2 + spectrum.imag**2
            log = torch.clamp(self.banks.T @ power, min=1e-10).log10()
            return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class Ast(Upstream):
    """Audio Spectrogram Transformer (Gong et al., 2021); a frame is the mean over frequency of the patches at one time.

    Layer 0 is the input of the first block; the last layer is the output after the final norm. The class and
    distillation tokens are part of the input but give no frames, and `summarize` is the mean over time. A clip longer
    than the model's `max_length` mel frames is encoded in stretches; the last is padded as ASTFeatureExtractor does.
    """

    stable_name = "upstreams.spectrogram_encoders:Ast"

    def __init__(self, model: Any, front_end: FrontEnd) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.sample_rate, self.normalize = front_end.whole("sampling_rate"), front_end.flag("do_normalize")
        self.mean, self.std = front_end.real("mean"), front_end.real("std")
        if self.std <= 0:
            raise front_end.error("std", "above zero")
        self.mel_frames, bands = front_end.whole("max_length"), front_end.whole("num_mel_bins")
        if (self.mel_frames, bands) != (config.max_length, config.num_mel_bins):
            raise UpstreamError(
                f"preprocessor_config.json gives {self.mel_frames} frames of {bands} bands, but config.json wants "
                f"{config.max_length} of {config.num_mel_bins}; they must agree"
            )
        self.spectrum = LogMel(bands, self.sample_rate, "hanning")
        self.frames_per_stretch = (self.mel_frames - config.patch_size) // config.time_stride + 1
        self.hop = config.time_stride * self.spectrum.hop
        self.window = self.spectrum.size + (config.patch_size - 1) * self.spectrum.hop
        self.layers, self.dim = config.num_hidden_layers + 1, config.hidden_size

    def settings(self) -> dict[str, object]:
        keys = ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "frequency_stride", "time_stride")
        config = {key: getattr(self.model.config, key) for key in keys}
        return {"normalize": self.normalize, "mean": self.mean, "std": self.std, "frames": self.mel_frames, **config}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        number = -(-counts // self.frames_per_stretch)
        pieces, owner = self.pieces(self.log_mel(waveforms, lengths), number)
        return join_stretches(torch.cat([self.encode(batch) for batch in pieces.split(AT_ONCE)]), owner, counts)

    def encode(self, pieces: Tensor) -> Tensor:
        """Return frames (N, T, L, D) of stretches (N, max_length, bands)."""
        blocks = getattr(self.model, "layers", None)
        with collect_states(self.model.encoder.layer if blocks is None else blocks) as states:
            output = self.model(pieces)
        states[-1] = output[0]  # after the final norm, in every release of transformers
        return torch.stack([self.frames(state.float()) for state in states], dim=2)

    def log_mel(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return log-mel frames (B, M, bands), zero after the end of each clip."""
        with torch.autocast(waveforms.device.type, enabled=False):
            mel = self.spectrum(trimmed(waveforms.float(), lengths, self.spectrum.size))
        ends = torch.clamp(lengths - self.spectrum.size, min=0) // self.spectrum.hop + 1
        return mel.masked_fill(~valid(ends, mel.shape[1])[:, :, None], 0.0)

    def pieces(self, mel: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return stretches (N, max_length, bands), scaled as by the feature extractor, and the clip index (N,) of each.

        A stretch begins where the next frame after the previous stretch begins, so frames are evenly spaced.
        """
        step = self.frames_per_stretch * self.model.config.time_stride
        size = (int(number.max()) - 1) * step + self.mel_frames
        mel = F.pad(mel[:, :size], (0, 0, 0, max(size - mel.shape[1], 0)))
        windows = mel.unfold(1, self.mel_frames, step).transpose(2, 3)
        needed = valid(number, windows.shape[1])
        pieces = windows[needed]
        scaled = (pieces - self.mean) / (2 * self.std) if self.normalize else pieces
        return scaled, needed.nonzero()[:, 0]

    def frames(self, tokens: Tensor) -> Tensor:
        """Average tokens (N, 2 + F T, D), without the first two, over frequency to frames (N, T, D)."""
        return tokens[:, 2:].unflatten(1, (-1, self.frames_per_stretch)).mean(1)


def cut_stretches(clean: Tensor, number: Tensor, stretch: int) -> tuple[Tensor, Tensor]:
    """Return the first `number` (B,) stretches of each clip of (B, S) as (N, stretch), and their clip indices (N,)."""
    size = int(number.max()) * stretch
    clean = F.pad(clean[:, :size], (0, max(size - clean.shape[1], 0)))
    needed = valid(number, size // stretch)
    return clean.unflatten(1, (-1, stretch))[needed], needed.nonzero()[:, 0]


def join_stretches(pieces: Tensor, owner: Tensor, counts: Tensor) -> Features:
    """Join the frames (N, T, L, D) of stretches into features of clips; owner (N,) is the sorted clip index of each."""
    longest = int(counts.max())
    most = math.ceil(longest / pieces.shape[1])
    order = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    frames = pieces.new_zeros(len(counts), most, *pieces.shape[1:]).index_put((owner, order), pieces)
    frames = frames.flatten(1, 2)[:, :longest]
    return Features(frames.masked_fill_(~valid(counts, longest)[:, :, None, None], 0.0), counts)


def slaney_banks(bands: int, fft: int, sample_rate: int, highest: float = 8000.0) -> Tensor:
    """Return Whisper's triangular mel filters (fft / 2 + 1, bands) of unit area.

    The mel scale (Slaney) is linear below 1 kHz and logarithmic above.
    """
    top = hertz_to_slaney(torch.tensor(highest, dtype=torch.float64)).item()
    edges = slaney_to_hertz(torch.linspace(0.0, top, bands + 2, dtype=torch.float64))
    bins = torch.linspace(0.0, sample_rate // 2, fft // 2 + 1, dtype=torch.float64)[:, None]
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((bins - left) / (peak - left), (right - bins) / (right - peak)).clamp(min=0)
    return (triangles * 2.0 / (right - left)).float()


def hertz_to_slaney(hertz: Tensor) -> Tensor:
    return torch.where(hertz < 1000.0, hertz * 3 / 200, 15.0 + torch.log(hertz / 1000.0) * 27 / math.log(6.4))


def slaney_to_hertz(mels: Tensor) -> Tensor:
    return torch.where(mels < 15.0, mels * 200 / 3, 1000.0 * torch.exp((mels - 15.0) * math.log(6.4) / 27))
