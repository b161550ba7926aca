"""Features made while heads learn: by a frozen encoder, or by one that learns with its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from downstreams import HEADS
from downstreams.base import Head
from downstreams.errors import HeadError
from downstreams.train import Fitted, Setting, TrainingOptions, fit_heads, predict
from tests.downstreams.memory import Clips

SETTINGS = [Setting(1e-2, 0), Setting(1e-3, 1)]
RECIPE = TrainingOptions(epochs=4)


class Filters(nn.Module):
    """A small encoder (B, S) -> (B, S // 10, 2, 6) with dropout, which counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 12, 10, 10)
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))
        self.passes = 0

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        self.passes += 1
        frames = self.scale * self.conv(waveforms[:, None]).relu().transpose(1, 2)
        valid = torch.arange(frames.shape[1])[None] < (lengths // 10)[:, None]
        return (self.dropout(frames) * valid[:, :, None]).unflatten(2, (2, 6)), lengths // 10


class Summaries(Filters):
    """An encoder with an utterance vector of its own."""

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        frames, sizes = self(waveforms, lengths)
        return torch.cat([frames.sum(1) / sizes[:, None, None], frames.amax(1)], 1)


def tones(clips: int = 24, seed: int = 0) -> Clips:
    random, waves, labels = torch.Generator().manual_seed(seed), [], []
    for number in range(clips):
        size = int(torch.randint(60, 140, (1,), generator=random))
        wave = torch.sin(torch.arange(size) * (0.4 + 0.5 * (number % 3)))
        waves.append(wave + 0.3 * torch.randn(size, generator=random))
        labels.append("abc"[number % 3])
    return Clips(labels, waves, prefix=f"w{seed}-")


def encoded(data: Clips, encoder: nn.Module) -> Clips:
    with torch.no_grad():
        frames = [encoder.eval()(clip[None], torch.tensor([len(clip)]))[0][0] for clip in data.clips]
    return Clips(data.targets, frames, data.size, data.prefix)


def build(name: str, layers: int = 2) -> Head:
    sizes = {"classification": {}, "transcription": {"projection": 8, "hidden": 8, "recurrent_layers": 1}}
    return HEADS[name](layers, 6, tones().targets, **sizes[name])


def run(
    name: str, encoder: Any, train: Clips | None = None, valid: Clips | None = None, **changes: Any
) -> list[Fitted]:
    train, valid = train or tones(seed=0), valid or tones(9, seed=1)
    metric = {"classification": "accuracy", "transcription": "cer"}[name]
    arguments = {"settings": SETTINGS, "options": RECIPE, **changes}
    layers = 4 if isinstance(encoder, Summaries) else 2
    references = valid.references
    return fit_heads(
        lambda: build(name, layers),
        train=train,
        valid=valid,
        references=references,
        metric=metric,
        encoder=encoder,
        **arguments,
    )


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def same_weight(one: nn.Module, other: nn.Module, name: str) -> bool:
    return torch.equal(one.state_dict()[name], other.state_dict()[name])


@pytest.fixture
def filters() -> Filters:
    torch.manual_seed(3)
    return Filters()


@pytest.mark.parametrize("name", ["classification", "transcription"])
def test_live_features_are_as_good_as_stored_ones(name: str, filters: Filters) -> None:
    live = run(name, filters.train())
    stored = run(name, None, encoded(tones(), filters), encoded(tones(9, seed=1), filters))
    for one, other in zip(live, stored, strict=True):
        torch.testing.assert_close(weights(one.head), weights(other.head), rtol=1e-4, atol=1e-5)
    test = tones(7, seed=2)
    assert predict(live, test, filters) == predict(stored, encoded(test, filters))


def test_a_frozen_encoder_runs_once_per_batch_for_all_heads_and_does_not_change(filters: Filters) -> None:
    before = weights(filters).clone()
    run("transcription", filters)
    assert filters.passes == RECIPE.epochs * (3 + 2)
    assert torch.equal(weights(filters), before)
    assert filters.conv.weight.grad is None


@pytest.mark.parametrize("name", ["classification", "transcription"])
def test_an_encoder_may_run_in_inference_mode(name: str, filters: Filters) -> None:
    def encode(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            frames, sizes = filters(waveforms, lengths)
            return frames.contiguous(), sizes

    filters.eval()
    for one, other in zip(run(name, encode), run(name, filters), strict=True):
        assert one.curve == other.curve


def test_an_encoders_own_utterance_vector_is_what_summaries_are() -> None:
    torch.manual_seed(3)
    encoder, data = Summaries(), tones()
    fitted = run("classification", encoder)
    assert fitted[0].head.layer_sum.weights.shape == (4,)
    batch = data.batch([0, 1, 2])
    assert batch.lengths is not None
    expected = fitted[0].head.decode(fitted[0].head(encoder.summarize(batch.inputs, batch.lengths)))
    assert list(predict(fitted, data, encoder)[0].values())[:3] == expected


@pytest.mark.parametrize("name", ["classification", "transcription"])
def test_a_tuned_encoder_learns_in_a_copy_per_setting(name: str, filters: Filters) -> None:
    before = weights(filters).clone()
    together = run(name, filters, tune=True)
    assert torch.equal(weights(filters), before), "the encoder given must stay as it is"
    for setting, each in zip(SETTINGS, together, strict=True):
        assert each.encoder is not None
        assert not same_weight(each.encoder, filters, "conv.weight")
        assert same_weight(each.encoder, filters, "scale"), "what was frozen stays frozen"
        assert not each.encoder.training
        alone = run(name, filters, settings=[setting], tune=True)[0]
        assert torch.equal(weights(alone.head), weights(each.head))
        assert alone.encoder is not None
        assert torch.equal(weights(alone.encoder), weights(each.encoder))


def test_tuning_restores_the_encoder_of_the_best_epoch_and_predicts_with_it(filters: Filters) -> None:
    valid = tones(9, seed=1)
    tuned = run("classification", filters, tune=True, options=TrainingOptions(epochs=12))
    for each, predictions in zip(tuned, predict(tuned, valid, filters), strict=True):
        assert each.head.score(predictions, valid.references)[0] == each.valid
    assert tuned[0].curve[-1].loss < tuned[0].curve[0].loss


def test_both_weights_of_a_tuned_pair_are_those_of_its_best_epoch(filters: Filters) -> None:
    long = run("classification", filters, tune=True, options=TrainingOptions(epochs=20))[0]
    assert long.epoch < 20
    short = run("classification", filters, tune=True, options=TrainingOptions(epochs=long.epoch))[0]
    assert short.epoch == long.epoch
    assert long.encoder is not None
    assert short.encoder is not None
    assert torch.equal(weights(long.encoder), weights(short.encoder))
    assert torch.equal(weights(long.head), weights(short.head))


def test_an_encoder_may_have_a_rate_of_its_own(filters: Filters) -> None:
    still = run("classification", filters, tune=True, options=TrainingOptions(epochs=2, encoder_lr=0.0))
    for each in still:
        assert each.encoder is not None
        assert same_weight(each.encoder, filters, "conv.weight")
    assert not torch.equal(weights(still[0].head), weights(build("classification")))


def test_progress_of_tuning_runs_through_all_settings(filters: Filters) -> None:
    seen: list[tuple[int, int]] = []
    run("classification", filters, tune=True, report=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {2 * 4 * 24}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 2 * 4 * 24


def test_what_cannot_be_tuned_is_refused(filters: Filters) -> None:
    with pytest.raises(HeadError, match="an encoder that is a module"):
        run("classification", lambda waveforms, lengths: (waveforms, lengths), tune=True)
    with pytest.raises(HeadError, match="no parameter that may be tuned"):
        run("classification", filters.requires_grad_(False), tune=True)
