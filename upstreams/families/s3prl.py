"""Upstreams of s3prl's hub (Yang et al., 2021, "SUPERB"), built by s3prl's own code from a checkpoint.

s3prl loads some checkpoints leniently and does not report unused or missing weights. Here, a checkpoint is refused
unless all of its weights are loaded.
"""

from __future__ import annotations

import difflib
import inspect
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.arguments import parse_arguments
from upstreams.base import Upstream, UpstreamError
from upstreams.families import huggingface, s3prl_bridge
from upstreams.families.s3prl_encoder import S3prl, hidden_states, probe_noise
from upstreams.families.s3prl_entries import HubEntry, s3prl_entries
from upstreams.families.waveform_encoders import fold_weight_norm
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import describe_misfits, printable, short_list, short_repr
from upstreams.safety.weight_coverage import WeightCoverage, record_coverage

warnings.filterwarnings("ignore", module=r"s3prl\.")  # it uses deprecated functions of torch

HUGGING_FACE = {"hf_hubert": "hubert", "hf_wav2vec2": "wav2vec2"}  # model_type by family
FOLDERS = {"roberta": "vq-wav2vec_kmeans.pt and vq_wav2vec_kmeans_roberta.pt"}  # required files by family
NO_OPTIONS = ("ckpt", "refresh", "legacy", "fairseq", "hooks", "hook_postprocess")
UNUSED = {  # pattern of weights in a family's checkpoints that may stay unused: everything except the parts named here
    "byol_a": r"^(?!.*\bfc\.|.*\bfeatures\.)",
    "cpc": r"^(?!gEncoder\.|gAR\.)",
    "decoar": r"^(?!post_extract_proj\.|forward_lstm\.|backward_lstm\.)",
    "decoar2": r"^(?!post_extract_proj\.|encoder\.)",
    "decoar_layers": r"^(?!post_extract_proj\.|forward_lstm\.|backward_lstm\.)",
    "passt": r"^(?!blocks\.|norm\.)",  # its patch and position embeddings are resized to the window
    "lighthubert": r"^(?!feature_extractor\.|post_extract_proj\.|encoder\.|layer_norm\.)",
}
CONFIGURED = {  # the key of a family's checkpoints that says whether the input is normalised
    **dict.fromkeys(("hubert", "wav2vec2", "data2vec", "multires_hubert"), "task_cfg"),
    **dict.fromkeys(("wavlm", "unispeech_sat"), "cfg"),
}
DERIVED = {  # pattern of a family's parameters that are computed from other weights
    "ast": r"\.pos_embed$|\.patch_embed\.proj\.",
    "ssast": r"\.pos_embed$|\.patch_embed\.proj\.",
}
HINTS = {"ast": "; s3prl puts a random head on its class token: write ?feature_selection=hidden_states"}


def load(reference: str, random: bool = False) -> Upstream:
    """Load the upstream NAME, NAME@CHECKPOINT or NAME@CHECKPOINT?option=value; random: with weights drawn anew.

    Raises UpstreamError if s3prl has no such entry, if it cannot run here, or if not all weights can be loaded.
    """
    path, _, query = reference.partition("?")
    name, at, file = path.partition("@")
    entry = runnable_entry(name)
    checkpoint = require_checkpoint(entry, file) if at else None
    if entry.needs_checkpoint and checkpoint is None:
        raise UpstreamError(f"'s3prl:{name}' comes without weights; write s3prl:{name}@CHECKPOINT")
    options = parse_arguments(query, options_signature(name), f"s3prl:{path}")
    files = file_options(options)
    options |= {key: str(path) for key, path in files.items()}
    with s3prl_bridge.translated_errors(f"'s3prl:{path}' does not run"):
        expert, digests = build_expert(entry, checkpoint, options, list(files.values()))
        expert = cleaned_expert(randomized_expert(expert, name) if random else expert)
        refuse_not_finite(expert, f"s3prl:{path}")
        settings = {**options, **{key: path.name for key, path in files.items()}}
        upstream = S3prl(expert, {"name": name, "options": settings, "files": sorted(digests.values())})
    upstream.origin = digests
    return upstream


def runnable_entry(name: str) -> HubEntry:
    """Return the entry of s3prl's hub with a name; raises UpstreamError if there is none or if it cannot run here."""
    entries = s3prl_entries()
    if not entries:
        raise UpstreamError("s3prl is not installed; pip install s3prl==0.4.18")
    before, colon, file = name.partition(":")
    if colon and before in entries:
        raise UpstreamError(f"no upstream '{name}' in s3prl; the file follows '@': s3prl:{before}@{file}")
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UpstreamError(f"no upstream '{name}' in s3prl; {hint}see: bench list upstreams")
    if entries[name].reason:
        raise UpstreamError(f"'s3prl:{name}' cannot run here: {entries[name].reason}")
    return entries[name]


def require_checkpoint(entry: HubEntry, file: str) -> Path:
    """Return the file or folder of a checkpoint; raises UpstreamError if it is missing or if the entry takes none."""
    path, text = checkpoints.expanded_path(file).absolute(), printable(file)
    if not entry.needs_checkpoint and not entry.url:
        raise UpstreamError(f"'s3prl:{entry.name}' has no weights to load; drop '@{text}'")
    if entry.family in HUGGING_FACE and not path.is_dir():
        other = "" if path.exists() else f", or write hf:{text}"
        raise UpstreamError(f"no folder '{text}'; give the folder written by save_pretrained{other}")
    if entry.family in FOLDERS and not path.is_dir():
        raise UpstreamError(f"no folder '{text}'; give the folder that holds {FOLDERS[entry.family]}")
    if not file or not (path.is_file() or (path.is_dir() and (entry.url or entry.family in HUGGING_FACE))):
        raise UpstreamError(f"no file '{text}'; a reference is s3prl:{entry.name}@CHECKPOINT")
    return path


def file_options(options: dict[str, Any]) -> dict[str, Path]:
    """Return the options that name a file; raises UpstreamError for devices, which may never end."""
    paths = {key: checkpoints.expanded_path(value) for key, value in options.items() if isinstance(value, str)}
    for key, path in paths.items():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UpstreamError(f"no file '{printable(str(path))}', which option '{key}' names; give a regular file")
    return {key: path for key, path in paths.items() if path.is_file()}


def options_signature(name: str) -> Callable[..., Any]:
    """Return a function whose parameters are the options of an entry, from its builder and its expert class."""
    builder = getattr(s3prl_bridge.import_hub(), name)
    expert = builder.__globals__.get("_UpstreamExpert", builder)
    parameters = [
        *inspect.signature(builder).parameters.values(),
        *inspect.signature(expert.__init__).parameters.values(),
    ]
    options = {p.name: p for p in parameters if p.default is not p.empty and p.name not in NO_OPTIONS}

    def accept() -> None: ...

    keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in options.values()]
    accept.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return accept


def build_expert(
    entry: HubEntry, checkpoint: Path | None, options: dict[str, Any], option_files: list[Path]
) -> tuple[nn.Module, dict[str, str]]:
    """Return the expert that s3prl builds, in eval mode, and the digests of the files that it read.

    option_files: files that options name. Raises UpstreamError if not all weights are loaded.
    """
    twin = hugging_face_upstream(entry, checkpoint) if checkpoint and entry.family in HUGGING_FACE else None
    positional = [str(checkpoint)] if entry.needs_checkpoint else []
    contents: list[Any] = []
    with record_coverage() as coverage:
        try:
            with (
                s3prl_bridge.s3prl_build(checkpoint) as record,
                redirect_stderr(io.StringIO()),
                from_pretrained_returning(twin),
            ):
                contents, files = record.loaded, record.files
                expert = getattr(s3prl_bridge.import_hub(), entry.name)(*positional, **options).eval().float()
        except UpstreamError as error:
            refuse_misfits(entry, contents, coverage, None)  # names misfitting weights if they are the cause
            raise UpstreamError(f"{error}{other_family_hint(entry, contents, error.__cause__)}") from error
    if twin is not None:
        return expert, dict(twin.origin)
    refuse_misfits(entry, contents, coverage, expert)
    for content in contents:
        refuse_unclear_input(entry, content)
    option_files += [checkpoint] if checkpoint and checkpoint.is_file() else []
    return expert, checkpoints.digests([*files.values(), *option_files])


def hugging_face_upstream(entry: HubEntry, folder: Path) -> Upstream:
    """Return the model in a folder; raises UpstreamError for what s3prl ignores: other model types, missing weights."""
    twin = huggingface.load(str(folder))
    kind = getattr(getattr(getattr(twin, "model", None), "config", None), "model_type", None)
    if kind != HUGGING_FACE[entry.family]:
        raise UpstreamError(f"'{folder}' is no {HUGGING_FACE[entry.family]} model, but {kind}; write hf:{folder}")
    return twin


@contextmanager
def from_pretrained_returning(twin: Upstream | None) -> Iterator[None]:
    """Make `from_pretrained` of a model's class return that model within the context.

    The original function reads the folder's config.json, which may name code on the hub that computes attention.
    """
    if twin is None:
        yield
        return
    kind: Any = type(twin.model)
    kind.from_pretrained = lambda *_, **__: twin.model
    try:
        yield
    finally:
        del kind.from_pretrained


def other_family_hint(entry: HubEntry, contents: list[Any], cause: BaseException | None) -> str:
    """Return a hint for an error that was caused by a key missing from a checkpoint, otherwise ""."""
    if not isinstance(cause, KeyError) or not contents or not isinstance(contents[0], dict):
        return ""
    return f"; the file, which holds {short_list(map(str, contents[0]))}, may be of another family than {entry.family}"


def refuse_unclear_input(entry: HubEntry, content: Any) -> None:
    """Raise UpstreamError if a checkpoint does not say whether its input is normalised, or has another sampling rate.

    Released base models of WavLM do not say it and mean False; models with layer norms throughout say True.
    """
    place = CONFIGURED.get(entry.family, "task_cfg")
    settings = content.get(place) if isinstance(content, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    base = place == "cfg" and settings.get("extractor_mode") != "layer_norm"
    if entry.family in CONFIGURED and not isinstance(settings.get("normalize", False if base else None), bool):
        problem = f"the checkpoint of 's3prl:{entry.name}' does not say whether its input is normalised"
        raise UpstreamError(f"{problem}; set 'normalize' to True or False in its {place}")
    if (rate := settings.get("sample_rate", 16_000)) != 16_000:
        problem = f"the checkpoint of 's3prl:{entry.name}' has the sample_rate {short_repr(rate)}"
        raise UpstreamError(f"{problem}, where s3prl's models take 16000 Hz; give one of 16000 Hz")


def refuse_misfits(entry: HubEntry, contents: list[Any], coverage: WeightCoverage, expert: nn.Module | None) -> None:
    """Raise UpstreamError for weights that are missing, unused or of another shape, except those allowed by family."""
    unused, derived = (patterns.get(entry.family, "^$") for patterns in (UNUSED, DERIVED))
    missing = [name for name in coverage.missing(expert) if not re.search(derived, name)]
    surplus = [name for content in contents for name in coverage.unused(content) if not re.search(unused, name)]
    if expert is not None and missing:
        missing = used_parameters(expert, missing)
    problem = describe_misfits(missing, surplus, coverage.misshapen, coverage.unlike)
    if problem:
        hint = HINTS.get(entry.family, "")
        raise UpstreamError(f"weights of the checkpoint do not fit 's3prl:{entry.name}', {problem}{hint}")


def used_parameters(expert: nn.Module, names: list[str]) -> list[str]:
    """Return the named parameters that a hidden state depends on; all names if gradients cannot be computed."""
    floats = [(name, tensor) for name, tensor in expert.named_parameters() if tensor.is_floating_point()]
    parameters = {name: tensor.requires_grad_() for name, tensor in floats if name in names}
    with torch.enable_grad():
        total = sum(state.sum() for state in hidden_states(expert, probe_noise(1, 16_000)))
    if not (isinstance(total, Tensor) and total.requires_grad and parameters):
        return names
    grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    idle = {name for name, grad in zip(parameters, grads, strict=True) if grad is None}
    return [name for name in names if name not in idle]


def refuse_not_finite(expert: nn.Module, reference: str) -> None:
    """Raise UpstreamError if weights or buffers are NaN or infinite."""
    broken = checkpoints.not_finite(expert.state_dict())
    if broken:
        raise UpstreamError(f"weights of '{reference}' are NaN or infinite: {short_list(broken)}; download them again")


def cleaned_expert(expert: nn.Module) -> nn.Module:
    """Remove, in place, checkpoints that some models keep, states kept from the last clip, and weight norms."""
    for module in expert.modules():
        vars(module).pop("all_states", None)
        if hasattr(module, "keepHidden"):
            module.keepHidden = False  # type: ignore[assignment]
    fold_weight_norm(expert)
    return expert


def randomized_expert(expert: nn.Module, name: str) -> nn.Module:
    """Draw the model's weights anew, in place, as s3prl's `randomize` does; raises UpstreamError if it has none."""
    if not any(True for _ in expert.parameters()):
        raise UpstreamError(f"no random twin of 's3prl:{name}', which has no weights; drop '@random'")
    from s3prl.nn.upstream import randomize_upstream

    with torch.no_grad():
        randomize_upstream(expert)
    return expert
