"""Every fault is planted in an otherwise good upstream, and found by the check that is for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.upstreams.models import SMALL, build, save, waveform_extractor
from upstreams import create
from upstreams.base import Features, Upstream, valid
from upstreams.check import CHECKS, Finding, check


class Good(Upstream):
    """Mean and energy of frames of 20 ms, mixed by a few weights."""

    hop, window, layers, dim = 320, 320, 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 3)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        waveforms = self.clean(waveforms, lengths)
        waveforms = nn.functional.pad(waveforms, (0, max(320 - waveforms.shape[1], 0)))
        frames = waveforms[:, : waveforms.shape[1] // 320 * 320].unflatten(1, (-1, 320))
        first = self.mix(torch.stack([frames.mean(2), frames.square().mean(2).sqrt()], dim=2))
        stack = torch.stack([first, first.tanh()], dim=2)
        return Features(stack * valid(counts, stack.shape[1])[:, :, None, None], counts)

    def clean(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return waveforms.masked_fill(~valid(lengths, waveforms.shape[1]), 0.0)


class Bad(Good):
    """`Good` with one line changed, by the fault's name."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))
        self.kept: Tensor | None = None
        if fault == "sample rate in kilohertz":
            self.sample_rate = 16
        if fault == "half precision weights":
            self.unused = nn.Parameter(torch.zeros(1).half())
        if fault == "broken weights":
            self.mix.bias.data[0] = float("nan")

    def settings(self) -> dict[str, object]:
        return {"calls": int(self.calls)} if self.fault == "unstable settings" else {}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        change = getattr(self, self.fault.replace(" ", "_"), None)
        result = change(waveforms, lengths) if change else super().forward(waveforms, lengths)
        if self.fault == "unstable settings":
            self.calls += 0.0 if torch.is_inference_mode_enabled() and self.calls > 40 else 1.0
        return result

    def plain(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return super().forward(waveforms, lengths)

    def raises(self, waveforms: Tensor, lengths: Tensor) -> Any:
        raise KeyError("hidden_states")

    def returns_a_tensor(self, waveforms: Tensor, lengths: Tensor) -> Any:
        return self.plain(waveforms, lengths).frames

    def layers_before_time(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames.transpose(1, 2), counts)

    def float_lengths(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames, counts / 1.0)

    def one_frame_more(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(nn.functional.pad(frames, (0, 0, 0, 0, 0, 1)), counts + 1)

    def rubbish_beyond_the_end(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames + 1.0, counts)

    def norm_over_padding(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        centered = frames - frames.mean(1, keepdim=True)
        return Features(centered * valid(counts, frames.shape[1])[:, :, None, None], counts)

    def norm_over_the_batch(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames / frames.square().mean().sqrt(), counts)

    def clean(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        if self.fault == "mask by product":
            return waveforms * valid(lengths, waveforms.shape[1])
        return super().clean(waveforms, lengths)

    def sees_the_padding(self, waveforms: Tensor, lengths: Tensor) -> Any:
        whole = torch.full_like(lengths, waveforms.shape[1])
        frames, counts = self.plain(waveforms.roll(-200, dims=1), whole)[0], self.frame_lengths(lengths)
        return Features(frames * valid(counts, frames.shape[1])[:, :, None, None], counts)

    def refuses_short_clips(self, waveforms: Tensor, lengths: Tensor) -> Any:
        if waveforms.shape[1] < 800:
            raise RuntimeError("Kernel size can't be greater than actual input size")
        return self.plain(waveforms, lengths)

    def divides_by_loudness(self, waveforms: Tensor, lengths: Tensor) -> Any:
        return self.plain(waveforms / waveforms.nan_to_num().abs().amax(1, keepdim=True), lengths)

    def not_finite(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(torch.where(frames == frames.amax(), float("inf"), frames), counts)

    def dither(self, waveforms: Tensor, lengths: Tensor) -> Any:
        return self.plain(waveforms + 1e-3 * torch.randn_like(waveforms), lengths)

    def running_mean(self, waveforms: Tensor, lengths: Tensor) -> Any:
        self.calls.add_(1.0)
        return self.plain(waveforms, lengths)

    def remembers(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        before, self.kept = self.kept, waveforms.nan_to_num().abs().amax()
        return Features(frames if before is None else frames + before, counts)

    def works_in_place(self, waveforms: Tensor, lengths: Tensor) -> Any:
        result = self.plain(waveforms, lengths)
        waveforms.mul_(2.0)
        return result

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        if self.fault == "mean over padding":
            return self(waveforms, lengths).frames.mean(1)
        return super().summarize(waveforms, lengths)


FAULTS = {  # what is planted: the check that must find it, and a word of the advice
    "sample rate in kilohertz": ("description", "Hz"),
    "raises": ("output", "KeyError"),
    "returns a tensor": ("output", "Features"),
    "layers before time": ("output", "time, then layers"),
    "float lengths": ("output", "int64"),
    "one frame more": ("frame count", "frame_lengths promises"),
    "rubbish beyond the end": ("zeros beyond the end", "mask"),
    "norm over padding": ("padding", "valid part"),
    "norm over the batch": ("batch size", "norms over the batch"),
    "mask by product": ("garbage in the padding", "masked_fill"),
    "sees the padding": ("garbage in the padding", "masked_fill"),
    "refuses short clips": ("very short clip", "RuntimeError"),
    "divides by loudness": ("silence", "division"),
    "not finite": ("finite", "infinite"),
    "dither": ("determinism", "dithering"),
    "running mean": ("no state", "running statistics"),
    "remembers": ("no state", "from one call to the next"),
    "works in place": ("input untouched", "copy"),
    "mean over padding": ("summary", "valid frames"),
    "half precision weights": ("weights", "float32"),
    "broken weights": ("weights", "NaN"),
    "unstable settings": ("fingerprint", "settings()"),
}


def failures(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.detail for finding in findings if not finding.ok}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_by_the_check_that_is_for_it(fault: str) -> None:
    torch.manual_seed(0)
    name, advice = FAULTS[fault]
    findings = check(Bad(fault).eval())
    assert advice in failures(findings)[name]
    assert all("\n" not in finding.detail for finding in findings)


def test_an_upstream_left_in_training_mode_is_found() -> None:
    assert "eval()" in failures(check(Good().train()))["evaluation mode"]


def test_a_good_upstream_has_no_fault_and_every_check_reports() -> None:
    findings = check(Good().eval())
    assert failures(findings) == {}
    assert [finding.name for finding in findings] == list(CHECKS)
    assert all(finding.detail for finding in findings)


@pytest.mark.parametrize("name", ["fbank", "fbank_cmvn", "mfcc", "spectrogram"])
def test_the_spectral_upstreams_hold_the_contract(name: str) -> None:
    assert failures(check(create(name))) == {}


@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "group"), ("wavlm", "layer"), ("data2vec-audio", None)])
def test_tiny_transformers_models_hold_the_contract(kind: str, norm: str | None, tmp_path: Path) -> None:
    config = SMALL | ({"feat_extract_norm": norm} if norm else {})
    upstream = create(save(build(kind, **config), waveform_extractor(True), tmp_path))
    assert failures(check(upstream)) == {}


def test_without_an_output_the_other_checks_are_left_out() -> None:
    assert [finding.name for finding in check(Bad("raises").eval())] == ["description", "output"]
