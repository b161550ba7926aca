"""PMS-SSL, progressive multi-scale self-supervised learning (Wan et al., 2022): a HuBERT whose attention widens with
depth, its checkpoints and its objective.

Weights have the names of transformers' HubertModel, which takes them as they are; with all bands open, features are
HuBERT's. What is not public, and what is ours:

- The paper says that lower layers attend to a small scope and higher ones to a large scope, not how large. Here layer l
  of a clip attends to frames at most w_l away; the w_l of "base" and "mini" are our choice, and options.
- Which features its units are clusters of is not public: ours are HuBERT's own, cepstra first, then (teacher=FILE) a
  layer of an earlier model. Counts of units, the layers that predict them, and the equal sum are the paper's.
- Units are found from the first batches and assigned on the fly; HuBERT's are found and written down beforehand.
- The objective is HuBERT's (Hsu et al., 2021) twice, on masked frames only, without the penalty on the convolutions'
  output; after its warm-up the rate follows half a cosine, where HuBERT's falls in a line. Spans: see `spans`.
- The size "mini" is this project's own, for what is learnt from hours of sound in minutes. Clips at unit variance
  and a norm after each convolution and before each part of a block are HuBERT Large's choices. Ours are three
  convolutions that begin as a filter bank, and a loss on visible frames too: seven narrow ones and masked frames alone
  told no more of units after 300 steps than how often they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from upstreams import register
from upstreams.arguments import advice
from upstreams.base import SHIPPED, Upstream, UpstreamError, valid
from upstreams.families.hub import WEIGHTS
from upstreams.families.waveform_encoders import WaveformEncoder, architecture, transformed
from upstreams.pretraining.masking import scattered
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step, mean_where
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import listed, printable, shown
from upstreams.safety.configuration_limits import refuse_slow
from upstreams.safety.strict_loading import fitting
from upstreams.seeds.filterbank_start import begin_as_filters
from upstreams.seeds.kmeans_targets import Cepstra, Codebook
from upstreams.seeds.local_attention import Bands, banded, checked, parsed
from upstreams.threads import one_thread
from upstreams.torchaudio_guard import guard

CONFIG = "bench.config"  # bytes of JSON beside the weights
LARGEST = 100_000  # bytes of it
FASTEST = 1_000  # frames a second; attention takes room by their square
FLOOR = 1e-7  # that transformers adds to a clip's variance; fairseq adds 1e-5
OTHERS = ("quantizer.", "project_q.", "spk_proj.", "regression_head.", "_ema", "grep_linear.")  # fairseq's other models
UNITS = "label_embs_concat"  # what fairseq's HuBERT has and its relatives lack
SPAN, SHARE, TEMPERATURE = 10, 0.8, 0.1  # frames; of a clip that spans would cover if they never overlapped; HuBERT's
BOTH = ("coarse", "fine")
SHAPES = ("hidden_size", "num_hidden_layers", "intermediate_size", "conv_dim")  # of weights
BASE = {"feat_proj_dropout": 0.1, "hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0}


class PmsSize(NamedTuple):
    """An encoder, and what it is pre-trained with.

    config: of transformers' HubertModel. filters: whether its convolutions begin as in `filters`. normalize: whether
    clips get zero mean and unit variance. layers, units: that predict coarse and fine units, from 1, and how many there
    are. dim: in which they are compared. visible: weight of the same loss on frames that are not masked. layerdrop:
    chance that a block is skipped. gradient: scale of the convolutions' gradients. centered: see `Cepstra`. frames:
    that units are found from, at least. trials: starts of k-means.
    """

    config: Mapping[str, Any]
    filters: bool
    normalize: bool
    bands: Bands
    layers: tuple[int, int]
    units: tuple[int, int]
    dim: int
    visible: float
    layerdrop: float
    gradient: float
    centered: bool
    frames: int
    trials: int
    recipe: Recipe


MINI = {
    **dict.fromkeys(BASE, 0.0),
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": [80, 96, 96],
    "conv_kernel": [240, 5, 2],
    "conv_stride": [20, 4, 4],
    "conv_bias": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "relu",
    "do_stable_layer_norm": True,
}
SIZES = {
    "mini": PmsSize(
        MINI, True, True, (6, 12, 30, None), (2, 4), (30, 150), 64, 1.0, 0.0, 1.0, True, 20_000, 1,
        Recipe(steps=600, batch=24, seconds=1.6, lr=3e-3, warmup=50, betas=(0.9, 0.98), weight_decay=0.01, clip=1.0),
    ),
    "base": PmsSize(
        BASE, False, False, (8, 8, 16, 16, 32, 32, 64, 64, 128, 128, None, None), (6, 12), (300, 500), 256, 0.0, 0.05,
        0.1, False, 1_000_000, 20,
        Recipe(steps=400_000, batch=180, seconds=15.6, lr=5e-4, warmup=32_000, betas=(0.9, 0.98), weight_decay=0.01,
               clip=10.0),  # HuBERT Base's: 32 GPUs of 87.5 s each
    ),
}  # fmt: skip


class Pms(WaveformEncoder):
    """A HuBERT of transformers whose layers attend within bands; layers are as in `WaveformEncoder`.

    floor: what is added to a clip's variance where it is normalised.
    """

    stable_name = "upstreams.pms:Pms"

    def __init__(self, model: Any, normalize: bool, sample_rate: int, bands: Bands, floor: float = FLOOR) -> None:
        super().__init__(model, normalize, sample_rate)
        model.config._attn_implementation = "sdpa"  # which takes masks of what may be seen
        self.bands, self.floor = bands, floor

    def settings(self) -> dict[str, object]:
        return super().settings() | {"bands": list(self.bands), "floor": self.floor}

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        scale = math.sqrt(FLOOR / self.floor) if self.normalize else 1.0
        return super().prepare(waveforms * scale if scale != 1.0 else waveforms, lengths)

    def transform(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        encoder, counts = self.model.encoder, self.frame_lengths(lengths)
        with banded(encoder.layers, self.bands, counts, frames.shape[1]):
            return transformed(encoder, frames, counts)


@register
def pms(checkpoint: str = "", random: bool = False, size: str | None = None, bands: str | None = None) -> Upstream:
    """PMS-SSL (Wan et al., 2022) from a checkpoint of ours, or any HuBERT's: pms@FILE?bands=8,16,none."""
    if checkpoint:
        if size is not None:
            raise UpstreamError(f"the size of 'pms@{printable(checkpoint)}' is that of the file; leave it out")
        return loaded(checkpoint, random, bands)
    if not random:
        raise UpstreamError(
            "pms needs a checkpoint: pms@FILE of bench pretrain pms, a fairseq HuBERT, or config.json in the folder of "
            "a transformers one; pms@random draws weights"
        )
    chosen = size_of("base" if size is None else size)
    return built(chosen, chosen.bands if bands is None else parsed(bands, len(chosen.bands), "pms"))


@register
def pms_mini(random: bool = False) -> Upstream:
    """PMS-SSL with 4 blocks of 128 channels, pre-trained by this project on its embedded corpus."""
    return loaded(str(SHIPPED / "pms_mini.safetensors"), random)


def size_of(name: str) -> PmsSize:
    if name not in SIZES:
        raise UpstreamError(f"no size '{printable(name)}' of pms; {advice(name, [*SIZES], False)}")
    return SIZES[name]


def built(size: PmsSize, bands: Bands) -> Pms:
    """The encoder of a size with weights drawn anew."""
    guard()
    import transformers

    return Pms(drawn(transformers.HubertConfig(**size.config), size.filters), size.normalize, 16_000, bands)


def drawn(config: Any, filters: bool) -> Any:
    """A HubertModel with weights drawn anew, the same with any number of threads."""
    from upstreams.families.huggingface import untrained

    with one_thread():
        model = untrained(config)
    if filters:
        begin_as_filters([layer.conv for layer in model.feature_extractor.conv_layers])
    return model


def loaded(checkpoint: str, random: bool, bands: str | None = None) -> Pms:
    """The encoder in a file of ours or of fairseq's, or in the folder of a transformers model.

    bands: instead of those in the file, which only ours have; others are open. Raises UpstreamError for files that are
    missing, broken or of another model, and for weights that do not all arrive.
    """
    guard()
    path, reference = checkpoints.expanded(checkpoint), printable(checkpoint)
    if path.is_dir() or path.name == "config.json":
        upstream = of_folder(path if path.is_dir() else path.parent, random)
    else:
        content = checkpoints.load(path)
        if isinstance(content, dict) and CONFIG in content:
            upstream = of_ours(checkpoints.tensors_only(content, path), random, reference)
            upstream.origin = checkpoints.digests([path])
        elif path.name in WEIGHTS and path.with_name("config.json").is_file():
            upstream = of_folder(path.parent, random)
        else:
            upstream = of_fairseq(content, str(path), random)
    if bands is not None:
        upstream.bands = parsed(bands, len(upstream.bands), f"'{reference}'")
    return upstream


def of_folder(folder: Path, random: bool) -> Pms:
    """HuBERT as transformers' save_pretrained writes it."""
    from upstreams.families import huggingface

    found = huggingface.load(str(folder), random)
    return with_open_bands(found, str(folder), FLOOR)


def of_fairseq(content: Any, path: str, random: bool) -> Pms:
    """HuBERT as fairseq writes it, whose relatives it is told from by the heads in the file."""
    from upstreams.families import fairseq

    state = fairseq.unpacked(content, path).state
    others = [name for name in state if any(part in name for part in OTHERS)]
    if others or not any(name.endswith(UNITS) for name in state):
        told = f"it has {listed(others, 2)}" if others else f"it lacks {UNITS}"
        raise UpstreamError(f"'{printable(path)}' is of another model than HuBERT ({told}); give it as fairseq:FILE")
    return with_open_bands(fairseq.load(path, random), path, 1e-5)


def with_open_bands(found: Upstream, path: str, floor: float) -> Pms:
    if not isinstance(found, WaveformEncoder) or found.model.config.model_type != "hubert":
        raise UpstreamError(
            f"'{printable(path)}' is of another model than HuBERT; give it as hf:FOLDER or fairseq:FILE"
        )
    open_bands = (None,) * found.model.config.num_hidden_layers
    upstream = Pms(found.model, found.normalize, found.sample_rate, open_bands, floor)
    upstream.origin = found.origin
    return upstream


def of_ours(state: Mapping[str, Tensor], random: bool, reference: str) -> Pms:
    """What `exported` gave; nothing is built that is far larger than the weights."""
    from upstreams.families.huggingface import configuration, model_class, refuse_larger

    facts = facts_in(state.get(CONFIG), reference)
    config = configuration({**facts["model"], "model_type": "hubert"}, reference)
    weights = {name: tensor for name, tensor in state.items() if name != CONFIG}
    refuse_larger(config, weights, reference)
    bands = checked(facts["bands"], config.num_hidden_layers, f"'{reference}'")
    weights = fitting(weights, lambda: model_class("hubert")(config), "PMS-SSL", reference)
    if facts["filters"] and config.conv_dim[0] % 2:
        told = f"{CONFIG} in '{reference}' has filters and {config.conv_dim[0]} first channels"
        raise UpstreamError(f"{told}; cosines and sines come in pairs")
    model = drawn(config, facts["filters"])
    if not random:
        model.load_state_dict(weights)
    upstream = Pms(model, facts["normalize"], 16_000, bands)
    refuse_slow(upstream, f"{CONFIG} in '{reference}'")
    if upstream.hop * FASTEST < upstream.sample_rate:
        told = f"{CONFIG} in '{reference}' has a conv_stride that gives a frame every {upstream.hop} samples"
        raise UpstreamError(f"{told}; there may be {FASTEST} a second")
    return upstream


def facts_in(written: Tensor | None, reference: str) -> dict[str, Any]:
    """What a checkpoint of ours says of itself; raises UpstreamError where that cannot be read."""
    try:
        if written is None or written.dtype != torch.uint8 or written.ndim != 1 or len(written) > LARGEST:
            raise ValueError
        facts = dict(json.loads(bytes(written.tolist())))
        kinds = [("model", dict), ("normalize", bool), ("filters", bool), ("bands", list)]
        if not all(isinstance(facts[name], kind) for name, kind in kinds):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpstreamError(f"{CONFIG} in '{reference}' cannot be read; make it anew by bench pretrain pms") from error
    return facts


class TeacherFeatures(nn.Module):
    """A layer of an earlier model, which no longer learns: what units of a second iteration are clusters of."""

    def __init__(self, teacher: Pms, layer: int) -> None:
        super().__init__()
        self.teacher, self.layer = teacher.requires_grad_(False).eval(), layer
        self.dim, self.hop, self.window = teacher.dim, teacher.hop, teacher.window

    def train(self, mode: bool = True) -> TeacherFeatures:
        return super().train(False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) to (B, T, D)."""
        frames: Tensor = self.teacher(waveforms, lengths).frames[:, :, self.layer]
        return frames


class PmsPretraining(Method):
    """Masked frames are told by two layers, each among the units of its own codebook.

    For h_t of layer l at masked frames t of a batch, a projection W_l, embeddings e_c of the layer's units, the unit
    z_t that frozen features of frame t are nearest to, and tau = 0.1:

        loss_l = mean_t -log softmax_c(cos(W_l h_t, e_c) / tau)[z_t],    loss = loss_coarse + loss_fine

    Where the size says so, the same of the frames that are not masked ("visible") is added, as HuBERT may do too.
    targets: "both"; "coarse" or "fine" trains with the one term and layer alone. features: of which units are clusters.
    Beside the losses are shown the shares of masked frames whose own unit is the likeliest, and that are masked.
    """

    def __init__(self, size: PmsSize, bands: Bands, targets: str, features: Cepstra | TeacherFeatures) -> None:
        super().__init__()
        self.recipe, self.size = size.recipe, size
        self.names = BOTH if targets == "both" else (targets,)
        self.encoder = built(size, bands)
        if (features.hop, features.window) != (self.encoder.hop, self.encoder.window):
            told = f"every {features.hop} samples of {features.window}"
            raise UpstreamError(f"the teacher of pms gives a frame {told}; take one of the architecture to be trained")
        weight_normed(self.encoder.model.encoder.pos_conv_embed.conv)
        self.features = features
        self.layers = dict(zip(BOTH, size.layers, strict=True))
        units = {name: number for name, number in zip(BOTH, size.units, strict=True) if name in self.names}
        self.codebooks = nn.ModuleDict({name: Codebook(number, features.dim) for name, number in units.items()})
        self.projections = nn.ModuleDict({name: nn.Linear(self.encoder.dim, size.dim) for name in units})
        self.units = nn.ParameterDict({name: torch.randn(number, size.dim) for name, number in units.items()})

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        """Find the units from the first batches."""
        found = [torch.zeros(0, self.features.dim)]
        with torch.no_grad(), one_thread():
            while sum(map(len, found)) < self.size.frames and (batch := next(batches, None)) is not None:
                known = self.features(batch.waveforms, batch.lengths)
                found.append(known[valid(self.encoder.frame_lengths(batch.lengths), known.shape[1])].cpu())
        for codebook in self.codebooks.values():
            codebook.find(torch.cat(found), self.size.trials)  # type: ignore[operator]

    def forward(self, batch: AudioBatch, done: float) -> Step:
        with torch.no_grad(), torch.autocast(batch.waveforms.device.type, enabled=False):
            known = self.features(batch.waveforms, batch.lengths)
            there = valid(self.encoder.frame_lengths(batch.lengths), known.shape[1])
            mask = spans(there, SHARE, SPAN)
        states = self.encoded(batch, mask)
        terms: dict[str, Tensor] = {}
        for name in self.names:
            terms |= self.told(name, states[self.layers[name]], known, mask, there & ~mask)
        weights = {"": 1.0, "_visible": self.size.visible}
        losses = [weights[part] * terms[name + part] for name in self.names for part in weights if name + part in terms]
        vectors = mean_where(states[(len(states) - 1) // 2], there)
        return Step({"loss": torch.stack(losses).sum(), **terms, "masked": mask.sum() / there.sum()}, vectors)

    def told(self, name: str, states: Tensor, known: Tensor, mask: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """Mean losses of one codebook, and the share of masked frames that are told, by what it is called."""
        scores, units = self.scores(name, states[mask]), self.codebooks[name](known[mask])
        terms = {name: F.cross_entropy(scores, units)}
        if self.size.visible:
            total = F.cross_entropy(
                self.scores(name, states[visible]), self.codebooks[name](known[visible]), reduction="sum"
            )
            terms[f"{name}_visible"] = total / visible.sum().clamp(min=1)
        return terms | {f"{name}_accuracy": (scores.argmax(1) == units).float().mean()}

    def encoded(self, batch: AudioBatch, mask: Tensor) -> list[Tensor]:
        """Layers (B, T, D) each of clips whose masked frames (B, T) the transformer is not shown."""
        encoder, lengths = self.encoder, batch.lengths
        found = encoder.convolve(encoder.prepare(batch.waveforms, lengths), lengths)
        found = self.size.gradient * found + (1.0 - self.size.gradient) * found.detach()
        frames = encoder.project(found)
        frames = torch.where(mask[:, :, None], encoder.model.masked_spec_embed.to(frames.dtype), frames)
        # The kernel that torch prefers on CPUs takes four times as long to go back in half precision.
        kernel = sdpa_kernel(SDPBackend.MATH) if frames.device.type == "cpu" else nullcontext()
        with kernel, skipped(encoder.model.encoder.layers, self.size.layerdrop if self.training else 0.0):
            return encoder.transform(frames, lengths)

    def scores(self, name: str, hidden: Tensor) -> Tensor:
        """Cosines over temperature (M, units) of hidden frames (M, D)."""
        projected = self.projections[name](hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.normalize(projected.float(), dim=1) @ F.normalize(self.units[name], dim=1).T / TEMPERATURE

    def exported(self) -> dict[str, Tensor]:
        """The weights as transformers names them, and what else the architecture is, as bytes of JSON."""
        config = self.encoder.model.config
        model = architecture(config) | {name: getattr(config, name) for name in (*SHAPES, *BASE)}
        facts = {
            "model": model,
            "bands": self.encoder.bands,
            "normalize": self.size.normalize,
            "filters": self.size.filters,
        }
        written = torch.tensor(list(json.dumps(facts, sort_keys=True).encode()), dtype=torch.uint8)
        return {**self.encoder.model.state_dict(), CONFIG: written}


def spans(there: Tensor, share: float, length: int) -> Tensor:
    """Mask (B, T) of spans of `length` frames among those that are there (B, T), which may overlap.

    As fairseq draws them (Baevski et al., 2020): of a clip's n frames, n * share / length spans, rounded up or down by
    chance, begin at different ones and end within it; at least one, which in a clip shorter than a span is all of it.
    (For HuBERT there are at least two, and of all clips of a batch so many are dropped again at random frames that none
    has more masked frames than another.)
    """
    counts = there.sum(1)
    places = (counts - length + 1).clamp(min=1)
    number = (counts * share / length + torch.rand(len(counts), device=counts.device)).long()
    number = number.minimum(counts // length).minimum(places).clamp(min=1)
    starts = scattered(valid(places, there.shape[1]), number)
    reached = F.max_pool1d(F.pad(starts.float(), (length - 1, 0))[:, None], length, stride=1)[:, 0]
    return (reached > 0) & there


def weight_normed(convolution: nn.Module) -> None:
    """Learn a convolution's direction and size apart, as HuBERT learns its positions."""
    with one_thread():
        nn.utils.parametrizations.weight_norm(convolution, name="weight", dim=2)


@contextmanager
def skipped(blocks: Iterable[nn.Module], chance: float) -> Iterator[None]:
    """Within it a block by chance gives what it was given (layer drop, Fan et al., 2020)."""

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output if torch.rand(()) >= chance else args[0]

    with ExitStack() as stack:
        for block in blocks if chance else ():
            stack.callback(block.register_forward_hook(after).remove)
        yield


def method(
    size: str,
    targets: str = "both",
    bands: str | None = None,
    teacher: str | None = None,
    layer: int | None = None,
) -> Method:
    """PMS-SSL's pre-training of a size; its plain twin, a HuBERT, is `pms?targets=fine&bands=none`.

    teacher: an earlier checkpoint, of a layer of which units are clusters, the middle one unless said otherwise.
    """
    chosen = size_of(size)
    reach = chosen.bands if bands is None else parsed(bands, len(chosen.bands), "pms")
    if targets not in ("both", *BOTH):
        raise UpstreamError(f"no targets '{printable(targets)}' of pms; write both, {' or '.join(BOTH)}")
    if teacher == "":
        raise UpstreamError("teacher of pms is empty; give teacher=FILE, or leave it out")
    if teacher is None:
        if layer is not None:
            raise UpstreamError("layer of pms is of a teacher's features, and there is no teacher; give teacher=FILE")
        return PmsPretraining(chosen, reach, targets, Cepstra(chosen.centered))
    earlier = loaded(teacher, False)
    if earlier.sample_rate != Method.sample_rate:
        raise UpstreamError(
            f"the teacher of pms hears {earlier.sample_rate} samples a second; give one of {Method.sample_rate}"
        )
    layer = (earlier.layers - 1) // 2 if layer is None else layer
    if type(layer) is not int or not 0 <= layer < earlier.layers:
        raise UpstreamError(f"layer of pms is {shown(layer)}; that teacher has layers 0 to {earlier.layers - 1}")
    trained = PmsPretraining(chosen, reach, targets, TeacherFeatures(earlier, layer))
    trained.origin = earlier.origin
    return trained
