"""The contract of an upstream, tried on it: each fault is found before a long run, and explained."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upstreams.base import Features, Upstream, fingerprint
from upstreams.trial import batch, difference, digest, encode, sounds

TOLERANCE = 1e-4  # relative to a layer's largest value
NOISE = 1e-6  # what a second identical call may differ by, as sums in parallel are not ordered


class Finding(NamedTuple):
    """What one check found; detail is one sentence: a measurement, or the fault and what to do about it."""

    name: str
    ok: bool
    detail: str


class Fault(Exception):  # noqa: N818
    """An upstream breaks its contract; the message is the detail of the finding."""


def check(upstream: Upstream) -> list[Finding]:
    """Try the whole contract, in under 20 forward passes of a few seconds of sound.

    Never raises: what the upstream raises becomes a finding. Where it cannot encode anything, the rest is left out.
    """
    findings: list[Finding] = []
    for name, attempt in CHECKS.items():
        findings.append(finding(name, attempt, upstream))
        if name == "output" and not findings[-1].ok:
            break
    return findings


def finding(name: str, attempt: Callable[[Upstream], str], upstream: Upstream) -> Finding:
    try:
        with torch.inference_mode():
            return Finding(name, True, attempt(upstream))
    except Fault as fault:
        return Finding(name, False, str(fault))
    except Exception as error:
        told = " ".join(str(error).split())
        return Finding(name, False, f"it raises {type(error).__name__}: {told or 'no message'}")


def require(condition: bool, fault: str) -> None:
    if not condition:
        raise Fault(fault)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def described(upstream: Upstream) -> str:
    rate = upstream.sample_rate
    require(4_000 <= rate <= 192_000, f"sample_rate is {rate}; give it in Hz, such as 16000")
    for name in ("hop", "window", "layers", "dim"):
        value = getattr(upstream, name, None)
        require(isinstance(value, int) and value >= 1, f"{name} is {value!r}; set it to a whole number of at least 1")
    require(upstream.hop <= rate, f"hop is {upstream.hop} samples, more than a second; it counts samples, not frames")
    every = 1000 * upstream.hop / rate
    return f"{rate} Hz, a frame every {every:g} ms, {plural(upstream.layers, 'layer')} of {upstream.dim}"


def output(upstream: Upstream) -> str:
    result = upstream(*batch(sounds(upstream, 1.0, 0.5)))
    require(isinstance(result, Features), f"forward gives a {type(result).__name__}; return Features(frames, lengths)")
    frames, lengths = result
    require(isinstance(frames, Tensor) and frames.is_floating_point(), "frames are not a floating-point tensor")
    shape = tuple(frames.shape)
    good = frames.ndim == 4 and shape[0] == 2 and shape[2:] == (upstream.layers, upstream.dim)
    require(good, f"frames are {shape}; they must be (2, T, {upstream.layers}, {upstream.dim}): time, then layers")
    require(
        isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and lengths.shape == (2,),
        "lengths are not an int64 tensor (B,); return the number of valid frames of each clip",
    )
    return f"{frames.dtype} frames (B, T, {upstream.layers}, {upstream.dim})"


def frame_count(upstream: Upstream) -> str:
    waveforms, lengths = batch(sounds(upstream, 1.0, 0.5, 0.7431, 2.03))
    frames, counts = upstream(waveforms, lengths)
    promised = upstream.frame_lengths(lengths).tolist()
    require(
        promised == counts.tolist(),
        f"forward gives {counts.tolist()} frames where frame_lengths promises {promised}; correct hop, window or "
        "frame_lengths",
    )
    require(min(promised) >= 1, f"frame_lengths gives {min(promised)} frames; every clip has at least one")
    require(frames.shape[1] >= max(promised), f"frames hold {frames.shape[1]} steps, but lengths say {max(promised)}")
    return f"{counts[0].item()} frames for one second"


def zero_beyond(upstream: Upstream) -> str:
    frames, lengths = upstream(*batch(sounds(upstream, 1.0, 0.3)))
    rest = frames[1, int(lengths[1]) :]
    require(not bool(rest.any()), "frames beyond a clip's length are not zero; mask them before returning")
    return "frames beyond a clip's length are zero"


def padding(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.6137, 1.7)
    alone = encode(upstream, clips[:1])[0]
    error = max(
        difference(alone, encode(upstream, clips[:1], extra=len(clips[0]))[0]),
        difference(alone, encode(upstream, clips)[0]),
    )
    require(
        error <= TOLERANCE,
        f"padding changes a clip's features by {error:.1e} of the layer's largest value; mask attention and "
        "convolutions, and take norms over time from the valid part only",
    )
    return f"padding changes features by {error:.1e}"


def garbage(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.6137, 1.1)
    clean = encode(upstream, clips)[0]
    worst = max(difference(clean, encode(upstream, clips, 999, filling)[0]) for filling in (7.0, float("nan")))
    frames, counts = upstream(*batch(clips, 999, float("nan")))
    require(
        not bool(frames[0, int(counts[0]) :].any()), "NaN beyond a clip's length reaches its frames; use masked_fill"
    )
    require(
        worst <= TOLERANCE,
        f"what lies beyond a clip's length changes its features by {worst:.1e}; set it to zero with masked_fill or "
        "where first (a product keeps NaN)",
    )
    return "what lies beyond a clip's length is ignored"


def batch_size(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.8, 0.8, 0.8, 0.8)
    together = encode(upstream, clips)
    error = max(difference(encode(upstream, [clip])[0], row) for clip, row in zip(clips, together, strict=True))
    require(
        error <= TOLERANCE,
        f"a clip's features differ by {error:.1e} between batches of 1 and of 4; look for norms over the batch",
    )
    return f"batch size changes features by {error:.1e}"


def short_clip(upstream: Upstream) -> str:
    short = sounds(upstream, upstream.SHORTEST)
    alone = encode(upstream, short)[0]
    require(len(alone) >= 1, "a clip of 25 ms has no frame; extend clips shorter than the window with zeros")
    require(bool(alone.isfinite().all()), "a clip of 25 ms gives NaN or infinity; extend it with zeros")
    error = difference(alone, encode(upstream, short + sounds(upstream, 1.0))[0])
    require(
        error <= TOLERANCE, f"a clip of 25 ms differs by {error:.1e} in a batch; extend it with zeros in both cases"
    )
    return f"a clip of 25 ms has {plural(len(alone), 'frame')}"


def silence(upstream: Upstream) -> str:
    frames = encode(upstream, [torch.zeros_like(clip) for clip in sounds(upstream, 1.0)])[0]
    require(bool(frames.isfinite().all()), "silence gives NaN or infinity; look for a logarithm or division of zero")
    return "silence gives finite features"


def finite(upstream: Upstream) -> str:
    frames = encode(upstream, sounds(upstream, 1.0))[0]
    bad = int((~frames.isfinite()).sum())
    require(not bad, f"{bad} of {frames.numel()} values are NaN or infinite; look at the weights and the precision")
    return f"features are finite, with a standard deviation of {float(frames.std()):.3g}"


def determinism(upstream: Upstream) -> str:
    clips = sounds(upstream, 1.0)
    error = difference(encode(upstream, clips)[0], encode(upstream, clips)[0])
    require(error <= NOISE, f"two identical calls differ by {error:.1e}; switch off dropout, dithering and masking")
    return "identical calls give identical features"


def no_state(upstream: Upstream) -> str:
    one, other = sounds(upstream, 1.0, 1.4)
    weights, first = digest(upstream), encode(upstream, [one])[0]
    encode(upstream, [other * 5.0, one])
    require(
        digest(upstream) == weights, "a call changes the weights or buffers; keep running statistics out of forward"
    )
    error = difference(first, encode(upstream, [one])[0])
    require(
        error <= NOISE, f"features differ by {error:.1e} after another clip; keep nothing from one call to the next"
    )
    return "nothing is kept from one call to the next"


def untouched(upstream: Upstream) -> str:
    waveforms, lengths = batch(sounds(upstream, 0.5, 0.9))
    before = waveforms.clone(), lengths.clone()
    upstream(waveforms, lengths)
    same = torch.equal(before[0], waveforms) and torch.equal(before[1], lengths)
    require(same, "forward changes its input in place; work on a copy")
    return "the input is left as it was"


def summary(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.6, 1.7)
    alone = upstream.summarize(*batch(clips[:1]))
    shape = tuple(alone.shape)
    require(alone.ndim == 3 and shape[0] == 1, f"summarize gives {shape}; it must be (1, layers, channels)")
    require(bool(alone.isfinite().all()), "summarize gives NaN or infinity; divide by the number of valid frames")
    # Means may be zero but for rounding, as those of features normalised per clip are.
    least = 1e-3 * float(encode(upstream, clips[:1])[0].abs().max())
    error = difference(alone[0], upstream.summarize(*batch(clips))[0], least)
    require(error <= TOLERANCE, f"summarize depends on padding, by {error:.1e}; take means over the valid frames only")
    return f"one vector of {shape[2]} for each of {shape[1]} layers"


def weights(upstream: Upstream) -> str:
    named = list(upstream.named_parameters())
    strange = [name for name, tensor in named if tensor.dtype != torch.float32]
    require(not strange, f"parameter {first(strange)} is not float32; call .float() on the model")
    broken = [name for name, tensor in named if not tensor.isfinite().all()]
    require(not broken, f"parameter {first(broken)} has NaN or infinity in it; the checkpoint is damaged")
    return f"{sum(tensor.numel() for _, tensor in named):,} parameters"


def first(names: list[str]) -> str:
    return f"'{names[0]}'" if names else ""


def evaluation(upstream: Upstream) -> str:
    training = [name for name, module in upstream.named_modules() if module.training]
    require(not training, "it is in training mode; call .eval() before using it")
    return "in evaluation mode"


def identity(upstream: Upstream) -> str:
    before = fingerprint(upstream)
    upstream(*batch(sounds(upstream, 0.5)))
    require(fingerprint(upstream) == before, "its fingerprint changes; keep settings() and buffers constant")
    return f"fingerprint {before[:12]}"


def speed(upstream: Upstream) -> str:
    clips = sounds(upstream, 5.0)
    start = time.perf_counter()
    encode(upstream, clips)
    factor = 5.0 / (time.perf_counter() - start)
    return f"{factor:,.0f} times as fast as real time" if factor >= 10 else f"{factor:.1f} times as fast as real time"


CHECKS: dict[str, Callable[[Upstream], Any]] = {
    "description": described,
    "output": output,
    "evaluation mode": evaluation,
    "frame count": frame_count,
    "zeros beyond the end": zero_beyond,
    "finite": finite,
    "padding": padding,
    "garbage in the padding": garbage,
    "batch size": batch_size,
    "very short clip": short_clip,
    "silence": silence,
    "determinism": determinism,
    "no state": no_state,
    "input untouched": untouched,
    "summary": summary,
    "weights": weights,
    "fingerprint": identity,
    "speed": speed,
}
