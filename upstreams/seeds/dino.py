"""DINO for speaker embeddings (Cho et al., 2022): residual x-vector, its checkpoints in hyperion's format, objective.

What differs from the authors' code (hyperion, branch persephone-dino, recipe dinossl.v1), beside `hyperion_features`:

- A clip without any speech frames keeps all its frames; in theirs, its embedding is zero.
- Segments are cut from unmodified clips, theirs from files without silence. A clip shorter than a segment is used
  whole; theirs leave it out. Batch norms treat the padding of such a clip as silence.
- The signal-to-noise ratio is 0 to 18 dB; theirs is 3 to 18 dB for music and babble. Without folders of noises and
  rooms, both are synthetic, and the rooms also colour the sound. Reverberation is computed within the segment, without
  the half second before it.
- The optimizer is Adam without AMSGrad, which `optimization` lacks. Cosines with prototypes and the loss are computed
  in single precision. With several processes, only the first one's segments update the centre.
- Activations are limited to 6, the default of hyperion's command line.
- The size "mini", which trains in minutes on a CPU, is this project's own; its first convolution halves time and
  frequency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams import register
from upstreams.arguments import suggestion
from upstreams.base import SHIPPED, Features, Upstream, UpstreamError, valid
from upstreams.families.hyperion import HyperionNetwork, network_of, network_state
from upstreams.families.hyperion_features import BANDS, CONTEXT, DITHER, HOP, RATE, HyperionMel, without_mean
from upstreams.families.residual_xvector import STAGES, ResidualXVector, Shape, flattened
from upstreams.pretraining.augmentation import SHARES, Folder, Sources, augmented
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step
from upstreams.pretraining.optimization import half_cosine
from upstreams.pretraining.teacher import follow, teacher_of
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable
from upstreams.seeds.augmented_views import view_segments

PACE = 2  # mel frames from one frame to the next; a strided convolution has a stride of at least 2


class Dino(Upstream):
    """The residual x-vector as an upstream with one frame per 20 ms.

    Later stages have fewer frames, down to one per 80 ms, too few for speech recognition; their frames are repeated.
    The layers are the outputs of the first convolution and of each stage, channels by bands, including frames of
    silence. The summary is the embedding.
    """

    stable_name = "upstreams.dino:Dino"
    hop, window = HOP * PACE, HOP // 2

    def __init__(self, network: HyperionNetwork) -> None:
        super().__init__()
        self.network = network
        self.layers, self.dim = STAGES + 1, network.shape.width

    def settings(self) -> dict[str, object]:
        shape = self.network.shape
        return {"stride": shape.stride, "capped": shape.capped, "context": CONTEXT, "dither": DITHER}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        stages = self.network.encoder_net(*self.network.features(waveforms, lengths))
        counts = self.frame_lengths(lengths)
        layers = zip(stages, self.network.shape.hops, strict=True)
        frames = [
            resample_frames(flattened(maps).float(), map_lengths, hop, counts) for (maps, map_lengths), hop in layers
        ]
        return Features(torch.stack(frames, dim=3).permute(0, 2, 3, 1).contiguous(), counts)

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the embedding, (B, 1, dim)."""
        return self.network(waveforms, lengths).float()[:, None]


def resample_frames(frames: Tensor, counts: Tensor, hop: int, wanted: Tensor) -> Tensor:
    """Average or repeat frames (B, D, T) with a hop of `hop` mel frames so that the hop is PACE, (B, D, max wanted).

    counts: (B,) number of valid input frames, beyond which they are zero. wanted: (B,) number of valid output frames.
    """
    size = int(wanted.max())
    starts = torch.arange(size, device=frames.device) * PACE
    if hop < PACE:
        padded = F.pad(frames, (0, size * PACE - frames.shape[2]))
        return padded.unflatten(2, (size, PACE)).sum(3) / (counts[:, None] - starts).clamp(1, PACE)[:, None]
    return frames[:, :, starts // hop].masked_fill(~valid(wanted, size)[:, None], 0.0)


def load_dino(checkpoint: str, random: bool) -> Upstream:
    upstream = Dino(network_of(checkpoint, random))
    upstream.origin = checkpoints.digests([checkpoints.expanded_path(checkpoint)])
    return upstream


@register
def dino(checkpoint: str = "", random: bool = False, size: str | None = None) -> Upstream:
    """DINO for speaker embeddings (Cho et al., 2022) from a checkpoint of hyperion's or ours: dino@FILE."""
    if checkpoint:
        if size is not None:
            raise UpstreamError(f"the size of 'dino@{printable(checkpoint)}' is that of the file; leave it out")
        return load_dino(checkpoint, random)
    if not random:
        raise UpstreamError(
            "'dino' needs its checkpoint: dino@FILE, such as model_ep0070.pth of hyperion's recipe, or what "
            "`bench pretrain dino` made; dino@random draws weights"
        )
    return Dino(HyperionNetwork(size_of("base" if size is None else size).shape))


@register
def dino_mini(random: bool = False) -> Upstream:
    """DINO's x-vector with 4 blocks of 8 to 64 channels, pre-trained by this project on its embedded corpus."""
    return load_dino(str(SHIPPED / "dino_mini.safetensors"), random)


@dataclass(frozen=True)
class DinoSize:
    """A network, and its pre-training settings."""

    shape: Shape
    hidden: int  # hidden channels of the projection head
    bottleneck: int
    outputs: int
    seconds: tuple[float, float]  # lengths of long and short segments
    crops: tuple[int, int]  # numbers of long and short segments of a clip
    temperatures: tuple[float, float]  # of student and teacher
    momentum: float  # of the teacher at the start; 1 at the end
    frozen: float  # share of the training, from its start, in which the last layer is frozen
    augmented: tuple[float, float]  # shares of segments with reverberation, and with noise
    recipe: Recipe


# The authors' 70 epochs of VoxCeleb2, some 1.02 million clips of at least 4 s; 10 epochs are warm-up.
BASE = Recipe(
    steps=745_000,
    batch=96,
    seconds=10.0,
    lr=0.005 * 96 / 256,
    warmup=106_000,
    optimizer="adam",
    betas=(0.9, 0.95),
    weight_decay=1e-4,
)
# Chosen by equal error rates on validation trials. With an initial momentum of 0.94, the teacher soon assigns all clips
# to few prototypes; without reverberation in most segments, the network encodes the microphone instead of the speaker.
MINI = Recipe(steps=700, batch=32, seconds=4.0, lr=5e-3, warmup=30, betas=(0.9, 0.98), weight_decay=0.01, clip=3.0)
SIZES = {
    "mini": DinoSize(
        Shape(8, (1, 1, 1, 1), 128, BANDS, stride=2),
        *(512, 128, 512),
        seconds=(1.5, 0.75),
        crops=(2, 2),
        temperatures=(0.1, 0.04),
        momentum=0.97,
        frozen=1 / 60,
        augmented=(0.9, 0.7),
        recipe=MINI,
    ),
    "base": DinoSize(
        Shape(16, (3, 4, 6, 3), 256, BANDS),
        *(2048, 256, 65_536),
        seconds=(4.0, 2.0),
        crops=(2, 4),
        temperatures=(0.1, 0.04),
        momentum=0.996,
        frozen=1 / 70,
        augmented=SHARES,
        recipe=BASE,
    ),
}


def size_of(name: str) -> DinoSize:
    if name not in SIZES:
        raise UpstreamError(f"no size '{printable(name)}' of dino; {suggestion(name, [*SIZES], False)}")
    return SIZES[name]


class Prototypes(nn.Module):
    """A linear layer whose rows have norm 1."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=False)
        self.weight_v = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(outputs, dim), a=math.sqrt(5)))

    def forward(self, vectors: Tensor, frozen: bool) -> Tensor:
        rows = self.weight_v.detach() if frozen else self.weight_v
        return F.linear(vectors, self.weight_g * F.normalize(rows, dim=1))


class ProjectionHead(nn.Module):
    """Three linear layers, L2 normalisation, and cosines with prototypes (Caron et al., 2021)."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last_layer = Prototypes(bottleneck, outputs)

    def forward(self, vectors: Tensor, frozen: bool = False) -> Tensor:
        """Map vectors (N, D) to cosines (N, outputs). frozen: whether the prototypes get no gradients."""
        vectors = self.mlp(vectors)
        with torch.autocast(vectors.device.type, enabled=False):  # cosines are divided by small temperatures
            return self.last_layer(F.normalize(vectors.float(), dim=1), frozen)


class Learner(nn.Module):
    """The network and its head, with the names of hyperion's checkpoints."""

    def __init__(self, size: DinoSize) -> None:
        super().__init__()
        self.backbone = ResidualXVector(size.shape)
        self.head = ProjectionHead(size.shape.dim, size.hidden, size.bottleneck, size.outputs)


class DinoPretraining(Method):
    """A student predicts from each segment of a clip its teacher's output for a long segment (Caron et al., 2021).

    Both output distributions over prototypes; the teacher's are centred by a running mean of its outputs, and sharper.
    The loss is the cross-entropy between the student's distribution for each segment and the teacher's for each other,
    long segment. The entropy, in nats, of the teacher's mean distribution is reported as well: it is 0 if all clips
    have the same prototype (collapse).
    """

    def __init__(self, size: DinoSize, sources: Sources, origin: Mapping[str, str]) -> None:
        super().__init__()
        self.size, self.recipe, self.sources, self.origin = size, size.recipe, sources, origin
        self.mel = HyperionMel()
        self.student = Learner(size)
        self.teacher = teacher_of(self.student)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(1, size.outputs))

    def forward(self, batch: AudioBatch, done: float) -> Step:
        large, small = (
            self.segments(batch, *setting) for setting in zip(self.size.seconds, self.size.crops, strict=True)
        )
        frozen = done < self.size.frozen
        with torch.no_grad():
            target = self.teacher.head(self.teacher.backbone.embedding(*large))
        vectors = self.student.backbone.embedding(*large)
        everything = torch.cat([vectors, self.student.backbone.embedding(*small)])
        guess = self.student.head(everything, frozen)
        cold, colder = self.size.temperatures
        aims = ((target - self.center) / colder).softmax(1)
        self.center = CENTERING * self.center + (1 - CENTERING) * target.mean(0, keepdim=True)
        with torch.autocast(guess.device.type, enabled=False):
            loss = dino_loss(guess / cold, aims, len(batch.lengths))
        return Step({"loss": loss, "entropy": entropy(aims.mean(0))}, vectors)

    @torch.no_grad()
    def segments(self, batch: AudioBatch, seconds: float, number: int) -> tuple[Tensor, Tensor]:
        """Return features (number * B, T, 80) of separately augmented segments of each clip, and their frame counts."""
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            parts = [view_segments(batch.waveforms, batch.lengths, round(seconds * RATE)) for _ in range(number)]
            waveforms, lengths = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            mel, frames = self.mel(augmented(waveforms, lengths, self.sources, self.size.augmented), lengths)
            return without_mean(mel, frames), frames

    def stepped(self, done: float) -> None:
        follow(self.teacher, self.student, half_cosine(self.size.momentum, 1.0, done))

    def exported(self) -> dict[str, Tensor]:
        """Return the teacher's network."""
        return network_state(self.teacher.backbone)


CENTERING = 0.9  # decay of the running mean of the teacher's outputs


def dino_loss(guess: Tensor, aims: Tensor, clips: int) -> Tensor:
    """Return the mean cross-entropy of logits (V * clips, K) and aims (2 * clips, K) of the other long segments.

    Both tensors hold the first segment of every clip, then the second, and so on, long segments first.
    """
    predicted = guess.log_softmax(1).unflatten(0, (-1, clips))
    wanted = aims.unflatten(0, (-1, clips))
    scores = -torch.einsum("gbk,vbk->gv", wanted, predicted) / clips
    others = ~torch.eye(len(wanted), len(predicted), dtype=torch.bool, device=scores.device)
    return scores[others].mean()


def entropy(shares: Tensor) -> Tensor:
    """Return the entropy in nats of a distribution (K,)."""
    return -(shares * shares.clamp(min=1e-30).log()).sum()


def method(size: str, noises: str | None = None, rooms: str | None = None) -> Method:
    """Return the objective with a newly initialised student and teacher of a size.

    noises, rooms: folders of audio, such as MUSAN and simulated impulse responses; by default, synthetic ones are used.
    Raises UpstreamError for an unknown size, and for folders without audio.
    """
    named = (("noises", noises), ("rooms", rooms))
    folders = {option: Folder(path, option) for option, path in named if path is not None}
    sources = Sources(
        folders["noises"].noises if "noises" in folders else None,
        folders["rooms"].rooms if "rooms" in folders else None,
    )
    return DinoPretraining(size_of(size), sources, {name: folder.digest() for name, folder in folders.items()})
