"""SSAST, the self-supervised audio spectrogram transformer (Gong et al., 2022): encoder, checkpoints and objective.

A spectrogram is cut into patches, 16 mel bands by 16 frames ("patch") or all 128 bands by 2 frames ("frame"), which are
the tokens of a vision transformer. In pre-training most are masked; for each of them, the transformer identifies the
right one among the clip's masked patches, and reconstructs it. Weights have the names of the authors' checkpoints.

What differs from the authors' code:

- A clip keeps its own length. They pad or cut all to one length, let the padding be seen, and average over it too.
- Positions are cut or stretched for each clip by its own length: from the middle of those learned where it is shorter,
  as theirs; resized bilinearly where it is longer, or where strides are smaller than patches. Theirs pass through 8
  rows on the way, which changes the result for patches that are neither 16 nor 128 bands high, and cut rows by the
  number of columns, which is never reached with strides up to the size of a patch; ours do neither.
- The softmax of the discriminative term is over the candidates of each prediction, as in equation (1) of the paper;
  theirs is over the predictions for each candidate (their issue 13), which `softmax_over="predictions"` asks for.
- Clusters of masked patches: see `masking.block_mask`. Clips that are shorter have as large a share of patches masked.
- After its warm-up the rate follows half a cosine; theirs is halved when accuracy on held-out clips stops rising.
- `base_nokd` can be pre-trained; theirs then looks for the second class token that it lacks.
- The size "mini" is this project's own: 4 blocks of 128 channels for clips of 2 s, frames of 4, and another start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams import register
from upstreams.arguments import suggestion
from upstreams.base import SHIPPED, Features, Upstream, UpstreamError, valid
from upstreams.pretraining.masking import block_mask, gather_masked, random_mask, share_of
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step, mean_where
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import describe_misfits, printable, short_list, short_repr
from upstreams.safety.strict_loading import DEPTHS, depth_of, misfit_error, strictly_loaded
from upstreams.seeds.transformer import EPSILON, HEAD, Attention, TransformerBlock, block_outputs, plain_start
from upstreams.spectral import LogMel, trimmed
from upstreams.threads import one_thread

BANDS, MEL_WINDOW, MEL_HOP = 128, 400, 160  # mel bands; samples
MEAN, STD = -4.2677393, 4.5689974  # of log-mel energies in the authors' pre-training data
LEFT_OVER = (  # prefixes of weights for images and for pre-training, which are not used
    *("v.head.", "v.head_dist."),
    *("p_input_fdim", "p_input_tdim", "mask_embed", "cpredlayer.", "gpredlayer."),
)
MASKED = 400 / 512  # share of masked patches
OBJECTIVES = ("joint", "discriminative", "generative")
STARTS = ("plain", "nearby")
GENERATIVE_WEIGHT = 10.0
WAVES, PASSED_ON = 2.0, 0.7  # of the start "nearby": amplitude of positions, and gain of values
NORMALIZED = {"targets": 2, "predictions": 1}  # axis of (clips, predictions, targets)


class SsastSize(NamedTuple):
    """The settings that shape a transformer's weights. frames: number of mel frames that its positions cover."""

    dim: int
    depth: int
    class_tokens: int
    height: int  # of a patch, in mel bands
    width: int  # of a patch, in mel frames
    frames: int

    @property
    def rows(self) -> int:
        return BANDS // self.height

    @property
    def columns(self) -> int:
        return self.frames // self.width


MINI = (128, 4)  # channels and blocks of this project's own size
SIZES = {
    "mini": SsastSize(*MINI, 2, 16, 16, 192),
    "tiny": SsastSize(192, 12, 2, 16, 16, 1024),
    "small": SsastSize(384, 12, 2, 16, 16, 1024),
    "base": SsastSize(768, 12, 2, 16, 16, 1024),
    "base_nokd": SsastSize(768, 12, 1, 16, 16, 1024),
}
VARIANTS = {"patch": (16, 16), "frame": (BANDS, 2)}
MINI_VARIANTS = {"patch": (16, 16), "frame": (BANDS, 4)}


def size_of_variant(size: str, variant: str) -> SsastSize:
    """Return the shapes of a size and variant; raise UpstreamError for unknown ones."""
    if size not in SIZES:
        raise UpstreamError(f"no size '{printable(size)}' of ssast; {suggestion(size, [*SIZES], False)}")
    if variant not in VARIANTS:
        raise UpstreamError(f"no variant '{printable(variant)}' of ssast; {suggestion(variant, [*VARIANTS], False)}")
    height, width = (MINI_VARIANTS if size == "mini" else VARIANTS)[variant]
    return SIZES[size]._replace(height=height, width=width)


class Patches(nn.Module):
    """The projection of patches, which may overlap."""

    def __init__(self, size: SsastSize, strides: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, size.dim, (size.height, size.width), strides)

    def forward(self, images: Tensor) -> Tensor:
        """Map spectrograms (B, 1, bands, frames) to patches (B, rows, columns, D)."""
        return self.proj(images).permute(0, 2, 3, 1)


def sinusoids(number: int, dim: int) -> Tensor:
    """Return sinusoidal positions (number, dim), with wavelengths from 2 pi to 10000 * 2 pi (Vaswani et al., 2017)."""
    angles = torch.arange(number)[:, None] / 10_000 ** (torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def position_waves(rows: int, columns: int, dim: int) -> Tensor:
    """Return sinusoids (rows * columns, dim) of each patch's column, and of its row in the first half if rows > 1."""
    if rows == 1:
        return sinusoids(columns, dim)
    row, column = sinusoids(rows, dim // 2), sinusoids(columns, dim // 2)
    return torch.cat([row[:, None].expand(-1, columns, -1), column.expand(rows, -1, -1)], dim=2).flatten(0, 1)


def usual_start(size: SsastSize) -> str:
    """Return the default initialisation of a size: "nearby" for mini, "plain" for the authors' sizes."""
    return "nearby" if (size.dim, size.depth) == MINI else "plain"


class Transformer(nn.Module):
    """DeiT (Touvron et al., 2021) over patches of spectrograms.

    start: initialisation of weights: "plain" (the authors'), "nearby" (see `start_nearby`), or None for the default.
    """

    def __init__(self, size: SsastSize, strides: tuple[int, int] | None = None, start: str | None = None) -> None:
        super().__init__()
        self.grid = (size.rows, size.columns)
        self.class_tokens = size.class_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        if size.class_tokens == 2:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, size.class_tokens + size.rows * size.columns, size.dim))
        self.patch_embed = Patches(size, strides or (size.height, size.width))
        self.blocks = nn.ModuleList(TransformerBlock(size.dim) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim, eps=EPSILON)
        self.apply(plain_start)
        for embedding in (*self.leading(), self.pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        if (start or usual_start(size)) == "nearby":
            self.start_nearby()

    def leading(self) -> list[Tensor]:
        """Return the class tokens, (1, 1, D) each."""
        return [self.cls_token, self.dist_token] if self.class_tokens == 2 else [self.cls_token]

    def start_nearby(self) -> None:
        """Initialise attention so that tokens attend to their neighbours, after Trockman and Kolter (2023).

        Positions are sinusoids, key weights equal query weights, and the output projection is the negative transpose
        of the value projection. With hours of audio, attention that starts uniform does not learn to use positions.
        """
        with torch.no_grad(), one_thread():
            self.pos_embed[0, self.class_tokens :] = WAVES * position_waves(*self.grid, self.pos_embed.shape[2])
            for attention in (module for module in self.modules() if isinstance(module, Attention)):
                query, key, value = attention.qkv.weight.chunk(3)
                for head in query.split(HEAD):
                    nn.init.orthogonal_(head)
                key.copy_(query)
                nn.init.orthogonal_(value, gain=PASSED_ON)
                attention.proj.weight.copy_(-value.T)

    def tokens(self, patches: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the input of the first block (B, N, D), and a mask (B, N) of valid tokens, or None if all are valid.

        The tokens are the class tokens, then patches row by row, all with positions added.
        patches: (B, rows, columns, D), of which the first counts (B,) columns are valid.
        """
        batch, rows, columns, _ = patches.shape
        leading = (torch.cat(self.leading(), dim=1) + self.pos_embed[:, : self.class_tokens]).expand(batch, -1, -1)
        tokens = torch.cat([leading, (patches + self.positions(counts, rows, columns)).flatten(1, 2)], dim=1)
        mask = valid(counts, columns)
        if bool(mask.all()):
            return tokens, None
        return tokens, F.pad(mask.repeat(1, rows), (self.class_tokens, 0), value=True)

    def positions(self, counts: Tensor, rows: int, columns: int) -> Tensor:
        """Return position embeddings (B or 1, rows, columns, D) for clips of counts (B,) columns."""
        different = counts.unique().tolist()
        if different == [columns]:
            return self.resized(rows, columns)[None]
        table = self.pos_embed.new_zeros(len(counts), rows, columns, self.pos_embed.shape[2])
        for count in different:
            table[counts == count, :, :count] = self.resized(rows, count)
        return table

    def resized(self, rows: int, columns: int) -> Tensor:
        """Return embeddings (rows, columns, D): the middle of the learned columns, or all of them, resized."""
        learned = self.pos_embed[0, self.class_tokens :].unflatten(0, self.grid)
        if columns < self.grid[1]:
            start = self.grid[1] // 2 - columns // 2
            learned = learned[:, start : start + columns]
        if learned.shape[:2] == (rows, columns):
            return learned
        return F.interpolate(learned.permute(2, 0, 1)[None], (rows, columns), mode="bilinear")[0].permute(1, 2, 0)


class MelImages(nn.Module):
    """Kaldi's log-mel energies with Hann windows, minus their mean in training, over twice their standard deviation."""

    def __init__(self, mean: float = MEAN, std: float = STD) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.spectrum = LogMel(BANDS, shape="hanning")

    def forward(self, waveforms: Tensor, lengths: Tensor, shortest: int) -> Tensor:
        """Map (B, S) to (B, 1, bands, frames); clips shorter than `shortest` samples are extended with zeros."""
        # Energies span eight decades, so they need full precision.
        with torch.autocast(waveforms.device.type, enabled=False):
            clean = trimmed(waveforms.float(), lengths, 0)
            centered = clean - clean.sum(1, keepdim=True) / lengths[:, None]
            mel = self.spectrum(trimmed(centered, lengths, shortest))
            return ((mel - self.mean) / (2 * self.std)).transpose(1, 2)[:, None]


class Ssast(Upstream):
    """The encoder of SSAST; a frame is the mean of the patches at its time, from bottom to top.

    Layer 0 is the input of the first block, layers 1 to depth are the blocks' outputs, and one more layer is the last
    output after the final norm: the authors fine-tune its mean over time. Class tokens are attended to but are not
    frames. As in the authors' code, attention spans the whole clip: memory grows with its length and time with its
    square, so recordings of several minutes should be split beforehand.

    mean, std: of log-mel energies. strides: bands and mel frames from one patch to the next; 0 stands for the size of
    a patch, which is also the maximum. Raises UpstreamError for invalid values.
    """

    stable_name = "upstreams.ssast:Ssast"

    def __init__(
        self, size: SsastSize, mean: float = MEAN, std: float = STD, strides: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        check_input_options(size, mean, std, strides)
        self.strides = (strides[0] or size.height, strides[1] or size.width)
        self.hop = MEL_HOP * self.strides[1]
        self.window = MEL_WINDOW + (size.width - 1) * MEL_HOP
        self.layers, self.dim = size.depth + 2, size.dim
        self.v = Transformer(size, self.strides)
        self.images = MelImages(mean, std)

    def settings(self) -> dict[str, object]:
        return {"mean": self.images.mean, "std": self.images.std, "strides": list(self.strides), "grid": [*self.v.grid]}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        longest = int(counts.max())
        patches = self.v.patch_embed(self.images(waveforms, lengths, self.window))[:, :, :longest]
        tokens, mask = self.v.tokens(patches, counts)
        frames = [self.frames(tokens, longest)]
        for block in self.v.blocks:
            tokens = block(tokens, mask)
            frames.append(self.frames(tokens, longest))
        frames.append(self.frames(self.v.norm(tokens), longest))
        stacked = torch.stack(frames, dim=2)
        return Features(stacked.masked_fill_(~valid(counts, longest)[:, :, None, None], 0.0), counts)

    def frames(self, tokens: Tensor, longest: int) -> Tensor:
        """Average tokens (B, N, D) over rows, giving frames (B, T, D)."""
        return tokens[:, self.v.class_tokens :].float().unflatten(1, (-1, longest)).mean(1)


def check_input_options(size: SsastSize, mean: float, std: float, strides: tuple[int, int]) -> None:
    for name, stride, most in (("fstride", strides[0], size.height), ("tstride", strides[1], size.width)):
        if not isinstance(stride, int) or not 0 <= stride <= most:
            raise UpstreamError(f"{name} of ssast is {stride}; it may be 1 to {most}, the size of a patch")
    if not (-100 <= mean <= 100 and 0.01 <= std <= 100):
        raise UpstreamError(
            f"mean and std of ssast are {short_repr(mean)} and {short_repr(std)}; they are those of log-mel energies, "
            "-100 to 100 and 0.01 to 100"
        )


def ssast_size_in(state: Mapping[str, Tensor], reference: str) -> SsastSize:
    """Return the size of the encoder in a checkpoint; raise UpstreamError if the checkpoint is not SSAST's."""
    problem = f"'{reference}' is no checkpoint of SSAST's pre-training"
    needed = ("p_input_fdim", "p_input_tdim", "v.pos_embed", "v.patch_embed.proj.weight")
    absent = [name for name in needed if name not in state]
    if absent:
        raise UpstreamError(f"{problem}: it lacks {short_list(absent)}; give one as its authors published them")
    bands, frames, positions, patch = (state[name] for name in needed)
    if patch.ndim != 4 or 0 in patch.shape or positions.ndim != 3 or (bands.numel(), frames.numel()) != (1, 1):
        shapes = {name: tuple(state[name].shape) for name in needed}
        raise UpstreamError(f"{problem}, by the shapes {shapes}; give one as its authors published them")
    depth = depth_of(name.removeprefix("v.") for name in state)
    size = SsastSize(
        len(patch), depth, 1 + ("v.dist_token" in state), patch.shape[2], patch.shape[3], whole_number(frames)
    )
    if (
        whole_number(bands) != BANDS
        or BANDS % size.height
        or size.dim % HEAD
        or size.columns < 1
        or depth not in DEPTHS
    ):
        layout = (
            f"{short_repr(frames.item())} frames of {short_repr(bands.item())} mel bands, in patches of {size.width} by"
        )
        raise UpstreamError(
            f"'{reference}' is for {layout} {size.height}, and has {depth} blocks of {size.dim} channels; known are "
            f"{BANDS} bands in patches of equal height, and 1 to {DEPTHS[-1]} blocks of multiples of {HEAD} channels"
        )
    if positions.shape[1] != size.class_tokens + size.rows * size.columns:
        raise UpstreamError(
            f"'{reference}' has {positions.shape[1]} positions, but {size.class_tokens} class tokens and {size.rows} "
            f"by {size.columns} patches need as many as these are together; download it again"
        )
    return size


def whole_number(number: Tensor) -> int:
    """Return the whole number in a tensor (), or -1, which is no valid number of bands or frames, if it is not one."""
    value = number.item()
    return int(value) if isinstance(value, (int, float)) and abs(value) < 2**31 and value == int(value) else -1


def ssast_weights_in(state: Mapping[str, Tensor], size: SsastSize, reference: str) -> dict[str, Tensor]:
    """Return the transformer's weights; raise UpstreamError if any are missing, unknown or of a wrong shape."""
    used = {name: tensor for name, tensor in state.items() if not name.startswith(LEFT_OVER)}
    strange = [name for name in used if not name.startswith("v.")]
    weights = {name[2:]: tensor for name, tensor in used.items() if name not in strange}
    if strange:
        raise misfit_error(describe_misfits([], strange, []), "SSAST", reference)
    return strictly_loaded(weights, lambda: Transformer(size), "SSAST", reference)


def load_ssast(
    checkpoint: str, random: bool, mean: float = MEAN, std: float = STD, strides: tuple[int, int] = (0, 0)
) -> Ssast:
    """Load the encoder in a checkpoint of the authors or of `bench pretrain`, or build it with random weights.

    Raises UpstreamError if the file is missing, broken or of another model, or if it lacks weights.
    """
    path = checkpoints.expanded_path(checkpoint)
    reference = printable(checkpoint)
    state = checkpoints.renamed(checkpoints.read_weights(path), lambda name: name.removeprefix("module."), reference)
    size = ssast_size_in(state, reference)
    weights = ssast_weights_in(state, size, reference)
    upstream = Ssast(size, mean, std, strides)
    if not random:
        upstream.v.load_state_dict(weights)
    upstream.origin = checkpoints.digests([path])
    return upstream


@register
def ssast(
    checkpoint: str = "",
    random: bool = False,
    size: str | None = None,
    variant: str | None = None,
    mean: float = MEAN,
    std: float = STD,
    fstride: int = 0,
    tstride: int = 0,
) -> Upstream:
    """SSAST (Gong et al., 2022) from a checkpoint of its authors or of `bench pretrain ssast`: ssast@FILE."""
    if checkpoint:
        if size is not None or variant is not None:
            raise UpstreamError(
                f"size and variant of 'ssast@{printable(checkpoint)}' are those of the file; leave them out"
            )
        return load_ssast(checkpoint, random, mean, std, (fstride, tstride))
    if not random:
        raise UpstreamError("ssast needs its checkpoint: write ssast@FILE, or ssast@random for one with random weights")
    chosen = size_of_variant("base" if size is None else size, "patch" if variant is None else variant)
    return Ssast(chosen, mean, std, (fstride, tstride))


@register
def ssast_mini(random: bool = False) -> Upstream:
    """SSAST with 4 blocks of 128 channels, pre-trained on the embedded corpus; shipped with this project."""
    return load_ssast(str(SHIPPED / "ssast_mini.safetensors"), random)


def seconds_of_frames(frames: int) -> float:
    """Return the duration in seconds of `frames` mel frames."""
    return (MEL_WINDOW + (frames - 1) * MEL_HOP) / 16_000


# Ten epochs of AudioSet-2M and LibriSpeech's 960 h in pieces of 10 s, some 2.4 million clips, in the authors' batches
# and rates. Those of small models are not published.
BASE = Recipe(
    steps=1_000_000,
    batch=24,
    seconds=seconds_of_frames(1024),
    lr=1e-4,
    warmup=1000,
    optimizer="adam",
    betas=(0.95, 0.999),
    weight_decay=5e-7,
)
# Mini's is chosen by frozen probes on validation clips, of rates 5e-4 to 4e-3 and shares of 0.5 to 0.78 masked.
RECIPES = {
    "mini": Recipe(
        steps=2000,
        batch=32,
        seconds=seconds_of_frames(192),
        lr=1e-3,
        warmup=50,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        clip=1.0,
    ),
    "tiny": replace(BASE, steps=200_000, batch=120, lr=5e-4),
    "small": BASE,
    "base": BASE,
    "base_nokd": BASE,
}


class Guess(NamedTuple):
    """Output of the encoder (B, N, D), masked tokens (B, N), the most of a clip, and means (B, D) of a middle block."""

    output: Tensor
    mask: Tensor
    most: int
    vectors: Tensor


class SsastPretraining(Method):
    """Masked patches are identified among the others of their clip, and reconstructed (Gong et al., 2022).

    For a clip's masked patches x (P values each, normalised as at the encoder's input) and the outputs c and r of two
    perceptrons for the encoder's output at the same positions:

        nce = mean_i -log(exp(c_i x_i) / sum_j exp(c_i x_j)),    mse = mean_i |r_i - x_i|^2 / P,    loss = nce + 10 mse

    The share of correctly identified patches is reported as "accuracy".
    objective: "joint", "discriminative" for the first term only, or "generative" for the second only.
    masked: share of a clip's patches that are masked.
    one_mask: whether both terms use one pass through the encoder, at half the cost; the authors draw a mask for each.
    start: see `Transformer`.
    Raises UpstreamError for invalid options.
    """

    def __init__(
        self,
        size: SsastSize,
        recipe: Recipe,
        objective: str = "joint",
        masked: float = MASKED,
        one_mask: bool = False,
        softmax_over: str = "targets",
        start: str | None = None,
    ) -> None:
        super().__init__()
        check_objective_options(objective, masked, one_mask, softmax_over, start)
        self.recipe, self.size = recipe, size
        self.objective, self.masked, self.one_mask, self.softmax_over = objective, masked, one_mask, softmax_over
        self.v = Transformer(size, start=start)
        self.mask_embed = nn.Parameter(nn.init.xavier_normal_(torch.zeros(1, 1, size.dim)))
        self.cpredlayer, self.gpredlayer = predictor(size), predictor(size)
        # A layer that the objective does not use gets no gradients, and no optimizer state in checkpoints.
        self.cpredlayer.requires_grad_(objective != "generative")
        self.gpredlayer.requires_grad_(objective != "discriminative")
        self.images = MelImages()

    def forward(self, batch: AudioBatch, done: float) -> Step:
        images, counts = self.seen(batch)
        shape = (self.size.height, self.size.width)
        targets = F.unfold(images, shape, stride=shape).transpose(1, 2)  # (B, N, P), in the order of tokens
        first = last = self.guessed(images, counts)
        terms: dict[str, Tensor] = {}
        if self.objective != "generative":
            terms |= self.discriminated(targets, first)
        if self.objective == "joint" and not self.one_mask:
            last = self.guessed(images, counts)
        if self.objective != "discriminative":
            terms["mse"] = self.generated(targets, last)
        if self.objective == "joint":
            return Step({"loss": terms["nce"] + GENERATIVE_WEIGHT * terms["mse"], **terms}, first.vectors)
        return Step({"loss": terms["mse" if self.objective == "generative" else "nce"], **terms}, first.vectors)

    def seen(self, batch: AudioBatch) -> tuple[Tensor, Tensor]:
        """Return spectrograms (B, 1, bands, frames) in whole patches, and the number (B,) of columns of each clip."""
        window, hop = MEL_WINDOW + (self.size.width - 1) * MEL_HOP, self.size.width * MEL_HOP
        counts = torch.clamp(batch.lengths - window, min=0) // hop + 1
        images = self.images(batch.waveforms, batch.lengths, window)
        return images[..., : int(counts.max()) * self.size.width], counts

    def guessed(self, images: Tensor, counts: Tensor) -> Guess:
        """Encode spectrograms with a random mask; counts: (B,) columns of each clip."""
        patches = self.v.patch_embed(images)
        there = valid(counts, patches.shape[2])[:, None].expand(-1, patches.shape[1], -1)
        mask = self.mask(there)
        patches = torch.where(mask[..., None], self.mask_embed.to(patches.dtype), patches)
        tokens, mask_of_tokens = self.v.tokens(patches, counts)
        states = block_outputs(self.v.blocks, tokens, mask_of_tokens)
        output = self.v.norm(states[-1])[:, self.size.class_tokens :]
        middle = states[(len(states) - 1) // 2][:, self.size.class_tokens :]
        mask = mask.flatten(1)
        return Guess(output, mask, int(mask.sum(1).max()), mean_where(middle, there.flatten(1)))

    def mask(self, there: Tensor) -> Tensor:
        """Return a random mask (B, rows, columns) of valid patches: clustered, or independent if there is one row."""
        number = share_of(there, self.masked)
        return random_mask(there, number) if self.size.rows == 1 else block_mask(there, number)

    def discriminated(self, targets: Tensor, guess: Guess) -> dict[str, Tensor]:
        """nce () and accuracy ()."""
        output, mask, most, _ = guess
        hidden, chosen = gather_masked(output, mask, most)
        predicted = self.cpredlayer(hidden)
        with torch.autocast(output.device.type, enabled=False):
            scores = predicted.float() @ gather_masked(targets, mask, most)[0].transpose(
                1, 2
            )  # (B, predictions, targets)
            axis = NORMALIZED[self.softmax_over]
            scores = scores.masked_fill(~chosen[:, None] if axis == 2 else ~chosen[:, :, None], float("-inf"))
            own = scores.log_softmax(axis).diagonal(dim1=1, dim2=2)[chosen]
            right = scores.argmax(axis) == torch.arange(most, device=scores.device)
            return {"nce": -own.mean(), "accuracy": right[chosen].float().mean().detach()}

    def generated(self, targets: Tensor, guess: Guess) -> Tensor:
        """mse ()."""
        output, mask, most, _ = guess
        hidden, chosen = gather_masked(output, mask, most)
        predicted = self.gpredlayer(hidden)
        with torch.autocast(output.device.type, enabled=False):
            return (predicted.float() - gather_masked(targets, mask, most)[0])[chosen].square().mean()

    def exported(self) -> dict[str, Tensor]:
        weights = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("images.")}
        weights |= {"p_input_fdim": torch.tensor(BANDS), "p_input_tdim": torch.tensor(self.size.frames)}
        return {f"module.{name}": tensor for name, tensor in weights.items()}


def predictor(size: SsastSize) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size.dim, size.dim), nn.ReLU(), nn.Linear(size.dim, size.height * size.width))


def check_objective_options(
    objective: str, masked: float, one_mask: bool, softmax_over: str, start: str | None
) -> None:
    if objective not in OBJECTIVES:
        raise UpstreamError(
            f"no objective '{printable(objective)}' of ssast; {suggestion(objective, [*OBJECTIVES], False)}"
        )
    if softmax_over not in NORMALIZED:
        raise UpstreamError(f"softmax_over of ssast is '{softmax_over}'; write one of: {', '.join(NORMALIZED)}")
    if start not in (None, *STARTS):
        raise UpstreamError(f"no start '{printable(start)}' of ssast; write one of: {', '.join(STARTS)}")
    if not isinstance(one_mask, bool):
        raise UpstreamError(f"one_mask of ssast is '{one_mask}'; it is true or false")
    if not (isinstance(masked, (int, float)) and 0 < masked <= 1):
        raise UpstreamError(f"masked of ssast is {masked}; it is a share of the patches, above 0 and at most 1")


def method(
    size: str,
    variant: str | None = None,
    objective: str = "joint",
    masked: float | None = None,
    one_mask: bool | None = None,
    softmax_over: str = "targets",
    start: str | None = None,
) -> Method:
    """Return SSAST's objective for a size, with the paper's options; "mini" masks half of its frames, with one mask."""
    mini = size == "mini"
    planning = size_of_variant(size, variant if variant is not None else ("frame" if mini else "patch"))
    share = masked if masked is not None else (0.5 if mini else MASKED)
    once = mini if one_mask is None else one_mask
    return SsastPretraining(planning, RECIPES[size], objective, share, once, softmax_over, start)
