"""Each fault is planted in an otherwise valid upstream, and the check for this fault must report it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.upstreams.models import SMALL, build, save, waveform_extractor
from upstreams import create
from upstreams.base import Features, Upstream, valid
from upstreams.contract.check import CHECKS, Finding, check_contract
from upstreams.contract.probe_signals import edges
from upstreams.precision import with_precision


class Good(Upstream):
    """A valid upstream: mean and energy of 20 ms frames, mixed by a few weights."""

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
    """Return variants of `Good` with one line changed, by name of the fault."""

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
        if fault == "weights in a list":
            self.more = [nn.Linear(2, 3)]
        if fault == "weights in a private mapping":
            self._more = {"first": nn.Parameter(torch.zeros(3))}
        if fault == "another hop":
            self.hop = 319
        if fault == "digests that are numbers":
            self.origin: Any = {"model.pt": 7}

    def settings(self) -> dict[str, object]:
        return {"calls": int(self.calls)} if self.fault == "unstable settings" else {}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        change = getattr(self, self.fault.replace(" ", "_"), None)
        result = change(waveforms, lengths) if change else super().forward(waveforms, lengths)
        if self.fault == "unstable settings":
            self.calls += 1.0
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

    def a_layer_too_few(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames[:, :, 1:], counts)

    def the_longest_length_for_all(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames, counts.max().expand(len(counts)))

    def sorted_by_length(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames[lengths.argsort(descending=True)], counts)

    def float_lengths(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames, counts / 1.0)

    def double_precision_frames(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames.double(), counts)

    def frames_on_another_device(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames.to("meta"), counts)

    def counts_a_sample_early(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, _ = self.plain(waveforms, lengths)
        return Features(nn.functional.pad(frames, (0, 0, 0, 0, 0, 1)), ((lengths + 1) // 320).clamp(min=1))

    def no_last_frame(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames * valid(counts - 1, frames.shape[1])[:, :, None, None], counts)

    def fades_the_end_of_whole_hops(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        for row, count, length in zip(frames, counts, lengths, strict=True):
            row[int(count) - 1] *= 0.5 if length % 320 == 0 and length < lengths.max() else 1.0
        return Features(frames, counts)

    def positions_that_end(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames + torch.zeros(500)[torch.arange(frames.shape[1])][:, None, None], counts)

    def cuts_long_clips(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames * (torch.arange(frames.shape[1]) < 500)[:, None, None], counts)

    def the_last_layer_everywhere(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames[:, :, -1:].expand_as(frames).clone(), counts)

    def a_layer_of_one_vector(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        frames[:, :, 1] = frames[:, :1, 1] * valid(counts, frames.shape[1])[:, :, None]
        return Features(frames, counts)

    def backwards(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        for row, count in zip(frames, counts, strict=True):
            row[: int(count)] = row[: int(count)].flip(0)
        return Features(frames, counts)

    def late(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames.roll(40, dims=1) * valid(counts, frames.shape[1])[:, :, None, None], counts)

    def deaf(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(torch.ones_like(waveforms).cumsum(1), lengths)
        return Features(frames, counts)

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

    def overflows(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        return Features(frames / (waveforms.nan_to_num().abs().amax(1) < 0.9)[:, None, None, None], counts)

    def sets_the_seed(self, waveforms: Tensor, lengths: Tensor) -> Any:
        torch.manual_seed(0)
        return self.plain(waveforms, lengths)

    def one_buffer_for_all(self, waveforms: Tensor, lengths: Tensor) -> Any:
        frames, counts = self.plain(waveforms, lengths)
        if self.kept is None or self.kept.shape != frames.shape:
            self.kept = frames
        return Features(self.kept.copy_(frames), counts)

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


FAULTS = {  # by planted fault: the check that must report it, and a word of the advice
    "sample rate in kilohertz": ("description", "Hz"),
    "raises": ("output", "KeyError"),
    "returns a tensor": ("output", "Features"),
    "layers before time": ("output", "time, then layers"),
    "a layer too few": ("output", "(2, T, 2, 3)"),
    "another hop": ("frame count", "correct hop"),
    "the longest length for all": ("frame count", "frame_lengths promises"),
    "sorted by length": ("padding", "padding changes"),
    "weights in a private mapping": ("weights", "'_more'"),
    "float lengths": ("output", "int64"),
    "double precision frames": ("output", ".float()"),
    "frames on another device": ("output", "meta"),
    "counts a sample early": ("frame count", "for 639 samples where frame_lengths promises 1"),
    "no last frame": ("frame count", "is zero"),
    "fades the end of whole hops": ("padding", "samples by 5.0e-01, though not every other length"),
    "positions that end": ("long clip", "IndexError"),
    "cuts long clips": ("long clip", "the last of 600 frames"),
    "the last layer everywhere": ("layers", "all 2 layers are equal"),
    "a layer of one vector": ("layers", "layer 1 does not change"),
    "backwards": ("time", "changes layer 0 most at 0."),
    "late": ("time", "t * hop"),
    "deaf": ("time", "stay the same when the sound changes"),
    "overflows": ("finite", "full scale"),
    "sets the seed": ("determinism", "random generator"),
    "one buffer for all": ("no state", "overwrites"),
    "weights in a list": ("weights", "'more'"),
    "digests that are numbers": ("fingerprint", "SHA-256"),
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
    findings = check_contract(Bad(fault).eval())
    assert advice in failures(findings)[name]
    assert all("\n" not in finding.detail for finding in findings)


def test_an_upstream_left_in_training_mode_is_found() -> None:
    assert "eval()" in failures(check_contract(Good().train()))["evaluation mode"]


def test_a_good_upstream_has_no_fault_and_every_check_reports() -> None:
    findings = check_contract(Good().eval())
    assert failures(findings) == {}
    assert [finding.name for finding in findings] == list(CHECKS)
    assert all(finding.detail for finding in findings)


@pytest.mark.parametrize("name", ["fbank", "fbank_cmvn", "mfcc", "spectrogram"])
def test_the_spectral_upstreams_hold_the_contract(name: str) -> None:
    assert failures(check_contract(create(name))) == {}


@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "group"), ("wavlm", "layer"), ("data2vec-audio", None)])
def test_tiny_transformers_models_hold_the_contract(kind: str, norm: str | None, tmp_path: Path) -> None:
    config = SMALL | ({"feat_extract_norm": norm} if norm else {})
    upstream = create(save(build(kind, **config), waveform_extractor(True), tmp_path))
    assert failures(check_contract(upstream)) == {}


@pytest.mark.parametrize("name", ["fbank", "hf:examples/hubert_tiny@random"])
def test_half_precision_holds_the_contract_as_far_as_its_bits_go(name: str) -> None:
    assert failures(check_contract(with_precision("bf16", create(name)))) == {}


def test_faults_are_found_in_half_precision_too() -> None:
    for fault in ("norm over padding", "backwards", "dither", "no last frame"):
        assert FAULTS[fault][0] in failures(check_contract(with_precision("bf16", Bad(fault)).eval()))


def test_layers_that_are_equal_to_one_another_are_told_of() -> None:
    class Doubled(Good):
        layers = 3

        def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
            frames, counts = super().forward(waveforms, lengths)
            return Features(frames[:, :, [0, 1, 1]], counts)

    found = {finding.name: finding.detail for finding in check_contract(Doubled().eval())}
    assert "layers 1 and 2 are equal" in found["layers"]


class Words(Good):
    """Each layer gives one of two discrete units per frame: a changed sound flips near frames and one distant frame."""

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        frames, counts = super().forward(waveforms, lengths)
        loudness = nn.functional.pad(waveforms.nan_to_num(), (0, 320))[:, : frames.shape[1] * 320].unflatten(
            1, (-1, 320)
        )
        words = (loudness.sum(2) > 1.5).float()  # (B, T)
        words[:, :1] += 5 * (words.sum(1, keepdim=True) % 2)
        return Features(words[:, :, None, None].expand(-1, -1, 2, 3) + 1e-3 * frames, counts)


@pytest.mark.parametrize("turned", [False, True])
def test_one_word_that_flips_far_off_is_no_fault_and_time_turned_round_is_one(turned: bool) -> None:
    torch.manual_seed(0)
    upstream = Words().eval()
    if turned:
        straight = upstream.forward
        upstream.forward = lambda *given: Features(straight(*given).frames.flip(1), straight(*given).lengths)  # type: ignore
    found = {each.name: each for each in check_contract(upstream)}["time"]
    assert found.ok != turned, found


def test_the_twelve_edges_are_where_another_frame_begins() -> None:
    for hop, window in ((320, 400), (320, 320), (160, 1), (15_360, 15_360)):
        upstream = Good()
        upstream.hop, upstream.window = hop, window
        samples = torch.tensor([len(clip) for clip in edges(upstream)])
        counts = upstream.frame_lengths(samples).reshape(4, 3)
        assert (counts[:, 1] == counts[:, 2]).all()
        assert (counts[:, 1] == counts[:, 0] + 1).all()
        assert samples.min() >= 400


def test_costs_are_measured_on_the_way() -> None:
    upstream = Good().eval()
    upstream.mix = nn.Sequential(nn.Linear(2, 1000), nn.Linear(1000, 3)).eval()  # type: ignore[assignment]
    found = {finding.name: finding.detail for finding in check_contract(upstream)}
    assert found["multiply–accumulates"].startswith("0.25 million per second of audio")  # 50 frames of 5000
    assert "real-time factor" in found["speed"]
    assert found["weights"] == "6,003 parameters"


def test_without_an_output_the_other_checks_are_left_out() -> None:
    assert [finding.name for finding in check_contract(Bad("raises").eval())] == ["description", "output"]
