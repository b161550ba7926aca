"""PMS-SSL, progressive multi-scale self-supervised learning (Wan et al., 2022): a HuBERT with local attention that
widens with depth, its checkpoints and its objective.

Weights have the names of transformers' HubertModel, which can load them; if all layers attend to all frames, features
are HuBERT's. What is not public, and what is this project's choice:

- The paper says that lower layers attend to a small scope and higher ones to a large scope, not how large. Here layer l
  of a clip attends to frames at most w_l away; the w_l of "base" and "mini" are our choice, and options.
- The features whose clusters are the units are not public: ours are HuBERT's, cepstra at first, then (teacher=FILE) a
  layer of an earlier model. The numbers of units, the layers that predict them, and the equal sum are the paper's.
- Units are computed from the first batches and assigned during training; HuBERT's are written to files beforehand.
- The objective is HuBERT's (Hsu et al., 2021) twice, on masked frames only, without the penalty on the convolutions'
  output; after its warm-up the learning rate follows half a cosine, HuBERT's falls linearly. See also `random_spans`.
- The size "mini" is this project's own, for training in minutes on hours of audio. Clips with unit variance and layer
  norms after each convolution and before each part of a block are taken from HuBERT Large. Its three convolutions,
  initialised as a filter bank, and its loss on visible frames are new: with seven narrow convolutions and a loss on
  masked frames only, the model had learnt no more than the frequencies of the units after 300 steps.
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
from upstreams.arguments import suggestion
from upstreams.base import SHIPPED, Upstream, UpstreamError, valid
from upstreams.families.hub import WEIGHTS
from upstreams.families.waveform_encoders import WaveformEncoder, architecture_settings, transformer_states
from upstreams.pretraining.masking import random_mask
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step, mean_where
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable, short_list, short_repr
from upstreams.safety.configuration_limits import refuse_slow
from upstreams.safety.strict_loading import strictly_loaded
from upstreams.seeds.filterbank_start import init_as_filter_bank
from upstreams.seeds.kmeans_targets import Cepstra, Codebook
from upstreams.seeds.local_attention import Bands, check_bands, local_attention, parse_bands
from upstreams.threads import one_thread
from upstreams.torchaudio_guard import guard

CONFIG = "bench.config"  # entry with the configuration as bytes of JSON, stored with the weights
LARGEST = 100_000  # bytes; largest size of that entry
FASTEST = 1_000  # highest frame rate in Hz; the memory of attention grows with its square
FLOOR = 1e-7  # added to a clip's variance by transformers; fairseq adds 1e-5
OTHERS = ("quantizer.", "project_q.", "spk_proj.", "regression_head.", "_ema", "grep_linear.")  # fairseq's other models
UNITS = "label_embs_concat"  # a weight of fairseq's HuBERT that its other models lack
# HuBERT's: frames of a masked span, share of a clip that spans would cover without overlap, and temperature of cosines.
SPAN, SHARE, TEMPERATURE = 10, 0.8, 0.1
BOTH = ("coarse", "fine")
SHAPES = ("hidden_size", "num_hidden_layers", "intermediate_size", "conv_dim")  # settings that shape the weights
BASE = {"feat_proj_dropout": 0.1, "hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0}


class PmsSize(NamedTuple):
    """An encoder, and its pre-training settings.

    config: of transformers' HubertModel.
    filters: whether its convolutions are initialised by `init_as_filter_bank`.
    normalize: whether clips get zero mean and unit variance.
    layers, units: the layers that predict coarse and fine units, counted from 1, and the numbers of units.
    dim: dimension in which hidden frames and units are compared.
    visible: weight of the loss on frames that are not masked.
    layerdrop: probability that a block is skipped.
    gradient: scale of the convolutions' gradients.
    centered: see `Cepstra`.
    frames: least number of frames from which units are computed.
    trials: number of initialisations of k-means.
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
    """A HuBERT of transformers with local attention; layers are as in `WaveformEncoder`.

    floor: added to a clip's variance when the clip is normalised.
    """

    stable_name = "upstreams.pms:Pms"

    def __init__(self, model: Any, normalize: bool, sample_rate: int, bands: Bands, floor: float = FLOOR) -> None:
        super().__init__(model, normalize, sample_rate)
        model.config._attn_implementation = "sdpa"  # takes attention masks
        self.bands, self.floor = bands, floor

    def settings(self) -> dict[str, object]:
        return super().settings() | {"bands": list(self.bands), "floor": self.floor}

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        scale = math.sqrt(FLOOR / self.floor) if self.normalize else 1.0
        return super().prepare(waveforms * scale if scale != 1.0 else waveforms, lengths)

    def transform(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        encoder, counts = self.model.encoder, self.frame_lengths(lengths)
        with local_attention(encoder.layers, self.bands, counts, frames.shape[1]):
            return transformer_states(encoder, frames, counts)


@register
def pms(checkpoint: str = "", random: bool = False, size: str | None = None, bands: str | None = None) -> Upstream:
    """PMS-SSL (Wan et al., 2022) from a checkpoint of ours, or any HuBERT's: pms@FILE?bands=8,16,none."""
    if checkpoint:
        if size is not None:
            raise UpstreamError(f"the size of 'pms@{printable(checkpoint)}' is that of the file; leave it out")
        return load_pms(checkpoint, random, bands)
    if not random:
        raise UpstreamError(
            "pms needs a checkpoint: pms@FILE of bench pretrain pms, a fairseq HuBERT, or config.json in the folder of "
            "a transformers one; pms@random draws weights"
        )
    chosen = size_of("base" if size is None else size)
    return build_pms(chosen, chosen.bands if bands is None else parse_bands(bands, len(chosen.bands), "pms"))


@register
def pms_mini(random: bool = False) -> Upstream:
    """PMS-SSL with 4 blocks of 128 channels, pre-trained by this project on its embedded corpus."""
    return load_pms(str(SHIPPED / "pms_mini.safetensors"), random)


def size_of(name: str) -> PmsSize:
    if name not in SIZES:
        raise UpstreamError(f"no size '{printable(name)}' of pms; {suggestion(name, [*SIZES], False)}")
    return SIZES[name]


def build_pms(size: PmsSize, bands: Bands) -> Pms:
    """Build the encoder of a size with random weights."""
    guard()
    import transformers

    return Pms(random_hubert(transformers.HubertConfig(**size.config), size.filters), size.normalize, 16_000, bands)


def random_hubert(config: Any, filters: bool) -> Any:
    """Build a HubertModel with random weights, which do not depend on the number of threads."""
    from upstreams.families.huggingface import random_model

    with one_thread():
        model = random_model(config)
    if filters:
        init_as_filter_bank([layer.conv for layer in model.feature_extractor.conv_layers])
    return model


def load_pms(checkpoint: str, random: bool, bands: str | None = None) -> Pms:
    """Load the encoder in a file of `bench pretrain` or of fairseq, or in the folder of a transformers model.

    bands: replace those of the file. Files of fairseq and transformers have none, and all their layers attend to all
    frames by default. Raises UpstreamError for files that are missing, broken or of another model, or lack weights.
    """
    guard()
    path, reference = checkpoints.expanded_path(checkpoint), printable(checkpoint)
    if path.is_dir() or path.name == "config.json":
        upstream = pms_from_folder(path if path.is_dir() else path.parent, random)
    else:
        content = checkpoints.load_checkpoint(path)
        if isinstance(content, dict) and CONFIG in content:
            upstream = pms_from_pretraining(checkpoints.tensors_only(content, path), random, reference)
            upstream.origin = checkpoints.digests([path])
        elif path.name in WEIGHTS and path.with_name("config.json").is_file():
            upstream = pms_from_folder(path.parent, random)
        else:
            upstream = pms_from_fairseq(content, str(path), random)
    if bands is not None:
        upstream.bands = parse_bands(bands, len(upstream.bands), f"'{reference}'")
    return upstream


def pms_from_folder(folder: Path, random: bool) -> Pms:
    """Load a HuBERT that was written by transformers' save_pretrained."""
    from upstreams.families import huggingface

    return with_open_bands(huggingface.load(str(folder), random), str(folder), FLOOR)


def pms_from_fairseq(content: Any, path: str, random: bool) -> Pms:
    """Load a HuBERT that was written by fairseq; its other models are recognised by the heads in the file."""
    from upstreams.families import fairseq

    state = fairseq.unpack_release(content, path).state
    others = [name for name in state if any(part in name for part in OTHERS)]
    if others or not any(name.endswith(UNITS) for name in state):
        reason = f"it has {short_list(others, 2)}" if others else f"it lacks {UNITS}"
        raise UpstreamError(f"'{printable(path)}' is of another model than HuBERT ({reason}); give it as fairseq:FILE")
    return with_open_bands(fairseq.load(path, random), path, 1e-5)


def with_open_bands(hubert: Upstream, path: str, floor: float) -> Pms:
    if not isinstance(hubert, WaveformEncoder) or hubert.model.config.model_type != "hubert":
        raise UpstreamError(
            f"'{printable(path)}' is of another model than HuBERT; give it as hf:FOLDER or fairseq:FILE"
        )
    open_bands = (None,) * hubert.model.config.num_hidden_layers
    upstream = Pms(hubert.model, hubert.normalize, hubert.sample_rate, open_bands, floor)
    upstream.origin = hubert.origin
    return upstream


def pms_from_pretraining(state: Mapping[str, Tensor], random: bool, reference: str) -> Pms:
    """Load what `exported` returned; a configuration that is far larger than the weights is refused."""
    from upstreams.families.huggingface import model_class, refuse_larger, transformers_config

    facts = read_facts(state.get(CONFIG), reference)
    config = transformers_config({**facts["model"], "model_type": "hubert"}, reference)
    weights = {name: tensor for name, tensor in state.items() if name != CONFIG}
    refuse_larger(config, weights, reference)
    bands = check_bands(facts["bands"], config.num_hidden_layers, f"'{reference}'")
    weights = strictly_loaded(weights, lambda: model_class("hubert")(config), "PMS-SSL", reference)
    if facts["filters"] and config.conv_dim[0] % 2:
        problem = f"{CONFIG} in '{reference}' has filters and {config.conv_dim[0]} first channels"
        raise UpstreamError(f"{problem}; cosines and sines come in pairs")
    model = random_hubert(config, facts["filters"])
    if not random:
        model.load_state_dict(weights)
    upstream = Pms(model, facts["normalize"], 16_000, bands)
    refuse_slow(upstream, f"{CONFIG} in '{reference}'")
    if upstream.hop * FASTEST < upstream.sample_rate:
        problem = f"{CONFIG} in '{reference}' has a conv_stride that gives a frame every {upstream.hop} samples"
        raise UpstreamError(f"{problem}; there may be {FASTEST} a second")
    return upstream


def read_facts(written: Tensor | None, reference: str) -> dict[str, Any]:
    """Return the configuration in a checkpoint of `bench pretrain`; raise UpstreamError if it cannot be read."""
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
    """A layer of an earlier, frozen model, whose features are clustered for the units of a second iteration."""

    def __init__(self, teacher: Pms, layer: int) -> None:
        super().__init__()
        self.teacher, self.layer = teacher.requires_grad_(False).eval(), layer
        self.dim, self.hop, self.window = teacher.dim, teacher.hop, teacher.window

    def train(self, mode: bool = True) -> TeacherFeatures:
        return super().train(False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Map waveforms (B, S) to frames (B, T, D)."""
        frames: Tensor = self.teacher(waveforms, lengths).frames[:, :, self.layer]
        return frames


class PmsPretraining(Method):
    """Two layers predict the units of masked frames, each from its own codebook.

    For h_t of layer l at masked frames t of a batch, a projection W_l, embeddings e_c of the layer's units, the unit
    z_t nearest to the frozen features of frame t, and tau = 0.1:

        loss_l = mean_t -log softmax_c(cos(W_l h_t, e_c) / tau)[z_t],    loss = loss_coarse + loss_fine

    Depending on the size, the same loss on frames that are not masked ("visible") is added, as in HuBERT.
    targets: "both", or "coarse" or "fine" for one of the two terms only. features: the features that are clustered.
    The accuracy on masked frames and the share of masked frames are reported as well.
    """

    def __init__(self, size: PmsSize, bands: Bands, targets: str, features: Cepstra | TeacherFeatures) -> None:
        super().__init__()
        self.recipe, self.size = size.recipe, size
        self.names = BOTH if targets == "both" else (targets,)
        self.encoder = build_pms(size, bands)
        if (features.hop, features.window) != (self.encoder.hop, self.encoder.window):
            pace = f"every {features.hop} samples of {features.window}"
            raise UpstreamError(f"the teacher of pms gives a frame {pace}; take one of the architecture to be trained")
        add_weight_norm(self.encoder.model.encoder.pos_conv_embed.conv)
        self.features = features
        self.layers = dict(zip(BOTH, size.layers, strict=True))
        units = {name: number for name, number in zip(BOTH, size.units, strict=True) if name in self.names}
        self.codebooks = nn.ModuleDict({name: Codebook(number, features.dim) for name, number in units.items()})
        self.projections = nn.ModuleDict({name: nn.Linear(self.encoder.dim, size.dim) for name in units})
        self.units = nn.ParameterDict({name: torch.randn(number, size.dim) for name, number in units.items()})

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        """Compute the units from the first batches."""
        parts = [torch.zeros(0, self.features.dim)]
        with torch.no_grad(), one_thread():
            while sum(map(len, parts)) < self.size.frames and (batch := next(batches, None)) is not None:
                known = self.features(batch.waveforms, batch.lengths)
                parts.append(known[valid(self.encoder.frame_lengths(batch.lengths), known.shape[1])].cpu())
        for codebook in self.codebooks.values():
            codebook.find(torch.cat(parts), self.size.trials)  # type: ignore[operator]

    def forward(self, batch: AudioBatch, done: float) -> Step:
        with torch.no_grad(), torch.autocast(batch.waveforms.device.type, enabled=False):
            known = self.features(batch.waveforms, batch.lengths)
            there = valid(self.encoder.frame_lengths(batch.lengths), known.shape[1])
            mask = random_spans(there, SHARE, SPAN)
        states = self.encoded(batch, mask)
        terms: dict[str, Tensor] = {}
        for name in self.names:
            terms |= self.losses(name, states[self.layers[name]], known, mask, there & ~mask)
        weights = {"": 1.0, "_visible": self.size.visible}
        losses = [weights[part] * terms[name + part] for name in self.names for part in weights if name + part in terms]
        vectors = mean_where(states[(len(states) - 1) // 2], there)
        return Step({"loss": torch.stack(losses).sum(), **terms, "masked": mask.sum() / there.sum()}, vectors)

    def losses(self, name: str, states: Tensor, known: Tensor, mask: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """Return the mean losses of one codebook and its accuracy on masked frames, by name."""
        scores, units = self.scores(name, states[mask]), self.codebooks[name](known[mask])
        terms = {name: F.cross_entropy(scores, units)}
        if self.size.visible:
            total = F.cross_entropy(
                self.scores(name, states[visible]), self.codebooks[name](known[visible]), reduction="sum"
            )
            terms[f"{name}_visible"] = total / visible.sum().clamp(min=1)
        return terms | {f"{name}_accuracy": (scores.argmax(1) == units).float().mean()}

    def encoded(self, batch: AudioBatch, mask: Tensor) -> list[Tensor]:
        """Return the layers, (B, T, D) each, of clips whose masked frames (B, T) are hidden from the transformer."""
        encoder, lengths = self.encoder, batch.lengths
        convolved = encoder.convolve(encoder.prepare(batch.waveforms, lengths), lengths)
        convolved = self.size.gradient * convolved + (1.0 - self.size.gradient) * convolved.detach()
        frames = encoder.project(convolved)
        frames = torch.where(mask[:, :, None], encoder.model.masked_spec_embed.to(frames.dtype), frames)
        # The backward pass of torch's default kernel on CPUs takes four times as long in half precision.
        kernel = sdpa_kernel(SDPBackend.MATH) if frames.device.type == "cpu" else nullcontext()
        with kernel, layer_drop(encoder.model.encoder.layers, self.size.layerdrop if self.training else 0.0):
            return encoder.transform(frames, lengths)

    def scores(self, name: str, hidden: Tensor) -> Tensor:
        """Return cosines of hidden frames (M, D) and units, divided by the temperature, (M, units)."""
        projected = self.projections[name](hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.normalize(projected.float(), dim=1) @ F.normalize(self.units[name], dim=1).T / TEMPERATURE

    def exported(self) -> dict[str, Tensor]:
        """Return the weights with transformers' names, and the configuration as bytes of JSON."""
        config = self.encoder.model.config
        model = architecture_settings(config) | {name: getattr(config, name) for name in (*SHAPES, *BASE)}
        facts = {
            "model": model,
            "bands": self.encoder.bands,
            "normalize": self.size.normalize,
            "filters": self.size.filters,
        }
        written = torch.tensor(list(json.dumps(facts, sort_keys=True).encode()), dtype=torch.uint8)
        return {**self.encoder.model.state_dict(), CONFIG: written}


def random_spans(there: Tensor, share: float, length: int) -> Tensor:
    """Return a mask (B, T) of random spans of `length` frames among the valid frames (B, T); spans may overlap.

    As in fairseq (Baevski et al., 2020), a clip of n frames has n * share / length spans, randomly rounded up or down.
    They begin at different frames and end within the clip. There is at least one span, which covers all of a clip that
    is shorter than a span. (HuBERT has at least two, and unmasks random frames until all clips of a batch have equally
    many masked frames.)
    """
    counts = there.sum(1)
    places = (counts - length + 1).clamp(min=1)
    number = (counts * share / length + torch.rand(len(counts), device=counts.device)).long()
    number = number.minimum(counts // length).minimum(places).clamp(min=1)
    starts = random_mask(valid(places, there.shape[1]), number)
    reached = F.max_pool1d(F.pad(starts.float(), (length - 1, 0))[:, None], length, stride=1)[:, 0]
    return (reached > 0) & there


def add_weight_norm(convolution: nn.Module) -> None:
    """Apply weight normalisation to a convolution, as HuBERT does for its positional convolution."""
    with one_thread():
        nn.utils.parametrizations.weight_norm(convolution, name="weight", dim=2)


@contextmanager
def layer_drop(blocks: Iterable[nn.Module], chance: float) -> Iterator[None]:
    """Skip each block with a probability of `chance` within the context (layer drop, Fan et al., 2020)."""

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
    """Return PMS-SSL's objective for a size; a plain HuBERT for comparison is `pms?targets=fine&bands=none`.

    teacher: an earlier checkpoint, whose features are clustered. layer: its layer, by default the middle one.
    """
    chosen = size_of(size)
    reach = chosen.bands if bands is None else parse_bands(bands, len(chosen.bands), "pms")
    if targets not in ("both", *BOTH):
        raise UpstreamError(f"no targets '{printable(targets)}' of pms; write both, {' or '.join(BOTH)}")
    if teacher == "":
        raise UpstreamError("teacher of pms is empty; give teacher=FILE, or leave it out")
    if teacher is None:
        if layer is not None:
            raise UpstreamError("layer of pms is of a teacher's features, and there is no teacher; give teacher=FILE")
        return PmsPretraining(chosen, reach, targets, Cepstra(chosen.centered))
    earlier = load_pms(teacher, False)
    if earlier.sample_rate != Method.sample_rate:
        raise UpstreamError(
            f"the teacher of pms hears {earlier.sample_rate} samples a second; give one of {Method.sample_rate}"
        )
    layer = (earlier.layers - 1) // 2 if layer is None else layer
    if type(layer) is not int or not 0 <= layer < earlier.layers:
        raise UpstreamError(f"layer of pms is {short_repr(layer)}; that teacher has layers 0 to {earlier.layers - 1}")
    trained = PmsPretraining(chosen, reach, targets, TeacherFeatures(earlier, layer))
    trained.origin = earlier.origin
    return trained
