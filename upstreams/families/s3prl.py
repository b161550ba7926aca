"""Upstreams of s3prl's hub (Yang et al., 2021, "SUPERB"), built by s3prl's own code from a checkpoint.

s3prl loads leniently here and there, and says nothing of what it leaves out; here all weights arrive, or it is told.
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

from upstreams.arguments import arguments_of
from upstreams.base import Upstream, UpstreamError
from upstreams.families import huggingface, s3prl_bridge
from upstreams.families.s3prl_encoder import S3prl, hidden_states, noise
from upstreams.families.s3prl_entries import HubEntry
from upstreams.families.waveform_encoders import fold_weight_norm
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import listed, misfits, printable, shown
from upstreams.safety.weight_coverage import Arrivals, recorded

warnings.filterwarnings("ignore", module=r"s3prl\.")  # its ways of calling torch are deprecated

HUGGING_FACE = {"hf_hubert": "hubert", "hf_wav2vec2": "wav2vec2"}  # model_type by family
FOLDERS = {"roberta": "vq-wav2vec_kmeans.pt and vq_wav2vec_kmeans_roberta.pt"}  # files of one reference by family
NO_OPTIONS = ("ckpt", "refresh", "legacy", "fairseq", "hooks", "hook_postprocess")
UNUSED = {  # of a family's checkpoints: heads of pre-training, or what is converted; all but the parts named here
    "byol_a": r"^(?!.*\bfc\.|.*\bfeatures\.)",
    "cpc": r"^(?!gEncoder\.|gAR\.)",
    "decoar": r"^(?!post_extract_proj\.|forward_lstm\.|backward_lstm\.)",
    "decoar2": r"^(?!post_extract_proj\.|encoder\.)",
    "decoar_layers": r"^(?!post_extract_proj\.|forward_lstm\.|backward_lstm\.)",
    "passt": r"^(?!blocks\.|norm\.)",  # its patches and positions are fitted to the window
    "lighthubert": r"^(?!feature_extractor\.|post_extract_proj\.|encoder\.|layer_norm\.)",
}
CONFIGURED = {  # where a family's checkpoints say whether their input is to be normalised
    **dict.fromkeys(("hubert", "wav2vec2", "data2vec", "multires_hubert"), "task_cfg"),
    **dict.fromkeys(("wavlm", "unispeech_sat"), "cfg"),
}
DERIVED = {  # of a family's models: what is computed from weights that did arrive
    "ast": r"\.pos_embed$|\.patch_embed\.proj\.",
    "ssast": r"\.pos_embed$|\.patch_embed\.proj\.",
}
HINTS = {"ast": "; s3prl puts a random head on its class token: write ?feature_selection=hidden_states"}


def load(rest: str, random: bool = False) -> Upstream:
    """The upstream that NAME, NAME@CHECKPOINT or NAME@CHECKPOINT?option=value names; its weights re-drawn if `random`.

    Raises UpstreamError where s3prl has no such entry, it cannot run here, or weights do not all arrive in it.
    """
    path, _, query = rest.partition("?")
    name, at, given = path.partition("@")
    entry = known(name)
    checkpoint = found(entry, given) if at else None
    if entry.needs_checkpoint and checkpoint is None:
        raise UpstreamError(f"'s3prl:{name}' comes without weights; write s3prl:{name}@CHECKPOINT")
    options = arguments_of(query, signed(name), f"s3prl:{path}")
    chosen = files_among(options)
    options |= {key: str(path) for key, path in chosen.items()}
    with s3prl_bridge.told(f"'s3prl:{path}' does not run"):
        expert, digests = built(entry, checkpoint, options, list(chosen.values()))
        expert = settled(redrawn(expert, name) if random else expert)
        refuse_not_finite(expert, f"s3prl:{path}")
        settings = {**options, **{key: path.name for key, path in chosen.items()}}
        upstream = S3prl(expert, {"name": name, "options": settings, "files": sorted(digests.values())})
    upstream.origin = digests
    return upstream


def known(name: str) -> HubEntry:
    """An entry of s3prl's hub that can run here; raises UpstreamError for any other name."""
    entries = s3prl_bridge.entries()
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


def found(entry: HubEntry, given: str) -> Path:
    """The file or folder of a checkpoint; raises UpstreamError where there is none, or the entry wants none."""
    path, told = checkpoints.expanded(given).absolute(), printable(given)
    if not entry.needs_checkpoint and not entry.url:
        raise UpstreamError(f"'s3prl:{entry.name}' has no weights to load; drop '@{told}'")
    if entry.family in HUGGING_FACE and not path.is_dir():
        other = "" if path.exists() else f", or write hf:{told}"
        raise UpstreamError(f"no folder '{told}'; give the folder written by save_pretrained{other}")
    if entry.family in FOLDERS and not path.is_dir():
        raise UpstreamError(f"no folder '{told}'; give the folder that holds {FOLDERS[entry.family]}")
    if not given or not (path.is_file() or (path.is_dir() and (entry.url or entry.family in HUGGING_FACE))):
        raise UpstreamError(f"no file '{told}'; a reference is s3prl:{entry.name}@CHECKPOINT")
    return path


def files_among(options: dict[str, Any]) -> dict[str, Path]:
    """Options that name a file; raises UpstreamError for those that name a device, which may have no end."""
    paths = {key: checkpoints.expanded(value) for key, value in options.items() if isinstance(value, str)}
    for key, path in paths.items():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UpstreamError(f"no file '{printable(str(path))}', which option '{key}' names; give a regular file")
    return {key: path for key, path in paths.items() if path.is_file()}


def signed(name: str) -> Callable[..., Any]:
    """A function whose parameters are an entry's options: those of its builder, and of the class behind that."""
    builder = getattr(s3prl_bridge.hub(), name)
    expert = builder.__globals__.get("_UpstreamExpert", builder)
    both = [*inspect.signature(builder).parameters.values(), *inspect.signature(expert.__init__).parameters.values()]
    options = {each.name: each for each in both if each.default is not each.empty and each.name not in NO_OPTIONS}

    def accept() -> None: ...

    named = [each.replace(kind=each.KEYWORD_ONLY) for each in options.values()]
    accept.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return accept


def built(
    entry: HubEntry, checkpoint: Path | None, options: dict[str, Any], more: list[Path]
) -> tuple[nn.Module, dict[str, str]]:
    """What s3prl builds, in eval mode, and the digests of the files that it read; more: those that options name.

    Raises UpstreamError where weights do not all arrive.
    """
    twin = hugging_face(entry, checkpoint) if checkpoint and entry.family in HUGGING_FACE else None
    first = [str(checkpoint)] if entry.needs_checkpoint else []
    contents: list[Any] = []
    with recorded() as arrivals:
        try:
            with s3prl_bridge.opened(checkpoint) as opened, redirect_stderr(io.StringIO()), standing_for_itself(twin):
                contents, files = opened.loaded, opened.files
                expert = getattr(s3prl_bridge.hub(), entry.name)(*first, **options).eval().float()
        except UpstreamError as error:
            refuse_misfits(entry, contents, arrivals, None)  # names them, where that is what went wrong
            raise UpstreamError(f"{error}{another(entry, contents, error.__cause__)}") from error
    if twin is not None:
        return expert, dict(twin.origin)
    refuse_misfits(entry, contents, arrivals, expert)
    for content in contents:
        refuse_unsaid(entry, content)
    more += [checkpoint] if checkpoint and checkpoint.is_file() else []
    return expert, checkpoints.digests([*files.values(), *more])


def hugging_face(entry: HubEntry, folder: Path) -> Upstream:
    """A folder's model; raises UpstreamError for what s3prl overlooks: other models, weights left random."""
    twin = huggingface.load(str(folder))
    kind = getattr(getattr(getattr(twin, "model", None), "config", None), "model_type", None)
    if kind != HUGGING_FACE[entry.family]:
        raise UpstreamError(f"'{folder}' is no {HUGGING_FACE[entry.family]} model, but {kind}; write hf:{folder}")
    return twin


@contextmanager
def standing_for_itself(twin: Upstream | None) -> Iterator[None]:
    """Within it, `from_pretrained` of a model's class gives that model.

    Of itself it would go by the folder's config.json, which may name code on the hub to compute attention with.
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


def another(entry: HubEntry, contents: list[Any], cause: BaseException | None) -> str:
    """What to add to an error where s3prl sought in vain for a part of a checkpoint."""
    if not isinstance(cause, KeyError) or not contents or not isinstance(contents[0], dict):
        return ""
    return f"; the file, which holds {listed(map(str, contents[0]))}, may be of another family than {entry.family}"


def refuse_unsaid(entry: HubEntry, content: Any) -> None:
    """Raises UpstreamError where a checkpoint says nothing of normalising its input, or is of another rate.

    Released base models of WavLM say nothing, and mean False; those with layer norms throughout mean True, and say it.
    """
    place = CONFIGURED.get(entry.family, "task_cfg")
    settings = content.get(place) if isinstance(content, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    base = place == "cfg" and settings.get("extractor_mode") != "layer_norm"
    if entry.family in CONFIGURED and not isinstance(settings.get("normalize", False if base else None), bool):
        told = f"the checkpoint of 's3prl:{entry.name}' does not say whether its input is normalised"
        raise UpstreamError(f"{told}; set 'normalize' to True or False in its {place}")
    if (rate := settings.get("sample_rate", 16_000)) != 16_000:
        told = f"the checkpoint of 's3prl:{entry.name}' has the sample_rate {shown(rate)}"
        raise UpstreamError(f"{told}, where s3prl's models hear 16000 Hz; give one of 16000 Hz")


def refuse_misfits(entry: HubEntry, contents: list[Any], arrivals: Arrivals, expert: nn.Module | None) -> None:
    unused, derived = (patterns.get(entry.family, "^$") for patterns in (UNUSED, DERIVED))
    missing = [name for name in arrivals.missing(expert) if not re.search(derived, name)]
    surplus = [name for content in contents for name in arrivals.unused(content) if not re.search(unused, name)]
    if expert is not None and missing:
        missing = relevant(expert, missing)
    told = misfits(missing, surplus, arrivals.misshapen, arrivals.unlike)
    if told:
        hint = HINTS.get(entry.family, "")
        raise UpstreamError(f"weights of the checkpoint do not fit 's3prl:{entry.name}', {told}{hint}")


def relevant(expert: nn.Module, names: list[str]) -> list[str]:
    """Those of the expert's parameters that a hidden state depends on; all names where that cannot be told."""
    floats = [(name, tensor) for name, tensor in expert.named_parameters() if tensor.is_floating_point()]
    parameters = {name: tensor.requires_grad_() for name, tensor in floats if name in names}
    with torch.enable_grad():
        total = sum(state.sum() for state in hidden_states(expert, noise(1, 16_000)))
    if not (isinstance(total, Tensor) and total.requires_grad and parameters):
        return names
    grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    idle = {name for name, grad in zip(parameters, grads, strict=True) if grad is None}
    return [name for name in names if name not in idle]


def refuse_not_finite(expert: nn.Module, reference: str) -> None:
    broken = checkpoints.not_finite(expert.state_dict())
    if broken:
        raise UpstreamError(f"weights of '{reference}' are NaN or infinite: {listed(broken)}; download them again")


def settled(expert: nn.Module) -> nn.Module:
    """Without the checkpoint that some models keep beside their weights, memory of the last clip, and weight norms."""
    for module in expert.modules():
        vars(module).pop("all_states", None)
        if hasattr(module, "keepHidden"):
            module.keepHidden = False  # type: ignore[assignment]
    fold_weight_norm(expert)
    return expert


def redrawn(expert: nn.Module, name: str) -> nn.Module:
    """The model with weights drawn as s3prl's own `randomize` draws them."""
    if not any(True for _ in expert.parameters()):
        raise UpstreamError(f"no random twin of 's3prl:{name}', which has no weights; drop '@random'")
    from s3prl.nn.upstream import randomize_upstream

    with torch.no_grad():
        randomize_upstream(expert)
    return expert
