"""MASR, metadata-aware speech representations (Raj et al., 2023): a Conformer and masked prediction.

The paper's main idea, a hard-mining loss with similarities by metadata, is in `metadata_triplet` and can be added to
any method. For the rest, only the abstract is public: there is no code, there are no weights, and neither the encoder
nor the self-supervised losses are described. Therefore, the following are this project's choices:

- The encoder is SpeechBrain's Conformer (Gulati et al., 2020; Ravanelli et al., 2021), whose names the weights have,
  on 80 log-mel bands. Padding beyond a clip's end is masked in its convolutions too; SpeechBrain masks it in attention
  only. Relative positions distinguish before from after; SpeechBrain's own table gives both the same sines.
- Two convolutions of stride 2 without padding in time compute a token every 40 ms from 85 ms of audio.
- The self-supervised loss is BEST-RQ (Chiu et al., 2022): masked tokens are classified by which of the random codes
  the random projection of their own mel frames is nearest to.
- The vector of a clip is the mean of the middle block's output over time.
- Sizes "base" and "large" are the medium and large Conformer of Gulati et al., except that kernel widths are odd;
  "mini" is this project's own.
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
from upstreams.arguments import suggestion
from upstreams.base import SHIPPED, Features, Upstream, UpstreamError, valid
from upstreams.pretraining.masking import random_mask, share_of
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step, mean_where
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable
from upstreams.safety.strict_loading import DEPTHS, strictly_loaded
from upstreams.seeds.random_projection import Quantizer
from upstreams.spectral import LogMel, trimmed
from upstreams.torchaudio_guard import guard

BANDS, MEL_WINDOW, MEL_HOP = 80, 400, 160  # mel bands; samples
STRIDE, SEEN = 4, 7  # mel frames from one token to the next, and of each token
CENTER, SCALE = -5.0, 3.0  # about the mean and standard deviation of log-mel energies of speech
KERNELS = range(1, 4096, 2)  # widths of the convolutions over time
ENCODER = "speechbrain.lobes.models.transformer.Conformer.ConformerEncoder"
MEASURED = 10  # batches from which mean and variance are estimated
NOISE = 0.1  # standard deviation of the noise that replaces masked frames


class MasrSize(NamedTuple):
    """The settings that determine the shapes of the encoder's weights."""

    dim: int
    depth: int
    hidden: int  # channels within the feed-forward modules
    heads: int
    kernel: int  # width of the convolutions, in tokens
    channels: int  # of the convolutions that compute tokens


SIZES = {
    "mini": MasrSize(128, 4, 256, 4, 9, 16),
    "base": MasrSize(256, 16, 1024, 4, 31, 256),
    "large": MasrSize(512, 17, 2048, 8, 31, 512),
}


class Subsampling(nn.Module):
    """Two convolutions over time and bands, and a projection: tokens of 7 mel frames, one every 4 frames."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=(0, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=(0, 1))
        self.proj = nn.Linear(channels * BANDS // STRIDE, dim)

    def forward(self, mel: Tensor) -> Tensor:
        """Map mel frames (B, M, bands) to tokens (B, T, D)."""
        images = F.relu(self.conv2(F.relu(self.conv1(mel[:, None]))))
        return self.proj(images.transpose(1, 2).flatten(2))


class Conformer(nn.Module):
    """Convolutions that compute tokens, followed by SpeechBrain's ConformerEncoder."""

    def __init__(self, size: MasrSize) -> None:
        from upstreams.families.speechbrain import speechbrain_class

        super().__init__()
        guard()
        self.subsampling = Subsampling(size.channels, size.dim)
        encoder = speechbrain_class(ENCODER)
        self.encoder: Any = encoder(size.depth, size.dim, size.hidden, size.heads, kernel_size=size.kernel)

    def forward(self, mel: Tensor, counts: Tensor) -> list[Tensor]:
        """Return the input of the first block and the output of every block, the last after the final norm, (B, T, D).

        mel: (B, M, bands), scaled. counts: (B,) number of valid tokens of each clip, at most T; others are masked.
        """
        tokens = self.subsampling(mel)
        beyond = ~valid(counts, tokens.shape[1])
        padding = beyond if bool(beyond.any()) else None
        places = relative_positions(tokens.shape[1], tokens.shape[2], tokens.device)
        states = [tokens]
        for layer in self.encoder.layers:
            states.append(conformer_layer(layer, states[-1], padding, places))
        return [*states[:-1], self.encoder.norm(states[-1])]


def conformer_layer(layer: Any, tokens: Tensor, padding: Tensor | None, places: Tensor) -> Tensor:
    """Apply SpeechBrain's ConformerEncoderLayer to tokens (B, T, D), with padding (B, T) masked in all its parts."""
    tokens = tokens + 0.5 * layer.ffn_module1(tokens)
    normed = layer.norm1(tokens)
    attended, _ = layer.mha_layer(normed, normed, normed, pos_embs=places, key_padding_mask=padding)
    tokens = tokens + attended
    tokens = tokens + conformer_convolution(layer.convolution_module, tokens, padding)
    return layer.norm2(tokens + 0.5 * layer.ffn_module2(tokens))


def conformer_convolution(module: Any, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Apply SpeechBrain's ConvolutionModule to tokens (B, T, D), with padding set to zero before the convolution."""
    gated = module.bottleneck(module.layer_norm(tokens).transpose(1, 2))
    if padding is not None:
        gated = gated.masked_fill(padding[:, None], 0.0)
    return module.after_conv(module.conv(gated).transpose(1, 2))


def relative_positions(number: int, dim: int, device: torch.device) -> Tensor:
    """Return sinusoids (1, 2 T - 1, D) of the distances T - 1 to 1 - T between two tokens (Dai et al., 2019)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000.0) / dim))
    angles = torch.arange(number - 1, -number, -1, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]


class ScaledMel(nn.Module):
    """Kaldi's log-mel energies, scaled by constants to about zero mean and unit variance over speech."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = LogMel(BANDS)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Map waveforms (B, S) to frames (B, M, bands), at least as many as one token needs."""
        # Energies span eight decades, so they need full precision.
        with torch.autocast(waveforms.device.type, enabled=False):
            mel = self.spectrum(trimmed(waveforms.float(), lengths, Masr.window))
            return (mel - CENTER) / SCALE


class Masr(Upstream):
    """The Conformer, with frames of 40 ms: layer 0 is the input of the first block, the others are the blocks' outputs.

    The last output is taken after the final norm. Attention spans the whole clip, so memory grows with the square of
    its length: recordings of several minutes should be split beforehand.
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
        return load_masr(checkpoint, random)
    if not random:
        raise UpstreamError(
            "'masr' needs a checkpoint: masr@FILE, of what `bench pretrain masr` made, as its authors published none; "
            "masr@random draws weights"
        )
    return Masr(size_of("base" if size is None else size))


@register
def masr_mini(random: bool = False) -> Upstream:
    """MASR with 4 blocks of 128 channels, pre-trained by this project on its embedded corpus and that one's labels."""
    return load_masr(str(SHIPPED / "masr_mini.safetensors"), random)


def size_of(name: str) -> MasrSize:
    if name not in SIZES:
        raise UpstreamError(f"no size '{printable(name)}' of masr; {suggestion(name, [*SIZES], False)}")
    return SIZES[name]


def load_masr(checkpoint: str, random: bool) -> Upstream:
    """Load the encoder in a file of `bench pretrain`, or build its architecture with random weights.

    Raises UpstreamError if the file is missing, broken or of another model, or if its weights are not finite.
    """
    path = checkpoints.expanded_path(checkpoint)
    reference = printable(checkpoint)
    weights = checkpoints.read_weights(path)
    size = masr_size_in(weights, reference)
    weights = strictly_loaded(weights, lambda: Conformer(size), "MASR's Conformer", reference)
    upstream = Masr(size)
    if not random:
        upstream.network.load_state_dict(weights)
    upstream.origin = checkpoints.digests([path])
    return upstream


def masr_size_in(weights: Mapping[str, Tensor], reference: str) -> MasrSize:
    """Return an encoder's size, read from its weights' shapes; raise UpstreamError if they are not MASR's."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        sizes = tuple(weights[name].shape) if name in weights else ()
        return sizes if len(sizes) == axes else (0,) * axes

    depth = len({match[1] for name in weights if (match := re.match(r"encoder\.layers\.([0-9]+)\.", name))})
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


# Learning rates, batches, masks and codes of "base" and "large" follow Chiu et al. (2022), except that "large" has half
# the rate; the numbers of steps are this project's choice. Neither size was trained here.
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


class MasrObjective(NamedTuple):
    """Number of codebooks, codes per codebook, share of tokens that begin a masked span, and tokens of a span."""

    codebooks: int
    codes: int
    begin: float
    span: int


OBJECTIVES = {"mini": MasrObjective(2, 256, 0.15, 3)}
USUAL = MasrObjective(1, 8192, 0.04, 10)  # each mel frame begins a span of 400 ms with probability 0.01


class MasrPretraining(Method):
    """BEST-RQ (Chiu et al., 2022): the encoder predicts the code of each masked token from the tokens around it.

    The mel frames of masked tokens are replaced with noise at the encoder's input. "accuracy" is the share of masked
    tokens whose code is predicted correctly, over all codebooks.
    """

    metadata: Mapping[str, float] = MappingProxyType({"language": 1.0, "speaker": 1.0})

    def __init__(self, size: MasrSize, recipe: Recipe, objective: MasrObjective) -> None:
        super().__init__()
        self.recipe, self.objective = recipe, objective
        self.mel, self.network = ScaledMel(), Conformer(size)
        self.quantizer = Quantizer(STRIDE * BANDS, objective.codebooks, objective.codes)
        self.classifier = nn.Linear(size.dim, objective.codebooks * objective.codes)

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        """Estimate the mean and variance of the quantizer's input."""
        self.quantizer.measure(stacked_mel(*self.seen(batch)) for batch in islice(batches, MEASURED))

    def forward(self, batch: AudioBatch, done: float) -> Step:
        mel, there = self.seen(batch)
        mask = self.mask(there)
        states = self.network(noise_masked(mel, mask), there.sum(1))
        terms = self.terms(states[-1][mask], self.quantizer(stacked_mel(mel, mask)))
        return Step(terms, mean_where(states[len(states) // 2], there))

    def seen(self, batch: AudioBatch) -> tuple[Tensor, Tensor]:
        """Return mel frames (B, M, bands), and a mask (B, T) of the valid tokens."""
        counts = torch.clamp(batch.lengths - Masr.window, min=0) // Masr.hop + 1
        return self.mel(batch.waveforms, batch.lengths), valid(counts, int(counts.max()))

    def mask(self, there: Tensor) -> Tensor:
        """Return a random mask (B, T) of spans among the valid tokens, with at least one token of each clip."""
        begin = random_mask(there, share_of(there, self.objective.begin)).float()
        reach = self.objective.span - 1
        return F.max_pool1d(F.pad(begin, (reach, 0))[:, None], reach + 1, stride=1)[:, 0].bool() & there

    def terms(self, hidden: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Return the loss and accuracy for masked tokens (N, D) and their codes (N, codebooks)."""
        scores = self.classifier(hidden).float().unflatten(1, (self.objective.codebooks, -1)).flatten(0, 1)
        right = (scores.argmax(1) == codes.flatten()).float().mean()
        return {"loss": F.cross_entropy(scores, codes.flatten()), "accuracy": right}

    def exported(self) -> dict[str, Tensor]:
        return self.network.state_dict()


def stacked_mel(mel: Tensor, chosen: Tensor) -> Tensor:
    """Return the quantizer's input for the chosen tokens (B, T): the first 4 mel frames of each, (N, 4 bands)."""
    return mel[:, : chosen.shape[1] * STRIDE].unflatten(1, (-1, STRIDE)).flatten(2)[chosen]


def noise_masked(mel: Tensor, mask: Tensor) -> Tensor:
    """Replace the mel frames (B, M, bands) of masked tokens (B, T) with noise."""
    hidden = F.pad(mask.repeat_interleave(STRIDE, dim=1), (0, mel.shape[1] - STRIDE * mask.shape[1]))
    return torch.where(hidden[:, :, None], NOISE * torch.randn_like(mel), mel)


def method(size: str) -> Method:
    """Return the objective with a newly initialised encoder of a size; raise UpstreamError for an unknown size."""
    return MasrPretraining(size_of(size), RECIPES[size], OBJECTIVES.get(size, USUAL))
