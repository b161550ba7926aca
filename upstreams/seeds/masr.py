"""MASR, metadata-aware speech representations (Raj et al., 2023): a Conformer and masked prediction.

The paper's own idea, similarities by metadata in a hard-mining loss, is in `metadata_triplet`, which any method
takes. Of the rest only the abstract is public: no code, no weights, and neither the encoder nor the self-supervised
losses that it was tried with. All of this is our choice, then:

- The encoder is SpeechBrain's Conformer (Gulati et al., 2020; Ravanelli et al., 2021), whose names the weights have,
  on 80 log-mel bands. Its convolutions are kept from seeing what lies beyond a clip's end, which SpeechBrain hides
  from its attention only. Relative positions tell before from after; SpeechBrain's own table gives both the same sines.
- A token of 40 ms is made by two convolutions of stride 2 without padding in time, over 85 ms.
- The self-supervised loss is BEST-RQ (Chiu et al., 2022): masked tokens are classified by which of the random codes
  the random projection of their own mel frames is nearest to.
- The vector of a clip is the mean over time of what the middle block gives.
- Sizes "base" and "large" are the medium and large Conformer of its authors, but for kernels of odd width; "mini" is
  this project's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams import register
from upstreams.arguments import advice
from upstreams.base import SHIPPED, Features, Upstream, UpstreamError, valid
from upstreams.pretraining.masking import scattered, share_of
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step, mean_where
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable
from upstreams.safety.strict_loading import DEPTHS, fitting
from upstreams.seeds.random_projection import Quantizer
from upstreams.spectral import LogMel, trimmed
from upstreams.torchaudio_guard import guard

BANDS, MEL_WINDOW, MEL_HOP = 80, 400, 160  # mel bands; samples
STRIDE, SEEN = 4, 7  # mel frames from one token to the next, and in each
CENTER, SCALE = -5.0, 3.0  # about the mean and standard deviation of log-mel energies of speech
KERNELS = range(1, 4096, 2)  # widths of the convolutions over time
ENCODER = "speechbrain.lobes.models.transformer.Conformer.ConformerEncoder"
MEASURED = 10  # batches that mean and variance are taken of
NOISE = 0.1  # standard deviation of what masked frames are replaced with


class MasrSize(NamedTuple):
    """What the encoder's weights are shaped by."""

    dim: int
    depth: int
    hidden: int  # channels within the feed-forward modules
    heads: int
    kernel: int  # tokens that a convolution sees
    channels: int  # of the convolutions that make tokens


SIZES = {
    "mini": MasrSize(128, 4, 256, 4, 9, 16),
    "base": MasrSize(256, 16, 1024, 4, 31, 256),
    "large": MasrSize(512, 17, 2048, 8, 31, 512),
}


class Subsampling(nn.Module):
    """Tokens of 7 mel frames, one in 4 frames: two convolutions over time and bands, then a projection."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=(0, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1))
        self.proj = nn.Linear(channels * BANDS // STRIDE, dim)

    def forward(self, mel: Tensor) -> Tensor:
        """(B, M, bands) to (B, T, D)."""
        images = F.relu(self.conv2(F.relu(self.conv1(mel[:, None]))))
        return self.proj(images.transpose(1, 2).flatten(2))


class Conformer(nn.Module):
    """Convolutions that make tokens, and SpeechBrain's ConformerEncoder behind them."""

    def __init__(self, size: MasrSize) -> None:
        from upstreams.families.speechbrain import library

        super().__init__()
        guard()
        self.subsampling = Subsampling(size.channels, size.dim)
        encoder = library(ENCODER)
        self.encoder: Any = encoder(size.depth, size.dim, size.hidden, size.heads, kernel_size=size.kernel)

    def forward(self, mel: Tensor, counts: Tensor) -> list[Tensor]:
        """Input of the first block and output of every block, the last after the final norm, each (B, T, D).

        mel: (B, M, bands), scaled. counts: (B,) tokens of each clip, T at most; others are not seen.
        """
        tokens = self.subsampling(mel)
        beyond = ~valid(counts, tokens.shape[1])
        padding = beyond if bool(beyond.any()) else None
        places = offsets(tokens.shape[1], tokens.shape[2], tokens.device)
        states = [tokens]
        for layer in self.encoder.layers:
            states.append(through(layer, states[-1], padding, places))
        return [*states[:-1], self.encoder.norm(states[-1])]


def through(layer: Any, tokens: Tensor, padding: Tensor | None, places: Tensor) -> Tensor:
    """What SpeechBrain's ConformerEncoderLayer makes of tokens (B, T, D), but that no part sees padding (B, T)."""
    tokens = tokens + 0.5 * layer.ffn_module1(tokens)
    normed = layer.norm1(tokens)
    found, _ = layer.mha_layer(normed, normed, normed, pos_embs=places, key_padding_mask=padding)
    tokens = tokens + found
    tokens = tokens + convolved(layer.convolution_module, tokens, padding)
    return layer.norm2(tokens + 0.5 * layer.ffn_module2(tokens))


def convolved(module: Any, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """What SpeechBrain's ConvolutionModule makes of each clip of tokens (B, T, D) alone."""
    gated = module.bottleneck(module.layer_norm(tokens).transpose(1, 2))
    if padding is not None:
        gated = gated.masked_fill(padding[:, None], 0.0)
    return module.after_conv(module.conv(gated).transpose(1, 2))


def offsets(number: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines (1, 2 T - 1, D) of how far before a token another one is, T - 1 to 1 - T (Dai et al., 2019)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000.0) / dim))
    angles = torch.arange(number - 1, -number, -1, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]


class ScaledMel(nn.Module):
    """Kaldi's log-mel energies at about zero mean and unit variance over speech, by constants."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = LogMel(BANDS)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) to (B, M, bands) with at least the frames of one token."""
        # Energies span eight decades, so reduced precision must not reach them.
        with torch.autocast(waveforms.device.type, enabled=False):
            mel = self.spectrum(trimmed(waveforms.float(), lengths, Masr.window))
            return (mel - CENTER) / SCALE


class Masr(Upstream):
    """The Conformer, frames of 40 ms: layer 0 is the input of the first block, then what each block gives.

    The last one is after the final norm. A clip is attended to as a whole, so that memory grows with the square of its
    length: minutes of sound are better cut before.
    """

    stable_name = "upstreams.masr:Masr"
    hop, window = STRIDE * MEL_HOP, MEL_WINDOW + (SEEN - 1) * MEL_HOP

    def __init__(self, size: MasrSize) -> None:
        super().__init__()
        self.network, self.mel = Conformer(size), ScaledMel()
        self.layers, self.dim = size.depth + 1, size.dim

    def settings(self) -> dict[str, object]:
        return {"center": CENTER, "scale": SCALE}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        states = self.network(self.mel(waveforms, lengths), counts)
        frames = torch.stack([state.float() for state in states], dim=2)
        return Features(frames.masked_fill(~valid(counts, frames.shape[1])[:, :, None, None], 0.0), counts)


@register
def masr(checkpoint: str = "", random: bool = False, size: str | None = None) -> Upstream:
    """MASR (Raj et al., 2023) from what `bench pretrain masr` made, as there are no published weights: masr@FILE."""
    if checkpoint:
        if size is not None:
            raise UpstreamError(f"the size of 'masr@{printable(checkpoint)}' is that of the file; leave it out")
        return loaded(checkpoint, random)
    if not random:
        raise UpstreamError(
            "'masr' needs a checkpoint: masr@FILE, of what `bench pretrain masr` made, as its authors published none; "
            "masr@random draws weights"
        )
    return Masr(size_of("base" if size is None else size))


@register
def masr_mini(random: bool = False) -> Upstream:
    """MASR with 4 blocks of 128 channels, pre-trained by this project on its embedded corpus and that one's labels."""
    return loaded(str(SHIPPED / "masr_mini.safetensors"), random)


def size_of(name: str) -> MasrSize:
    if name not in SIZES:
        raise UpstreamError(f"no size '{printable(name)}' of masr; {advice(name, [*SIZES], False)}")
    return SIZES[name]


def loaded(checkpoint: str, random: bool) -> Upstream:
    """The encoder in a file of `bench pretrain`, or its architecture with weights drawn anew.

    Raises UpstreamError where the file is missing, broken or of another model, or its weights are not finite.
    """
    path = checkpoints.expanded(checkpoint)
    reference = printable(checkpoint)
    weights = checkpoints.read(path)
    size = size_in(weights, reference)
    weights = fitting(weights, lambda: Conformer(size), "MASR's Conformer", reference)
    upstream = Masr(size)
    if not random:
        upstream.network.load_state_dict(weights)
    upstream.origin = checkpoints.digests([path])
    return upstream


def size_in(weights: Mapping[str, Tensor], reference: str) -> MasrSize:
    """Shapes that an encoder's weights speak of; raises UpstreamError where it is none."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = tuple(weights[name].shape) if name in weights else ()
        return found if len(found) == axes else (0,) * axes

    depth = len({found[1] for name in weights if (found := re.match(r"encoder\.layers\.([0-9]+)\.", name))})
    dim, hidden = shape("encoder.layers.0.ffn_module1.1.ffn.3.weight", 2)
    width, heads = shape("encoder.layers.0.mha_layer.pos_bias_u", 2)
    kernel = shape("encoder.layers.0.convolution_module.conv.weight", 3)[2]
    size = MasrSize(dim, depth, hidden, heads, kernel, shape("subsampling.conv1.bias", 1)[0])
    if not all(size) or width * heads != dim or dim % 2 or kernel not in KERNELS or depth not in DEPTHS:
        raise UpstreamError(
            f"'{reference}' holds no encoder of MASR, which has subsampling.conv1 and encoder.layers with heads of "
            "equal width and kernels of odd width; give what bench pretrain masr made, as there are no others"
        )
    return size


# Rates, batches, masks and codes follow Chiu et al. (2022), but for half the rate of "large"; steps are ours, and none
# of the two was tried here.
PAPER = Recipe(
    steps=250_000, batch=2048, seconds=16.0, lr=4e-3, warmup=25_000, betas=(0.9, 0.98), weight_decay=0.01, clip=1.0
)
RECIPES = {
    "mini": Recipe(
        steps=500, batch=48, seconds=2.0, lr=2e-3, warmup=50, betas=(0.9, 0.98), weight_decay=0.01, clip=1.0
    ),
    "base": PAPER,
    "large": replace(PAPER, lr=2e-3),
}


class Objective(NamedTuple):
    """Codes in each of so many codebooks, and how tokens are masked: shares that begin a span, and its tokens."""

    codebooks: int
    codes: int
    begin: float
    span: int


OBJECTIVES = {"mini": Objective(2, 256, 0.15, 3)}
USUAL = Objective(1, 8192, 0.04, 10)  # a hundredth of mel frames begin 400 ms


class MasrPretraining(Method):
    """BEST-RQ (Chiu et al., 2022): the code of each masked token is to be told from the tokens around it.

    The mel frames of masked tokens are replaced with noise before the encoder sees them. "accuracy" is the share of
    masked tokens whose code is the likeliest, over all codebooks.
    """

    metadata: Mapping[str, float] = MappingProxyType({"language": 1.0, "speaker": 1.0})

    def __init__(self, size: MasrSize, recipe: Recipe, objective: Objective) -> None:
        super().__init__()
        self.recipe, self.objective = recipe, objective
        self.mel, self.network = ScaledMel(), Conformer(size)
        self.quantizer = Quantizer(STRIDE * BANDS, objective.codebooks, objective.codes)
        self.classifier = nn.Linear(size.dim, objective.codebooks * objective.codes)

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        """Measure mean and variance of what is to be coded."""
        self.quantizer.measure(stacked(*self.seen(batch)) for batch in islice(batches, MEASURED))

    def forward(self, batch: AudioBatch, done: float) -> Step:
        mel, there = self.seen(batch)
        mask = self.mask(there)
        states = self.network(noisy(mel, mask), there.sum(1))
        terms = self.terms(states[-1][mask], self.quantizer(stacked(mel, mask)))
        return Step(terms, mean_where(states[len(states) // 2], there))

    def seen(self, batch: AudioBatch) -> tuple[Tensor, Tensor]:
        """Mel frames (B, M, bands), and which tokens (B, T) there are."""
        counts = torch.clamp(batch.lengths - Masr.window, min=0) // Masr.hop + 1
        return self.mel(batch.waveforms, batch.lengths), valid(counts, int(counts.max()))

    def mask(self, there: Tensor) -> Tensor:
        """Tokens to hide (B, T), in spans, out of those that are there; at least one of each clip."""
        begin = scattered(there, share_of(there, self.objective.begin)).float()
        reach = self.objective.span - 1
        return F.max_pool1d(F.pad(begin, (reach, 0))[:, None], reach + 1, stride=1)[:, 0].bool() & there

    def terms(self, hidden: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Of the masked tokens (N, D) and their codes (N, codebooks)."""
        scores = self.classifier(hidden).float().unflatten(1, (self.objective.codebooks, -1)).flatten(0, 1)
        right = (scores.argmax(1) == codes.flatten()).float().mean()
        return {"loss": F.cross_entropy(scores, codes.flatten()), "accuracy": right}

    def exported(self) -> dict[str, Tensor]:
        return self.network.state_dict()


def stacked(mel: Tensor, chosen: Tensor) -> Tensor:
    """What is coded of the chosen tokens (B, T): the first 4 mel frames that each one sees, (N, 4 bands)."""
    return mel[:, : chosen.shape[1] * STRIDE].unflatten(1, (-1, STRIDE)).flatten(2)[chosen]


def noisy(mel: Tensor, mask: Tensor) -> Tensor:
    """(B, M, bands) with noise in place of the frames that the masked tokens (B, T) are of."""
    hidden = F.pad(mask.repeat_interleave(STRIDE, dim=1), (0, mel.shape[1] - STRIDE * mask.shape[1]))
    return torch.where(hidden[:, :, None], NOISE * torch.randn_like(mel), mel)


def method(size: str) -> Method:
    """The objective with an encoder of a size at its start; raises UpstreamError for a size that there is none of."""
    return MasrPretraining(size_of(size), RECIPES[size], OBJECTIVES.get(size, USUAL))
