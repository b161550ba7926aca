"""ATST, the Audio Teacher-Student Transformer (Li & Li, 2022): encoder, its authors' checkpoints, and its objective.

Choices, and differences from the paper and its authors' code (Audio-WestlakeU/audiossl):
- Their linear protocol divides the sum over a chunk's tokens by the number of all remaining tokens of the clip, in this
  chunk and in later ones, plus 1e-6, so the "mean" of the first of two full chunks is half the true mean. Published
  features were computed in this way; `summarize` does the same, but without the 1e-6.
- Views are mixed with another clip of the batch, not with one of the 2000 before (see `augmented_views`), and a clip
  shorter than a segment is used as it is, not padded with silence.
- Batch norms are computed over both views together, and the teacher drops paths like the student, as in their code.
- Pre-training uses mixed precision; theirs uses single precision.
- The sizes "mini", which trains in minutes on a CPU, and "tiny" are this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams import register
from upstreams.arguments import suggestion
from upstreams.base import SHIPPED, Features, Upstream, UpstreamError, valid
from upstreams.families.spectrogram_encoders import join_stretches
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step
from upstreams.pretraining.optimization import half_cosine
from upstreams.pretraining.teacher import embedding_spread, follow, perceptron, teacher_of
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import describe_misfits, printable, short_repr
from upstreams.safety.strict_loading import DEPTHS, depth_of, misfit_error, strictly_loaded
from upstreams.seeds.augmented_views import randomly_mixed, randomly_resized, view_segments
from upstreams.seeds.decibel_mel import BANDS, HOP, LOUDEST, QUIETEST, RANGE, RATE, DecibelMel
from upstreams.seeds.transformer import EPSILON, HEAD, TransformerBlock, block_outputs, plain_start

PATCH = 4  # mel frames of a token
POSITIONS = 250  # tokens of 10 s
DROP = 0.1  # probability that a path of the last block is dropped in training
SECONDS = 6.0  # length of the authors' training segments
SUMMARY_SAMPLES = 12 * RATE  # samples in the middle of a clip from which its summary is computed
AT_ONCE = 32  # stretches that are encoded together; more would take gigabytes
OURS = "hyper_parameters."  # prefix of entries other than weights in this project's checkpoints
PREFIXES = ("model.teacher.encoder.", "module.backbone.", "backbone.", "")  # of the encoder's weights in a file
LEFT_OVER = ("model.student.", "model.teacher.projector.", "module.head.", "head.", OURS)  # prefixes of other weights
UNUSED = "mask_embed"  # a weight of the authors' abandoned masked objective


class AtstSize(NamedTuple):
    """An encoder of `depth` blocks of `dim` channels, and its pre-training settings."""

    dim: int
    depth: int
    hidden: int  # channels within projector and predictor
    out: int  # output channels of projector and predictor
    seconds: float  # length of a segment
    momentum: float  # of the teacher at the start; 1 at the end
    recipe: Recipe


SMALL = Recipe(
    steps=39_100, batch=1536, seconds=10.0, lr=3e-3, warmup=1300, weight_decay=0.04, final_weight_decay=0.4
)  # learning rates are the authors' times batch / 256, as they scale them
BASE = Recipe(
    steps=318_000, batch=1536, seconds=10.0, lr=1.2e-3, warmup=15_860, weight_decay=0.04, final_weight_decay=0.4
)
# Chosen by linear probes on validation clips: more steps and larger rates reach a lower loss, but worse probes.
MINI = Recipe(steps=300, batch=32, seconds=4.0, lr=3e-4, warmup=30, weight_decay=0.04, final_weight_decay=0.4)
SIZES = {  # small and base are the authors', the others ours
    "mini": AtstSize(128, 4, 512, 128, 2.4, 0.99, MINI),
    "tiny": AtstSize(192, 12, 4096, 256, SECONDS, 0.99, SMALL),
    "small": AtstSize(384, 12, 4096, 256, SECONDS, 0.99, SMALL),
    "base": AtstSize(768, 12, 4096, 256, SECONDS, 0.9995, BASE),
}


class Encoder(nn.Module):
    """Pre-norm transformer over a class token and patches of 64 bands by 4 frames; weights have the authors' names.

    positions: number of position embeddings for patches; shorter inputs use the first ones.
    drop: drop-path probability of the last block; it decreases linearly to 0 at the first block.
    """

    def __init__(self, dim: int, depth: int, positions: int = POSITIONS, drop: float = 0.0) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions + 1, dim))
        self.patch_embed = nn.ModuleDict({"patch_embed": nn.Linear(BANDS * PATCH, dim)})
        shares = [drop * block / max(depth - 1, 1) for block in range(depth)]
        self.blocks = nn.ModuleList(TransformerBlock(dim, bias=False, drop=share) for share in shares)
        self.norm = nn.LayerNorm(dim, eps=EPSILON)

    def start(self) -> Encoder:
        """Initialise the weights for training, and return the encoder itself."""
        self.apply(plain_start)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        return self

    def forward(self, mel: Tensor, frames: Tensor) -> list[Tensor]:
        """Return the input of the first block and the output of every block, each (B, 1 + T, D).

        mel: (B, 64, M). frames: (B,) number of valid frames; if it is larger than M, all frames are valid.
        """
        size = mel.shape[2] // PATCH
        patches = mel[:, :, : size * PATCH].unflatten(2, (size, PATCH)).transpose(1, 2).flatten(2)
        tokens = self.patch_embed["patch_embed"](patches)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed[:, : size + 1]
        mask = valid(frames // PATCH + 1, size + 1)
        return [tokens, *block_outputs(self.blocks, tokens, None if bool(mask.all()) else mask)]


class Atst(Upstream):
    """ATST's encoder; a clip longer than a training segment is encoded in consecutive stretches of that length.

    Later positions were never trained, although the authors' checkpoints have embeddings for 10 s. Frames are the
    tokens of 40 ms: layer 0 is the input of the first block, the others are the outputs of the blocks after the final
    norm, as in the authors' linear protocol. The class token of each stretch is attended to but is not a frame.

    seconds: length of the training segments.
    """

    stable_name = "upstreams.atst:Atst"
    hop, window = PATCH * HOP, (PATCH - 1) * HOP

    def __init__(self, encoder: Encoder, seconds: float = SECONDS) -> None:
        super().__init__()
        self.encoder, self.mel = encoder, DecibelMel()
        self.stretch = min((round(seconds * RATE / HOP) + 1) // PATCH, encoder.pos_embed.shape[1] - 1)  # tokens
        self.chunk = min(round(seconds * RATE / HOP) + 1, self.stretch * PATCH + PATCH - 1)  # mel frames
        self.layers, self.dim = len(encoder.blocks) + 1, encoder.norm.normalized_shape[0]

    def settings(self) -> dict[str, object]:
        scale = [QUIETEST, LOUDEST, RANGE]
        return {"stretch": self.stretch, "chunk": self.chunk, "crop": SUMMARY_SAMPLES, "head": HEAD, "scale": scale}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        mel, frames = self.mel(waveforms, lengths)
        counts = frames // PATCH
        number = -(-counts // self.stretch)
        pieces, left, owner = split_stretches(mel, counts * PATCH, number, self.stretch * PATCH)
        parts = zip(pieces.split(AT_ONCE), left.split(AT_ONCE), strict=True)
        return join_stretches(torch.cat([self.encode(*part)[:, 1:] for part in parts]), owner, counts)

    def encode(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return all layers (N, 1 + T, L, D) of stretches (N, 64, M), the class token first."""
        first, *blocks = self.encoder(mel, frames)
        return torch.stack([first.float(), *(self.encoder.norm(block).float() for block in blocks)], dim=2)

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the class token and the mean of the other tokens after each block, (B, depth, 2 D).

        As in the authors' linear protocol, this is averaged over chunks of a segment's mel frames (601 in 6 s) of the
        middle 12 s of a clip. A chunk after the first one counts only if more than half of it lies within the clip.
        """
        mel, frames = self.mel(*middle_segments(waveforms, lengths, SUMMARY_SAMPLES))
        number = (-((self.chunk // 2 - frames) // self.chunk)).clamp(min=1)
        pieces, left, owner = split_stretches(mel, frames, number, self.chunk)
        parts = zip(pieces.split(AT_ONCE), left.split(AT_ONCE), strict=True)
        vectors = torch.cat([self.vectors(*part) for part in parts])
        return vectors.new_zeros(len(lengths), *vectors.shape[1:]).index_add(0, owner, vectors) / number[:, None, None]

    def vectors(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return class tokens, and sums of the other valid tokens over the clip's remaining number, (N, depth, 2 D)."""
        tokens, counts = self.encode(mel, frames)[:, :, 1:], frames // PATCH
        kept = valid(counts, tokens.shape[1] - 1)[:, :, None, None]
        mean = tokens[:, 1:].masked_fill(~kept, 0.0).sum(1) / counts[:, None, None]
        return torch.cat([tokens[:, 0], mean], dim=2)


def middle_segments(waveforms: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return at most `size` samples from the middle of each clip of (B, S), and their number (B,)."""
    sizes = lengths.clamp(max=size)
    samples = torch.arange(min(size, waveforms.shape[1]), device=lengths.device)
    return waveforms.gather(1, ((lengths - sizes) // 2)[:, None] + samples.minimum(sizes[:, None] - 1)), sizes


def split_stretches(mel: Tensor, frames: Tensor, number: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first number (B,) stretches of `step` frames of each clip of (B, 64, M), as (N, 64, step or less).

    Also return the number (N,) of frames from the start of each stretch to the end of its clip, and the index (N,) of
    its clip.
    """
    most = int(number.max())
    size = most * step if most > 1 else min(step, mel.shape[2])
    pieces = F.pad(mel[:, :, :size], (0, max(size - mel.shape[2], 0))).unflatten(2, (most, -1)).transpose(1, 2)
    left = frames[:, None] - torch.arange(most, device=frames.device) * step
    needed = valid(number, most)
    return pieces[needed], left[needed], needed.nonzero()[:, 0]


@register
def atst(checkpoint: str = "", random: bool = False, size: str | None = None) -> Upstream:
    """ATST (Li & Li, 2022) from a checkpoint of its authors' or ours: atst@FILE."""
    if checkpoint:
        if size is not None:
            raise UpstreamError(f"the size of 'atst@{printable(checkpoint)}' is that of the file; leave it out")
        return load_atst(checkpoint, random)
    if not random:
        raise UpstreamError(
            "'atst' needs its checkpoint: atst@FILE, such as small.ckpt or base.ckpt of its authors, or what "
            "`bench pretrain atst` made; atst@random draws weights"
        )
    chosen = size_of("base" if size is None else size)
    return Atst(Encoder(chosen.dim, chosen.depth).start(), chosen.seconds)


@register
def atst_mini(random: bool = False) -> Upstream:
    """ATST with 4 blocks of 128 channels, pre-trained by this project on its embedded corpus."""
    return load_atst(str(SHIPPED / "atst_mini.safetensors"), random)


def size_of(name: str) -> AtstSize:
    if name not in SIZES:
        raise UpstreamError(f"no size '{printable(name)}' of atst; {suggestion(name, [*SIZES], False)}")
    return SIZES[name]


def load_atst(checkpoint: str, random: bool) -> Upstream:
    """Load the encoder in a file, or build its architecture with random weights.

    Raises UpstreamError if the file is missing, broken or of another model, or if its weights are not finite.
    """
    path = checkpoints.expanded_path(checkpoint)
    reference = printable(checkpoint)
    content = checkpoints.load_checkpoint(path)
    nested = content.get("teacher", content) if isinstance(content, dict) else content
    state = checkpoints.tensors_only(nested, path)
    seconds = segment_seconds(content, state, reference)
    weights = encoder_weights(state, reference)
    shapes = encoder_shapes(weights, reference)
    weights = strictly_loaded(weights, lambda: Encoder(*shapes), "ATST's encoder", reference)
    encoder = Encoder(*shapes)
    if random:
        encoder.start()
    else:
        encoder.load_state_dict(weights)
    upstream = Atst(encoder, seconds)
    upstream.origin = checkpoints.digests([path])
    return upstream


def segment_seconds(content: Any, state: Mapping[str, Tensor], reference: str) -> float:
    """Return the length in seconds of a checkpoint's training segments; the authors' 6 if it is not in the file."""
    entries = content if isinstance(content, dict) else {}
    settings = entries.get("hyper_parameters")
    length = settings.get("train_len", SECONDS) if isinstance(settings, dict) else SECONDS
    length = getattr(entries.get("args"), "anchor_len", length)  # in the authors' other layout: shortest and longest
    length = state.get(f"{OURS}train_len", length)
    first = length[0] if isinstance(length, (list, tuple)) and length else length
    seconds = first.item() if isinstance(first, Tensor) and first.numel() == 1 else first
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0.1 <= seconds <= 3600:
        raise UpstreamError(
            f"'{reference}' was trained on segments of {short_repr(seconds)} s; give one of 0.1 to 3600"
        )
    return float(seconds)


def encoder_weights(state: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
    """Return the encoder's weights by their names in it; the teacher's if the file has a student and a teacher."""
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state))
    used = {name: tensor for name, tensor in state.items() if not prefix or name.startswith(prefix)}
    strange = [name for name in state if name not in used and not name.startswith(LEFT_OVER)]
    if strange:
        raise misfit_error(describe_misfits([], strange, []), "ATST's encoder", reference)
    return {name[len(prefix) :]: used[name] for name in used if not name.startswith(OURS) and name != prefix + UNUSED}


def encoder_shapes(weights: Mapping[str, Tensor], reference: str) -> tuple[int, int, int]:
    """Return the channels, blocks and positions of an encoder; raise UpstreamError if the weights are not ATST's."""
    shape = weights["pos_embed"].shape if "pos_embed" in weights else ()
    depth = depth_of(weights)
    if len(shape) != 3 or shape[1] < 2 or shape[2] % HEAD or not shape[2] or depth not in DEPTHS:
        raise UpstreamError(
            f"'{reference}' holds no encoder of ATST, which has blocks and pos_embed of (1, tokens, channels), as many "
            f"channels as {HEAD} goes into; give a checkpoint of its authors or of bench pretrain atst"
        )
    return shape[2], depth, shape[1] - 1


class AtstNetwork(nn.Module):
    """Encoder, projector and predictor; a teacher has no predictor."""

    def __init__(self, encoder: Encoder, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return the projected class token (B, out)."""
        return self.projected(self.token(mel, frames))

    def token(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return the class token (B, D) after the final norm."""
        return self.encoder.norm(self.encoder(mel, frames)[-1][:, 0])

    def projected(self, token: Tensor) -> Tensor:
        return self.predictor(self.projector(token))


class AtstPretraining(Method):
    """BYOL (Grill et al., 2020) on class tokens: a student predicts its teacher's projection of another segment.

    Two random segments of each clip, mixed and resized, go through both networks. The loss is 2 - 2 cos between the
    student's prediction for one and the teacher's projection of the other, both ways; the teacher is an exponential
    moving average of the student. The spreads of both networks' outputs on the unit sphere are reported as well: 1 if
    they are evenly spread, 0 if all clips have the same output (collapse).

    mix: largest share of another clip in a view; 0 for no mixing. resize: whether views are randomly resized.
    """

    def __init__(self, size: AtstSize, mix: float, resize: bool) -> None:
        super().__init__()
        self.recipe, self.seconds, self.momentum = size.recipe, size.seconds, size.momentum
        self.mix, self.resize = mix, resize
        self.mel = DecibelMel()
        encoder = Encoder(size.dim, size.depth, drop=DROP).start()
        projector = perceptron(size.dim, size.hidden, size.out)
        self.student = AtstNetwork(encoder, projector, perceptron(size.out, size.hidden, size.out))
        self.teacher = teacher_of(AtstNetwork(encoder, projector, nn.Identity()))

    def forward(self, batch: AudioBatch, done: float) -> Step:
        views = [self.view(batch) for _ in range(2)]
        size = max(mel.shape[2] for mel, _ in views)
        mel = torch.cat([F.pad(mel, (0, size - mel.shape[2])) for mel, _ in views])
        frames = torch.cat([frames for _, frames in views])
        with torch.no_grad():
            target = self.teacher(mel, frames).float()
        token = self.student.token(mel, frames)
        guess = self.student.projected(token).float()
        spreads = {"student_spread": embedding_spread(guess), "teacher_spread": embedding_spread(target)}
        return Step({"loss": byol_loss(guess, target), **spreads}, token)

    @torch.no_grad()
    def view(self, batch: AudioBatch) -> tuple[Tensor, Tensor]:
        """Mel frames (B, 64, M) of a segment of each clip, and how many they are (B,)."""
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            mel, frames = self.mel(*view_segments(batch.waveforms, batch.lengths, round(self.seconds * RATE)))
            mel = randomly_mixed(mel, frames, self.mix) if self.mix else mel
            return randomly_resized(mel, frames) if self.resize else mel, frames

    def stepped(self, done: float) -> None:
        follow(self.teacher, self.student, half_cosine(self.momentum, 1.0, done))

    def exported(self) -> dict[str, Tensor]:
        """Return the teacher's encoder as in the authors' checkpoints, and the length of its segments in seconds."""
        weights = {f"{PREFIXES[0]}{name}": tensor for name, tensor in self.teacher.encoder.state_dict().items()}
        return {**weights, f"{OURS}train_len": torch.tensor(self.seconds)}


def byol_loss(guess: Tensor, target: Tensor) -> Tensor:
    """Return the mean of 2 - 2 cos between predictions (2 B, out) for each view and targets (2 B, out) of the other."""
    return 2 - 2 * F.cosine_similarity(guess, target.roll(len(target) // 2, 0)).mean()


def method(size: str, mix: float = 0.4, resize: bool = True) -> Method:
    """Return the objective with a newly initialised student and teacher of a size.

    Raises UpstreamError for an unknown size, a `mix` that is not from 0 to 1, and a `resize` that is not a bool.
    """
    if isinstance(mix, bool) or not isinstance(mix, (int, float)) or not 0 <= mix <= 1:
        raise UpstreamError(f"mix of atst is {short_repr(mix)}; it is a share from 0 to 1, of another clip in a view")
    if not isinstance(resize, bool):
        raise UpstreamError(f"resize of atst is {short_repr(resize)}; it is true or false")
    return AtstPretraining(size_of(size), mix, resize)
