"""The requirements on frames and lengths: each function checks one and returns a measurement, or raises Fault."""

from __future__ import annotations

import torch
from torch import Tensor

from upstreams.base import Features, Upstream
from upstreams.contract.probe_signals import (
    batch,
    burst,
    device,
    edges,
    encode,
    plural,
    relative_difference,
    require,
    sounds,
    tolerance,
    weights_digest,
)

NOISE = 1e-6  # largest allowed difference of identical calls, since parallel sums have no fixed order
LONG = 12.0  # seconds; longer than positions learned for 512 frames of 20 ms or 1024 of 10 ms


def output(upstream: Upstream) -> str:
    result = upstream(*batch(sounds(upstream, 1.0, 0.5)))
    require(isinstance(result, Features), f"forward gives a {type(result).__name__}; return Features(frames, lengths)")
    frames, lengths = result
    require(isinstance(frames, Tensor) and frames.is_floating_point(), "frames are not a floating-point tensor")
    require(frames.dtype == torch.float32, f"frames are {frames.dtype}; return them as float32, with .float()")
    shape = tuple(frames.shape)
    good = frames.ndim == 4 and shape[0] == 2 and shape[2:] == (upstream.layers, upstream.dim)
    require(good, f"frames are {shape}; they must be (2, T, {upstream.layers}, {upstream.dim}): time, then layers")
    require(
        isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and lengths.shape == (2,),
        "lengths are not an int64 tensor (B,); return the number of valid frames of each clip",
    )
    away = [tensor.device for tensor in result if tensor.device != device(upstream)]
    require(not away, f"frames or lengths are on {away and away[0]}, not where the waveforms are; leave them there")
    return f"float32 frames (B, T, {upstream.layers}, {upstream.dim})"


def frame_count(upstream: Upstream) -> str:
    clips = sounds(upstream, 1.0, 0.5, 0.7431, 2.03)
    second = frame_counts(upstream, clips)[0]
    frame_counts(upstream, edges(upstream))
    return f"{second} for one second; as hop and window say for 16 lengths"


def frame_counts(upstream: Upstream, clips: list[Tensor]) -> list[int]:
    """Return the number of frames of each clip, after checking it against `frame_lengths` and the frames."""
    waveforms, lengths = batch(clips)
    frames, counts = upstream(waveforms, lengths)
    promised, returned = upstream.frame_lengths(lengths).tolist(), counts.tolist()
    wrong = next((n for n, count in enumerate(promised) if returned[n] != count), None)
    require(
        wrong is None,
        f"forward gives {returned[wrong or 0]} frames for {len(clips[wrong or 0])} samples where frame_lengths "
        f"promises {promised[wrong or 0]}; correct hop, window or frame_lengths",
    )
    require(min(promised) >= 1, f"frame_lengths gives {min(promised)} frames; every clip has at least one")
    require(
        frames.shape[1] >= max(promised),
        f"frames hold {frames.shape[1]} steps, but lengths say {max(promised)}; correct hop, window or frame_lengths",
    )
    for clip, row, count in zip(clips, frames, returned, strict=True):
        lacks = bool(row[:count].any()) and not bool(row[count - 1].any())
        require(not lacks, f"the last of {count} frames of {len(clip)} samples is zero; give one frame less")
    return returned


def long_clip(upstream: Upstream) -> str:
    (count,) = frame_counts(upstream, sounds(upstream, LONG))
    return f"{plural(count, 'frame')} for {LONG:g} seconds"


def zero_beyond(upstream: Upstream) -> str:
    frames, lengths = upstream(*batch(sounds(upstream, 1.0, 0.3)))
    rest = frames[1, int(lengths[1]) :]
    require(not bool(rest.any()), "frames beyond a clip's length are not zero; mask them before returning")
    return "frames beyond a clip's length are zero"


def padding(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.6137, 1.7)
    alone = encode(upstream, clips[:1])[0]
    error = max(
        relative_difference(alone, encode(upstream, clips[:1], extra=len(clips[0]))[0]),
        relative_difference(alone, encode(upstream, clips)[0]),
    )
    require(
        error <= tolerance(upstream),
        f"padding changes a clip's features by {error:.1e} of the layer's largest value; mask attention and "
        "convolutions, and take norms over time from the valid part only",
    )
    short = edges(upstream)
    errors = [
        relative_difference(encode(upstream, [clip])[0], row)
        for clip, row in zip(short, encode(upstream, short), strict=True)
    ]
    worst = max(range(len(errors)), key=errors.__getitem__)
    require(
        errors[worst] <= tolerance(upstream),
        f"padding changes a clip of {len(short[worst])} samples by {errors[worst]:.1e}, though not every other length; "
        "look at how many frames are masked",
    )
    return f"padding changes features by {max(error, *errors):.1e}"


def garbage(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.6137, 1.1)
    clean = encode(upstream, clips)[0]
    worst = max(relative_difference(clean, encode(upstream, clips, 999, filling)[0]) for filling in (7.0, float("nan")))
    frames, counts = upstream(*batch(clips, 999, float("nan")))
    require(
        not bool(frames[0, int(counts[0]) :].any()), "NaN beyond a clip's length reaches its frames; use masked_fill"
    )
    require(
        worst <= tolerance(upstream),
        f"what lies beyond a clip's length changes its features by {worst:.1e}; set it to zero with masked_fill or "
        "where first (a product keeps NaN)",
    )
    return "what lies beyond a clip's length is ignored"


def batch_size(upstream: Upstream) -> str:
    clips = sounds(upstream, 0.8, 0.8, 0.8, 0.8)
    together = encode(upstream, clips)
    error = max(
        relative_difference(encode(upstream, [clip])[0], row) for clip, row in zip(clips, together, strict=True)
    )
    require(
        error <= tolerance(upstream),
        f"a clip's features differ by {error:.1e} between batches of 1 and of 4; look for norms over the batch",
    )
    return f"batch size changes features by {error:.1e}"


def place(upstream: Upstream) -> str:
    """Check that a change of the sound changes frames at the same time in at least one layer.

    Deeper layers may spread it. The mean change is compared, since in models of discrete units a single distant unit
    may change most.
    """
    seconds, spans = 4.0, ((0.6, 0.8), (3.2, 3.4))
    plain, *changed = encode(upstream, burst(upstream, seconds, *spans))
    if len(plain) < 8:
        return f"not tried: {plural(len(plain), 'frame')} for four seconds are too few"
    changes = [(other - plain).norm(dim=2) for other in changed]  # (T, L)
    require(all(bool(change.any()) for change in changes), "features stay the same when the sound changes; pass it on")
    every, window = upstream.hop / upstream.sample_rate, upstream.window / upstream.sample_rate
    slack = 0.5 + 2 * every + window  # some models look at up to a second around each frame
    times = torch.arange(len(plain), device=plain.device) * every
    good = torch.ones(upstream.layers, dtype=torch.bool, device=plain.device)
    for (start, end), change in zip(spans, changes, strict=True):
        near = (start - slack <= times) & (times <= end + slack)
        good &= change[near].mean(0) > change[~near].mean(0).nan_to_num()  # with few frames, none is distant
    last = float(changes[1].argmax(0)[0]) * every
    require(
        bool(good.any()),
        f"a sound between {spans[1][0]} and {spans[1][1]} s changes layer 0 most at {last:.2f} s; frame t must begin "
        "about t * hop samples into the clip",
    )
    return f"a change of sound shows at its own time in {int(good.sum())} of {plural(upstream.layers, 'layer')}"


def layers(upstream: Upstream) -> str:
    frames = encode(upstream, sounds(upstream, 1.0))[0]  # (T, L, D)
    flat = (frames.amax(0) - frames.amin(0)).amax(1) <= 1e-6 * frames.abs().amax((0, 2))
    still = flat.nonzero()[:, 0].tolist() if len(frames) > 2 else []
    require(not still, f"layer {still and still[0]} does not change over time; give its frames, not one vector")
    twins = [n for n in range(1, frames.shape[1]) if torch.equal(frames[:, n], frames[:, n - 1])]
    require(
        not twins or len(twins) < frames.shape[1] - 1,
        f"all {frames.shape[1]} layers are equal; collect each block's output, and copy it if it is changed in place",
    )
    note = "" if len(twins) != 1 else f"; layers {twins[0] - 1} and {twins[0]} are equal"
    note = f"; {len(twins)} equal the one before" if len(twins) > 1 else note
    return f"{plural(frames.shape[1], 'layer')}, all of which change over time{note}"


def short_clip(upstream: Upstream) -> str:
    short = sounds(upstream, upstream.SHORTEST)
    alone = encode(upstream, short)[0]
    require(len(alone) >= 1, "a clip of 25 ms has no frame; extend clips shorter than the window with zeros")
    require(bool(alone.isfinite().all()), "a clip of 25 ms gives NaN or infinity; extend it with zeros")
    error = relative_difference(alone, encode(upstream, short + sounds(upstream, 1.0))[0])
    require(
        error <= tolerance(upstream),
        f"a clip of 25 ms differs by {error:.1e} in a batch; extend it with zeros in both cases",
    )
    return f"a clip of 25 ms has {plural(len(alone), 'frame')}"


def silence(upstream: Upstream) -> str:
    frames = encode(upstream, [torch.zeros_like(clip) for clip in sounds(upstream, 1.0)])[0]
    require(bool(frames.isfinite().all()), "silence gives NaN or infinity; look for a logarithm or division of zero")
    return "silence gives finite features"


def finite_features(upstream: Upstream) -> str:
    (clip,) = sounds(upstream, 1.0)
    frames, loud = encode(upstream, [clip, clip.sign()])
    bad = int((~frames.isfinite()).sum())
    require(not bad, f"{bad} of {frames.numel()} values are NaN or infinite; look at the weights and the precision")
    require(bool(loud.isfinite().all()), "sound at full scale gives NaN or infinity; look at the precision")
    return f"features are finite, with a standard deviation of {float(frames.std()):.3g}"


def determinism(upstream: Upstream) -> str:
    clips = sounds(upstream, 1.0)
    features: list[Tensor] = []
    states: list[Tensor] = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            features.append(encode(upstream, clips)[0])
            states.append(torch.get_rng_state())
    error = relative_difference(features[0], features[1])
    require(error <= NOISE, f"two identical calls differ by {error:.1e}; switch off dropout, dithering and masking")
    require(
        not torch.equal(states[0], states[1]),
        "forward sets torch's random generator, which whatever is trained beside it draws from; use one of your own",
    )
    return "identical calls give identical features"


def no_state(upstream: Upstream) -> str:
    one, other = sounds(upstream, 1.0, 1.4)
    weights, first = weights_digest(upstream), encode(upstream, [one])[0]
    copy = first.clone()
    for clips in ([one.flip(0)], [other * 5.0, one]):
        encode(upstream, clips)
    require(
        weights_digest(upstream) == weights,
        "a call changes the weights or buffers; keep running statistics out of forward",
    )
    require(torch.equal(first, copy), "a call overwrites the features that an earlier one gave; return a copy")
    error = relative_difference(first, encode(upstream, [one])[0])
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
    # Means may be zero up to rounding, as for features that are normalised per clip.
    least = 1e-3 * float(encode(upstream, clips[:1])[0].abs().max())
    error = relative_difference(alone[0], upstream.summarize(*batch(clips))[0], least)
    require(
        error <= tolerance(upstream),
        f"summarize depends on padding, by {error:.1e}; take means over the valid frames only",
    )
    return f"one vector of {shape[2]} for each of {shape[1]} layers"
