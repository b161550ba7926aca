"""AAM-softmax: its formula, the weights that it trains, and that its loss falls."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.pretraining.aam_softmax import BASE, KIND, MINI, MarginTuning, Tuning, angular_margin, tuning_of
from upstreams.pretraining.methods import AudioBatch

TUNING = Tuning(replace(MINI.recipe, precision="fp32"), 20.0, 0.1)


class Levels(nn.Module):
    """One linear layer on the spectrum of a clip in a few bands."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, self.dim)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        bands = torch.fft.rfft(waveforms).abs()[:, :1600].unflatten(1, (16, -1)).mean(2)
        return self.layer((bands + 1e-2).log())


def made(classes: int = 3, tuning: Tuning = TUNING) -> MarginTuning:
    torch.manual_seed(0)
    network = Levels()
    return MarginTuning(network, classes, tuning, lambda own: {"w": own.layer.weight})


def tones(labels: list[int]) -> AudioBatch:
    times = torch.arange(3200) / 16_000
    rows = [torch.sin(2 * math.pi * (300 + 900 * label) * times) for label in labels]
    return AudioBatch(torch.stack(rows), torch.full((len(labels),), 3200), {KIND: torch.tensor(labels)})


def literal(cosines: Tensor, labels: Tensor, scale: float, margin: float) -> float:
    """Deng et al. (2019), clip by clip and class by class; beyond pi - margin the cosine is continued linearly."""
    losses = []
    for row, label in zip(cosines.double().tolist(), labels.tolist(), strict=True):
        angles = [math.acos(cosine) for cosine in row]
        logits = [scale * math.cos(angle) for angle in angles]
        if angles[label] < math.pi - margin:
            logits[label] = scale * math.cos(angles[label] + margin)
        else:
            logits[label] = scale * (row[label] - margin * math.sin(margin))
        losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("scale", "margin"), [(20.0, 0.1), (30.0, 0.2), (10.0, 0.5), (1.0, 0.0)])
def test_the_loss_is_the_formula_of_the_paper(scale: float, margin: float) -> None:
    torch.manual_seed(0)
    cosines = torch.rand(40, 7) * 1.98 - 0.99
    cosines[0, 0] = -0.999
    labels = torch.randint(7, (40,)).index_fill(0, torch.tensor([0]), 0)
    loss = angular_margin(scale, margin)(cosines[:, None], labels[:, None])
    assert float(loss) == pytest.approx(literal(cosines, labels, scale, margin), rel=1e-4)


def test_without_a_margin_it_is_the_cross_entropy_of_scaled_cosines() -> None:
    cosines, labels = torch.rand(9, 4) - 0.5, torch.arange(9) % 4
    loss = angular_margin(5.0, 0.0)(cosines[:, None], labels[:, None])
    torch.testing.assert_close(loss, F.cross_entropy(5.0 * cosines, labels))


def test_a_step_is_the_loss_of_the_angles_between_embeddings_and_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upstreams.pretraining.aam_softmax.augmented", lambda waveforms, lengths: waveforms)
    method, batch = made(), tones([0, 1, 2, 1])
    step = method(batch, 0.0)
    vectors = method.network(*batch[:2])
    cosines = F.cosine_similarity(vectors[:, None], method.centres[None], dim=2)
    assert step.terms["loss"].item() == pytest.approx(literal(cosines, batch.labels[KIND], 20.0, 0.1), rel=1e-4)
    right = (cosines.argmax(1) == batch.labels[KIND]).float().mean()
    assert float(step.terms["accuracy"]) == float(right)
    torch.testing.assert_close(step.vectors, vectors)
    step.terms["loss"].backward()
    assert all(bool(weight.grad is not None and weight.grad.any()) for weight in method.parameters())


def test_only_the_encoder_is_exported() -> None:
    method = made()
    assert method.exported().keys() == {"w"}
    assert method.exported()["w"] is dict(method.network.named_parameters())["layer.weight"]


def test_what_is_heard_is_augmented_by_torchs_generator() -> None:
    method, batch = made(), tones([0, 1, 2, 1])
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(method(batch, 0.0).terms["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_half_precision_of_the_encoder_does_not_reach_the_angles() -> None:
    method, batch = made(), tones([0, 1, 2, 1])
    torch.manual_seed(0)
    exact = method(batch, 0.0).terms["loss"]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(batch, 0.0).terms["loss"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_it_learns_to_tell_classes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upstreams.pretraining.aam_softmax.augmented", lambda waveforms, lengths: waveforms)
    method, batch = made(), tones([0, 1, 2] * 4)
    optimizer = torch.optim.Adam(method.parameters(), 0.03)
    for _ in range(60):
        terms = method(batch, 0.0).terms
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert float(terms["accuracy"]) == 1.0
    assert float(terms["loss"].detach()) < 0.1


def test_how_an_encoder_is_tuned_follows_from_its_size() -> None:
    with torch.device("meta"):
        assert tuning_of(nn.Linear(1490, 1000)) is MINI
        assert tuning_of(nn.Linear(1500, 1000)) is BASE
