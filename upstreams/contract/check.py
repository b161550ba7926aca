"""Check an upstream against its contract, so that each fault is found and explained before a long run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from upstreams.base import Upstream, fingerprint
from upstreams.contract import requirements
from upstreams.contract.cost import macs_per_second, real_time_factor
from upstreams.contract.probe_signals import Fault, batch, plural, require, sounds


class Finding(NamedTuple):
    """The result of one check; detail: one sentence, which is a measurement, or the fault and its remedy."""

    name: str
    ok: bool
    detail: str


def check_contract(upstream: Upstream) -> list[Finding]:
    """Check the whole contract, on about 90 s of audio.

    Never raises: an exception of the upstream becomes a finding. If it cannot encode anything, the rest is skipped.
    """
    findings: list[Finding] = []
    for name, attempt in CHECKS.items():
        findings.append(finding(name, attempt, upstream))
        if name == "output" and not findings[-1].ok:
            break
    return findings


def finding(name: str, attempt: Callable[[Upstream], str], upstream: Upstream) -> Finding:
    """Run one check and return its finding."""
    try:
        with torch.inference_mode():
            return Finding(name, True, attempt(upstream))
    except Fault as fault:
        return Finding(name, False, str(fault))
    except Exception as error:
        message = " ".join(str(error).split())
        return Finding(name, False, f"it raises {type(error).__name__}: {message or 'no message'}")


def description(upstream: Upstream) -> str:
    rate = upstream.sample_rate
    require(4_000 <= rate <= 192_000, f"sample_rate is {rate}; give it in Hz, such as 16000")
    for name in ("hop", "window", "layers", "dim"):
        value = getattr(upstream, name, None)
        require(isinstance(value, int) and value >= 1, f"{name} is {value!r}; set it to a whole number of at least 1")
    require(upstream.hop <= rate, f"hop is {upstream.hop} samples, more than a second; it counts samples, not frames")
    every = 1000 * upstream.hop / rate
    return f"{rate} Hz, a frame every {every:g} ms, {plural(upstream.layers, 'layer')} of {upstream.dim}"


def evaluation(upstream: Upstream) -> str:
    training = [name for name, module in upstream.named_modules() if module.training]
    require(not training, "it is in training mode; call .eval() before using it")
    return "in evaluation mode"


def weights(upstream: Upstream) -> str:
    named = list(upstream.named_parameters())
    strange = [name for name, tensor in named if tensor.dtype != torch.float32]
    require(not strange, f"parameter {first_name(strange)} is not float32; call .float() on the model")
    broken = [name for name, tensor in named if not tensor.isfinite().all()]
    require(not broken, f"parameter {first_name(broken)} has NaN or infinity in it; the checkpoint is damaged")
    hidden = list(unregistered(upstream))
    require(
        not hidden,
        f"weights in {first_name(hidden)} are out of sight of parameters(), and so of its fingerprint; "
        "use nn.ModuleList, nn.ModuleDict or nn.ParameterList",
    )
    return f"{sum(tensor.numel() for _, tensor in named):,} parameters"


def first_name(names: list[str]) -> str:
    return f"'{names[0]}'" if names else ""


def unregistered(upstream: Upstream) -> Iterator[str]:
    """Yield the names of attributes that are plain containers and hold weights unknown to the module."""
    known = {id(part) for part in (*upstream.parameters(), *upstream.modules())}
    for path, module in upstream.named_modules():
        for name, value in vars(module).items():
            if any(id(part) not in known for part in contained_weights(value)):
                yield f"{path}.{name}".lstrip(".")


def contained_weights(value: Any) -> list[Any]:
    """Return the parameters, and the modules with parameters, in a plain container."""
    inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list, tuple, set)):
        return []
    modules = [item for item in inside if isinstance(item, nn.Module) and any(True for _ in item.parameters())]
    return modules + [item for item in inside if isinstance(item, nn.Parameter)]


def constant_fingerprint(upstream: Upstream) -> str:
    before = fingerprint(upstream)
    upstream(*batch(sounds(upstream, 0.5)))
    require(fingerprint(upstream) == before, "its fingerprint changes; keep settings() and buffers constant")
    origin = upstream.origin
    good = isinstance(origin, Mapping) and all(isinstance(text, str) for pair in origin.items() for text in pair)
    require(good, "origin is not a mapping of names to digests; set it to {file name: SHA-256}")
    return f"fingerprint {before[:12]}" + (f", from {plural(len(origin), 'file')}" if origin else "")


def macs(upstream: Upstream) -> str:
    millions = f"{macs_per_second(upstream) / 1e6:,.2f} million"
    return f"{millions} per second of audio without Fourier transforms, counted on a clip of 5 s"


def speed(upstream: Upstream) -> str:
    factor = real_time_factor(upstream)
    place = f"{plural(torch.get_num_threads(), 'thread')}" if requirements.device(upstream).type == "cpu" else "the GPU"
    return f"real-time factor {factor:.2g}: a second of audio takes {1000 * factor:.3g} ms with {place}"


CHECKS: dict[str, Callable[[Upstream], str]] = {
    "description": description,
    "output": requirements.output,
    "evaluation mode": evaluation,
    "frame count": requirements.frame_count,
    "zeros beyond the end": requirements.zero_beyond,
    "finite": requirements.finite_features,
    "layers": requirements.layers,
    "time": requirements.place,
    "padding": requirements.padding,
    "garbage in the padding": requirements.garbage,
    "batch size": requirements.batch_size,
    "very short clip": requirements.short_clip,
    "long clip": requirements.long_clip,
    "silence": requirements.silence,
    "determinism": requirements.determinism,
    "no state": requirements.no_state,
    "input untouched": requirements.untouched,
    "summary": requirements.summary,
    "weights": weights,
    "fingerprint": constant_fingerprint,
    "multiply–accumulates": macs,
    "speed": speed,
}
