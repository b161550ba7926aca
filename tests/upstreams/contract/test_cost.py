"""Measured costs equal those computed by hand from the sizes of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from tests.upstreams.models import build
from upstreams import create
from upstreams.base import Features, Upstream, valid
from upstreams.contract import cost
from upstreams.contract.cost import macs_per_second, real_time_factor
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.precision import with_precision

T = 5 * 50  # 20 ms frames of the clip


class Framed(Upstream):
    """Frames of 320 samples as (1, T, 320) through any module, whose output is ignored."""

    hop, window, layers, dim = 320, 320, 1, 320

    def __init__(self, inner: nn.Module | Callable[[Tensor], Any], least: int = 0) -> None:
        super().__init__()
        self.inner, self.least = inner, least
        self.passes = 0

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        self.passes += 1
        counts = self.frame_lengths(lengths)
        whole = F.pad(waveforms, (0, max(self.least - waveforms.shape[1], 0)))
        frames = whole[:, : whole.shape[1] // 320 * 320].unflatten(1, (-1, 320))
        self.inner(frames)
        kept = frames[:, : int(counts.max())]
        return Features((kept * valid(counts, kept.shape[1])[:, :, None])[:, :, None], counts)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(320, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def convolved(layer: nn.Module) -> Callable[[Tensor], Any]:
    return lambda x: layer(x.transpose(1, 2))


def packed(layer: nn.Module) -> Callable[[Tensor], Any]:
    return lambda x: layer(pack_padded_sequence(x, torch.tensor([x.shape[1]]), batch_first=True))


ATTENTION, BLOCK = 4 * 320 * 320 * T + 2 * 320 * T * T, 2 * 320 * 512 * T
FIXED = torch.zeros(320, 7)
CASES: dict[str, tuple[nn.Module | Callable[[Tensor], Any], float]] = {
    "linear": (nn.Linear(320, 7), 320 * 7 * T),
    "linear of one clip and frame": (lambda x: F.linear(x[0, 0], FIXED.T), 320 * 7),
    "matrix product": (lambda x: x @ FIXED, 320 * 7 * T),
    "product with a vector": (lambda x: x @ FIXED[:, 0], 320 * T),
    "product of vectors": (lambda x: x[0, 0] @ x[0, 1], 320),
    "einsum": (lambda x: torch.einsum("btd,de->bte", x, FIXED), 320 * 7 * T),
    "bilinear": (lambda x: F.bilinear(x, x, torch.ones(2, 320, 320)), 2 * 320 * 320 * T),
    "convolution": (convolved(nn.Conv1d(320, 8, 3, padding=1)), 3 * 320 * 8 * T),
    "convolution of the same length": (convolved(nn.Conv1d(320, 8, 5, padding="same")), 5 * 320 * 8 * T),
    "strided convolution in groups": (convolved(nn.Conv1d(320, 64, 10, 5, groups=4)), 10 * 80 * 64 * (T - 5) / 5),
    "transposed convolution": (convolved(nn.ConvTranspose1d(320, 8, 3)), 3 * 320 * 8 * T),
    "convolution over an image": (lambda x: F.conv2d(x[:, None], torch.ones(2, 1, 3, 3)), 9 * 2 * (T - 2) * 318),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 2 * 320 * T * T),
    "masked attention": (lambda x: F.scaled_dot_product_attention(x, x, x, torch.zeros(T, T)), 2 * 320 * T * T),
    "attention written out": (lambda x: (x @ x.transpose(1, 2)).softmax(2) @ x, 2 * 320 * T * T),
    "torch's attention": (Attention(), ATTENTION),
    "torch's transformer": (nn.TransformerEncoderLayer(320, 4, 512, batch_first=True), ATTENTION + BLOCK),
    "LSTM": (nn.LSTM(320, 16, batch_first=True), 4 * 16 * (320 + 16) * T),
    "LSTM in two directions and layers": (
        nn.LSTM(320, 16, 2, batch_first=True, bidirectional=True),
        2 * 4 * 16 * (320 + 16 + 32 + 16) * T,
    ),
    "LSTM of packed clips": (packed(nn.LSTM(320, 16, batch_first=True)), 4 * 16 * (320 + 16) * T),
    "LSTM with a projection": (
        nn.LSTM(320, 16, batch_first=True, proj_size=8), (4 * 16 * (320 + 8) + 16 * 8) * T,
    ),
    "GRU": (nn.GRU(320, 16, batch_first=True), 3 * 16 * (320 + 16) * T),
    "Fourier transform": (lambda x: torch.fft.rfft(x), 0),
    "work element by element": (lambda x: (x * x).tanh().sum(2), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_macs_are_those_of_the_formula(name: str) -> None:
    inner, expected = CASES[name]
    assert macs_per_second(Framed(inner).eval()) * 5 == expected


def test_macs_of_scripted_code_and_of_bf16_are_the_same() -> None:
    layer = nn.Linear(320, 7)
    scripted = torch.jit.trace(layer, torch.zeros(1, 2, 320))
    assert macs_per_second(Framed(scripted).eval()) * 5 == 320 * 7 * T
    assert macs_per_second(with_precision("bf16", Framed(layer).eval())) * 5 == 320 * 7 * T


def test_what_runs_is_counted_not_what_the_clip_needs() -> None:
    assert macs_per_second(Framed(nn.Linear(320, 7), least=480_000).eval()) * 5 == 320 * 7 * 30 * 50


def test_the_formula_for_cuda_recurrence_agrees_with_what_the_processor_does() -> None:
    layer = nn.LSTM(320, 16, 2, batch_first=True, bidirectional=True)
    shapes = [tuple(weight.shape) for weight in layer.parameters()]
    _, expected = CASES["LSTM in two directions and layers"]
    assert cost.of_cuda_recurrence((1, T, 320), shapes, 4) == 2 * expected
    assert cost.of_cuda_recurrence((T, 320), shapes, 4) == 2 * expected


def test_filter_banks_cost_their_matrix_product() -> None:
    frames = (80_000 - 400) // 160 + 1
    assert macs_per_second(create("fbank")) * 5 == 257 * 80 * frames


def transformer_macs(samples: int, channels: int, dim: int, inner: int, blocks: int, groups: int) -> float:
    """HuBERT's cost by hand: seven convolutions, projection, positional convolution, blocks."""
    total, size, wide = 0.0, samples, 1
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        size = (size - kernel) // stride + 1
        total += kernel * wide * channels * size
        wide = channels
    attention = 4 * dim * dim * size + 2 * dim * size * size
    positions = 128 * dim * (dim // groups) * (size + 1)  # one surplus frame, which is cut off
    return total + channels * dim * size + positions + blocks * (attention + 2 * dim * inner * size)


def hubert(**sizes: Any) -> Upstream:
    torch.manual_seed(0)
    return WaveformEncoder(build("hubert", feat_extract_norm="layer", **sizes), False, 16_000).eval()


def test_macs_of_a_small_hubert_are_those_of_its_configuration() -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    convolutions = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 4}
    shape = {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    found = macs_per_second(hubert(**sizes, **convolutions, **shape))
    assert found * 5 == transformer_macs(80_000, 16, 24, 40, 3, 4)


def test_macs_of_hubert_base_are_seven_billion_per_second() -> None:
    found = macs_per_second(create("hubert_base@random"))
    assert found * 5 == pytest.approx(transformer_macs(80_000, 512, 768, 3072, 12, 16), rel=1e-3)
    assert found == pytest.approx(7.2e9, rel=0.02)


def test_whisper_pays_for_thirty_seconds_of_every_clip() -> None:
    front = 80 * 201 * 3000 + 3 * 80 * 512 * 3000 + 3 * 512 * 512 * 1500
    blocks = 6 * (4 * 512 * 512 * 1500 + 2 * 512 * 1500 * 1500 + 2 * 512 * 2048 * 1500)
    assert macs_per_second(create("whisper_base@random")) * 5 == front + blocks


def test_the_real_time_factor_is_time_over_audio_and_the_best_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 0.5, 2.0])
    monkeypatch.setattr(cost, "timed", lambda *_: next(seconds))
    assert real_time_factor(Framed(nn.Identity()).eval()) == 0.1


def test_slow_upstreams_are_not_timed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "PATIENCE", 0.0)
    upstream = Framed(nn.Identity()).eval()
    assert real_time_factor(upstream) > 0
    assert upstream.passes == 1


def test_counting_leaves_torch_as_it_was() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    macs_per_second(Framed(nn.Linear(320, 7)).eval())
    with pytest.raises(RuntimeError):
        macs_per_second(Framed(nn.Linear(1, 7)).eval())
    assert torch.backends.mha.get_fastpath_enabled() == before
