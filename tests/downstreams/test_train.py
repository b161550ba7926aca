"""The loop: every head of a sweep learns as if it were alone, and the best epoch is chosen on validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from downstreams import HEADS
from downstreams.base import Head
from downstreams.classification import Classification
from downstreams.errors import HeadError
from downstreams.sweep import fixed_seed
from downstreams.train import Fitted, Setting, TrainingOptions, fit_heads, predict
from tests.downstreams.memory import Clips, classes, spoken, summarized, trials, voices

RECIPE = TrainingOptions(epochs=4)
SWEEP = [Setting(lr, seed) for lr in (1e-2, 1e-3, 3e-1) for seed in (0, 1)]


def classifier(data: Clips, hidden: int = 16) -> Callable[[], Head]:
    return lambda: Classification(3, 10, data.targets, hidden=hidden)


def reader(data: Clips) -> Callable[[], Head]:
    sizes = {"projection": 12, "hidden": 12, "recurrent_layers": 1, "dropout": 0.3}
    return lambda: HEADS["transcription"](2, 8, data.targets, **sizes)


def learn(settings: Sequence[Setting], recipe: TrainingOptions = RECIPE, **changes: Any) -> list[Fitted]:
    train, valid = classes(seed=0), classes(clips=30, seed=1)
    data = {"build": classifier(train), "train": train, "valid": valid, "references": valid.references}
    return fit_heads(settings=settings, metric="accuracy", options=recipe, **{**data, **changes})


def read(settings: Sequence[Setting], recipe: TrainingOptions = RECIPE, **changes: Any) -> list[Fitted]:
    train, valid = spoken(seed=0), spoken(clips=12, seed=1)
    data = {"build": reader(train), "train": train, "valid": valid, "references": valid.references}
    return fit_heads(settings=settings, metric="cer", options=recipe, **{**data, **changes})


def weights(fitted: Fitted) -> Tensor:
    return torch.cat([value.flatten() for value in fitted.head.state_dict().values()])


def by_hand(
    setting: Setting, recipe: TrainingOptions, data: Clips, kind: Callable[..., torch.optim.Optimizer]
) -> Tensor:
    """Weights after all epochs of one head trained alone in the plainest way."""
    with torch.random.fork_rng():
        torch.manual_seed(setting.seed * 1_000_003)
        head = classifier(data)()
    optimizer = kind(head.parameters(), lr=setting.lr, weight_decay=recipe.weight_decay)
    for epoch in range(1, recipe.epochs + 1):
        for batch in data.batches(epoch):
            loss = nn.functional.cross_entropy(head(batch.inputs), head.encode(batch.targets))
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(head.parameters(), recipe.clip)
            optimizer.step()
    return torch.cat([value.flatten() for value in head.state_dict().values()])


class LastEpoch(Classification):
    """Calls every epoch better than the one before, so that the last weights are kept."""

    calls = 0

    @classmethod
    def score(cls, predictions: Any, references: Any) -> Any:
        LastEpoch.calls += 1
        return {"accuracy": float(LastEpoch.calls)}, []


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (TrainingOptions(epochs=3), torch.optim.Adam),
        (TrainingOptions(epochs=3, clip=0.05), torch.optim.Adam),
        (TrainingOptions(epochs=3, clip=None), torch.optim.Adam),
        (TrainingOptions(epochs=3, optimizer="adamw", weight_decay=0.1), torch.optim.AdamW),
    ],
)
def test_a_batched_sweep_is_as_many_runs_of_torchs_own_optimiser(recipe: TrainingOptions, kind: Any) -> None:
    train = classes(seed=0)
    fitted = learn(SWEEP, recipe, build=lambda: LastEpoch(3, 10, train.targets, hidden=16))
    for each in fitted:
        torch.testing.assert_close(weights(each), by_hand(each.setting, recipe, train, kind), rtol=1e-4, atol=1e-5)


def test_widening_a_batched_sweep_keeps_its_heads() -> None:
    alone, together = learn(SWEEP[:1]), learn(SWEEP)
    torch.testing.assert_close(weights(alone[0]), weights(together[0]), rtol=1e-5, atol=1e-6)
    assert alone[0].valid == together[0].valid
    assert not torch.allclose(weights(together[0]), weights(together[1]))


def test_widening_a_sweep_of_larger_heads_keeps_every_bit() -> None:
    settings = [Setting(1e-2, 0), Setting(1e-2, 1), Setting(1e-3, 0)]
    together = read(settings)
    for number, setting in enumerate(settings):
        alone = read([setting])[0]
        assert torch.equal(weights(alone), weights(together[number]))
        assert alone.curve == together[number].curve
    turned = read(settings[::-1])
    assert torch.equal(weights(turned[2]), weights(together[0]))


@pytest.mark.parametrize("run", [learn, read])
def test_the_same_sweep_gives_the_same_bits_again_whatever_the_random_state(run: Callable[..., list[Fitted]]) -> None:
    torch.manual_seed(1)
    first, state = run(SWEEP[:3]), torch.get_rng_state()
    torch.manual_seed(2)
    second = run(SWEEP[:3])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(weights(one), weights(other))
        assert one.curve == other.curve
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state()), "training drew from the caller's random numbers"


@pytest.mark.parametrize(("run", "metric", "limit"), [(learn, "accuracy", 90.0), (read, "wer", 25.0)])
def test_heads_learn(run: Callable[..., list[Fitted]], metric: str, limit: float) -> None:
    fitted = run([Setting(2e-2, 0), Setting(1e-2, 1)], TrainingOptions(epochs=40))
    for each in fitted:
        better = each.valid[metric] >= limit if metric == "accuracy" else each.valid[metric] <= limit
        assert better, each.valid
        assert each.curve[-1].loss < 0.5 * each.curve[0].loss


def test_the_first_of_the_best_epochs_is_kept_with_its_weights() -> None:
    valid = classes(clips=30, seed=1)
    for each in learn(SWEEP, TrainingOptions(epochs=8)):
        scores = [epoch.valid for epoch in each.curve]
        assert each.epoch == 1 + scores.index(max(scores))
        assert each.valid["accuracy"] == max(scores)
        predictions = predict([each], valid)[0]
        assert Classification.score(predictions, valid.references)[0] == each.valid
        assert not each.head.training


def test_a_metric_to_lower_is_lowered() -> None:
    for each in read([Setting(1e-2, 0), Setting(3e-3, 1)], TrainingOptions(epochs=6)):
        scores = [epoch.valid for epoch in each.curve]
        assert each.epoch == 1 + scores.index(min(scores))


def test_validation_is_all_that_chooses_and_training_labels_are_all_that_teach() -> None:
    valid = classes(clips=30, seed=1)
    wrong = dict.fromkeys(valid.ids, "class 0")
    honest, misled = learn(SWEEP[:2]), learn(SWEEP[:2], references=wrong)
    for one, other in zip(honest, misled, strict=True):
        assert [epoch.loss for epoch in one.curve] == [epoch.loss for epoch in other.curve]
        assert one.valid != other.valid


def test_training_reads_every_epoch_once_for_all_heads() -> None:
    train, valid = classes(seed=0), classes(clips=30, seed=1)
    learn(SWEEP, train=train, valid=valid, references=valid.references, build=classifier(train))
    assert train.reads == [1, 2, 3, 4]
    assert valid.reads == [None] * 4


def test_the_training_loss_is_the_mean_over_clips_whatever_the_batches() -> None:
    train, still = classes(13), [Setting(0.0, 0)]
    train.clips[-1] = 9 * train.clips[-1]
    found = [learn(still, train=replace(train, size=size), build=classifier(train))[0] for size in (13, 4)]
    assert found[0].curve[0].loss == pytest.approx(found[1].curve[0].loss, rel=1e-5)


def test_a_batched_sweep_predicts_as_its_heads_do_alone() -> None:
    fitted, test = learn(SWEEP), classes(clips=21, seed=2)
    together = predict(fitted, test)
    for each, predictions in zip(fitted, together, strict=True):
        assert list(predictions) == test.ids
        assert predictions == predict([each], test)[0]
        plain = each.head.decode(each.head(torch.stack(test.clips)))
        assert predictions == dict(zip(test.ids, plain, strict=True))


@pytest.mark.parametrize("run", [learn, read])
def test_a_diverging_setting_stops_alone(run: Callable[..., list[Fitted]]) -> None:
    fitted = run([Setting(1e-2, 0), Setting(1e30, 0), Setting(1e-2, 1)], TrainingOptions(epochs=3, clip=None))
    assert [each.diverged for each in fitted] == [False, True, False]
    assert fitted[1].epoch == 0
    assert all(math.isnan(value) for value in fitted[1].valid.values())
    assert torch.isfinite(weights(fitted[1])).all()
    healthy = run([Setting(1e-2, 0), Setting(1e-2, 1)], TrainingOptions(epochs=3, clip=None))
    for one, other in zip([fitted[0], fitted[2]], healthy, strict=True):
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", [learn, read])
def test_a_sweep_may_diverge_as_a_whole(run: Callable[..., list[Fitted]]) -> None:
    for each in run([Setting(1e30, 0), Setting(1e30, 1)], TrainingOptions(epochs=3, clip=None)):
        assert each.diverged
        assert torch.isfinite(weights(each)).all()


@pytest.mark.parametrize("run", [learn, read])
def test_patience_stops_each_head_by_itself(run: Callable[..., list[Fitted]]) -> None:
    settings, recipe = [Setting(3e-2, 0), Setting(1e-9, 0), Setting(1e-2, 1)], TrainingOptions(epochs=30, patience=3)
    together = run(settings, recipe)
    assert len(together[0].curve) < 30
    assert len(together[1].curve) == 30, "a score that has not moved is no reason to stop: CTC starts like that"
    for setting, each in zip(settings, together, strict=True):
        alone = run([setting], recipe)[0]
        assert len(each.curve) in (30, each.epoch + 3)
        assert (alone.epoch, len(alone.curve)) == (each.epoch, len(each.curve))
        torch.testing.assert_close(weights(alone), weights(each), rtol=1e-4, atol=1e-5)


def test_seconds_of_the_heads_add_up_to_the_sweep() -> None:
    start = time.perf_counter()
    fitted = learn(SWEEP)
    total = time.perf_counter() - start
    assert fitted[0].seconds == fitted[-1].seconds
    assert 0 < sum(each.seconds for each in fitted) <= total


def test_progress_counts_clips_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    learn(SWEEP, TrainingOptions(epochs=20, patience=2), report=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {20 * 48}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0][0] == 8
    assert seen[-1][0] == 20 * 48


def test_frames_are_averaged_for_heads_that_want_summaries() -> None:
    train, valid = voices(seed=1), voices(seed=2)
    build = classifier(train)

    def score(head: Callable[[], Head], one: Clips, other: Clips) -> Fitted:
        return fit_heads(head, SWEEP[:2], one, other, other.references, "accuracy", RECIPE)[0]

    build = lambda: Classification(3, 12, train.targets)  # noqa: E731
    whole, means = score(build, train, valid), score(build, summarized(train), summarized(valid))
    torch.testing.assert_close(weights(whole), weights(means), rtol=1e-4, atol=1e-5)


def test_an_upstream_of_one_layer_is_learnt_from() -> None:
    both = [replace(data, clips=[clip[1:2] for clip in data.clips]) for data in (classes(), classes(30, seed=1))]
    found = learn(SWEEP[:2], train=both[0], valid=both[1], build=lambda: Classification(1, 10, both[0].targets))
    assert found[0].valid["accuracy"] > 80
    assert found[0].head.layer_sum.weights.tolist() == [1.0]


def test_half_precision_features_are_read_in_single() -> None:
    train, valid = classes(seed=0), classes(clips=30, seed=1)
    half = [replace(data, clips=[clip.half() for clip in data.clips]) for data in (train, valid)]
    back = [replace(data, clips=[clip.float() for clip in data.clips]) for data in half]
    found = [learn(SWEEP[:2], train=one, valid=other)[0] for one, other in (half, back)]
    assert torch.equal(weights(found[0]), weights(found[1]))


def test_untrained_heads_choose_their_layer_and_count_no_epochs() -> None:
    train, valid = summarized(voices(seed=1)), summarized(voices(seed=2, first=20))
    build = lambda: HEADS["cosine"](3, 12, train.targets, center=True)  # noqa: E731
    fitted = fit_heads(build, [Setting(0.0, 0), Setting(0.0, 1)], train, valid, trials(valid), "eer", RECIPE)
    for each in fitted:
        assert each.head.layer_sum.weights.tolist() == [0, 1, 0]
        assert (each.epoch, each.curve, each.diverged) == (0, [], False)
        found = predict([each], valid)[0]
        assert each.head.score(found, trials(valid))[0] == each.valid
    frames = voices(seed=2, first=20)
    by_frames = fit_heads(build, SWEEP[:1], voices(seed=1), frames, trials(frames), "eer", RECIPE)[0]
    assert by_frames.valid == pytest.approx(fitted[0].valid)


def of_layer(data: Clips, layer: int) -> Clips:
    """The same clips with that layer alone."""
    return replace(data, clips=[clip[layer : layer + 1] for clip in data.clips])


LAYERED = [
    TrainingOptions(epochs=6),
    TrainingOptions(epochs=6, weight_decay=0.1),
    TrainingOptions(epochs=6, optimizer="adamw", weight_decay=2.0),
    TrainingOptions(epochs=6, clip=0.05),
]


@pytest.mark.parametrize("recipe", LAYERED)
def test_a_head_of_one_layer_is_a_head_that_never_saw_the_others(recipe: TrainingOptions) -> None:
    train, valid, test = classes(seed=0), classes(clips=30, seed=1), classes(clips=30, seed=2)
    settings = [Setting(lr, seed, layer) for layer in range(3) for lr in (3e-2, 5e-1) for seed in (0, 1)]
    together = learn(settings, recipe)
    predictions = predict(together, test)
    for number, (setting, each) in enumerate(zip(settings, together, strict=True)):
        own = of_layer(train, setting.layer or 0)
        alone = learn(
            [setting._replace(layer=None)],
            recipe,
            build=lambda own=own: Classification(1, 10, own.targets, hidden=16),
            train=own,
            valid=of_layer(valid, setting.layer or 0),
        )
        assert each.head.layer_sum.weights.tolist() == [float(place == setting.layer) for place in range(3)]
        assert torch.isfinite(each.head.projection.weight).all()
        torch.testing.assert_close(each.head.projection.weight, alone[0].head.projection.weight, rtol=1e-3, atol=1e-4)
        assert (each.epoch, each.valid) == (alone[0].epoch, alone[0].valid)
        assert predictions[number] == predict(alone, of_layer(test, setting.layer or 0))[0]


def test_heads_of_a_layer_and_of_the_sum_may_learn_side_by_side() -> None:
    settings = [Setting(1e-2, 0), Setting(1e-2, 0, 1), Setting(1e-2, 1)]
    together = learn(settings)
    for setting, each in zip(settings, together, strict=True):
        alone = learn([setting])[0]
        torch.testing.assert_close(weights(each), weights(alone), rtol=1e-5, atol=1e-6)
    spread = [each.head.layer_sum.weights.tolist() for each in together]
    assert spread[1] == [0, 1, 0]
    assert 0 < min(spread[0] + spread[2]) < max(spread[0] + spread[2]) < 1


def test_heads_that_learn_one_after_the_other_may_have_a_layer_too() -> None:
    recipe, sizes = TrainingOptions(epochs=2, weight_decay=0.1), {"projection": 12, "hidden": 12, "recurrent_layers": 1}
    train, valid = spoken(seed=0), spoken(clips=12, seed=1)
    for layer in (0, 1):
        (each,) = read([Setting(1e-2, 0, layer)], recipe)
        assert each.head.layer_sum.weights.tolist() == [float(place == layer) for place in range(2)]
        single = lambda: HEADS["transcription"](1, 8, train.targets, dropout=0.3, **sizes)  # noqa: E731
        own = {"train": of_frames(train, layer), "valid": of_frames(valid, layer), "build": single}
        (alone,) = read([Setting(1e-2, 0)], recipe, **own)
        assert [epoch.loss for epoch in each.curve] == pytest.approx([epoch.loss for epoch in alone.curve], rel=1e-4)


def of_frames(data: Clips, layer: int) -> Clips:
    return replace(data, clips=[clip[:, layer : layer + 1] for clip in data.clips])


def test_untrained_heads_of_each_layer_are_as_if_that_layer_were_all_there_is() -> None:
    train, valid = summarized(voices(seed=1)), summarized(voices(seed=2, first=20))
    build = lambda: HEADS["cosine"](3, 12, train.targets, center=True)  # noqa: E731
    settings = [Setting(0.0, 0, 2), Setting(0.0, 0), *(Setting(0.0, 0, layer) for layer in range(2))]
    fitted = fit_heads(build, settings, train, valid, trials(valid), "eer", RECIPE)
    errors = []
    for setting, each in zip(settings, fitted, strict=True):
        layer = 1 if setting.layer is None else setting.layer
        assert each.head.layer_sum.weights.tolist() == [float(place == layer) for place in range(3)]
        single = lambda: HEADS["cosine"](1, 12, train.targets, center=True)  # noqa: E731
        one, other = of_layer(train, layer), of_layer(valid, layer)
        (alone,) = fit_heads(single, [Setting(0.0, 0)], one, other, trials(valid), "eer", RECIPE)
        assert each.valid == pytest.approx(alone.valid)
        errors.append(each.valid["eer"])
    assert errors[1] == errors[3] == min(errors) < max(errors)


def test_there_is_no_layer_beyond_the_last() -> None:
    with pytest.raises(HeadError, match="layer must be between 0 and 2, not 3"):
        learn([Setting(1e-2, 0, 3)])


def test_an_x_vector_learns_to_tell_unseen_speakers_apart() -> None:
    train, valid = voices(speakers=12, each=8, seed=1), voices(seed=2, first=40)
    sizes = {"channels": 16, "pooled": 24, "embedding": 16, "crop": 20}
    build = lambda: HEADS["xvector"](3, 12, train.targets, **sizes)  # noqa: E731
    settings = [Setting(3e-3, 0), Setting(1e-6, 0)]
    recipe = TrainingOptions(epochs=8, optimizer="adamw", clip=1e3)
    fitted = fit_heads(build, settings, train, valid, trials(valid), "eer", recipe)
    assert fitted[0].valid["eer"] < fitted[1].valid["eer"] - 5
    found = predict(fitted, valid)
    assert found[0][valid.ids[0]].shape == (16,)
    assert HEADS["xvector"].score(found[0], trials(valid))[0] == pytest.approx(fitted[0].valid)


def test_training_clips_too_short_for_their_text_are_counted_once() -> None:
    train = spoken(seed=0)
    train.clips[3] = train.clips[3][:1]
    fitted = read(SWEEP[:2], train=train, build=reader(train))
    assert [each.unusable for each in fitted] == [1, 1]
    assert [each.unusable for each in read(SWEEP[:1])] == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused_by_name(value: float) -> None:
    train = classes(seed=0)
    train.clips[5] = train.clips[5].clone()
    train.clips[5][0, 3] = value
    with pytest.raises(HeadError, match="features of 1 clips are not finite: s0-5"):
        learn(SWEEP, train=train)
    with pytest.raises(HeadError, match="s0-5"):
        predict(learn(SWEEP[:1]), train)


def test_ids_come_once_each() -> None:
    fitted, test = learn(SWEEP[:2]), classes(clips=20, seed=2)

    class Partial(Clips):
        def batches(self, epoch: int | None) -> Any:
            yield self.batch([0, 1, 2])

    class Doubled(Clips):
        def batches(self, epoch: int | None) -> Any:
            yield self.batch([0, 1])
            yield self.batch([1, 2])

    with pytest.raises(HeadError, match="17 of 20 clips are in no batch, such as 's2-3'"):
        predict(fitted, Partial(test.targets, test.clips, prefix="s2-"))
    with pytest.raises(HeadError, match="utterance id 's2-1' occurs twice"):
        predict(fitted, Doubled(test.targets, test.clips, prefix="s2-"))


def test_mistakes_in_what_is_asked_for_are_named() -> None:
    with pytest.raises(HeadError, match="no metric 'wer' for this head; it has accuracy"):
        fit_heads(classifier(classes()), SWEEP, classes(), classes(), classes().references, "wer", RECIPE)
    with pytest.raises(HeadError, match="label 'owl' is in no training clip"):
        learn(SWEEP, train=replace(classes(), targets=["owl"] * 48), build=classifier(classes()))
    with pytest.raises(HeadError, match="needs frames"):
        read(SWEEP[:1], train=summarized(spoken()))
    with pytest.raises(HeadError, match="an encoder is needed"):
        learn(SWEEP[:1], train=replace(classes(), clips=[torch.zeros(100)] * 48))


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(HeadError, match="no settings"):
        learn([])
    with pytest.raises(HeadError, match="no training clips"):
        learn(SWEEP, train=Clips([], []), build=classifier(classes()))
    short = spoken(seed=0)
    with pytest.raises(HeadError, match="every training clip has fewer steps than its target needs"):
        read(SWEEP[:1], train=replace(short, clips=[clip[:1] for clip in short.clips]))


def test_an_untrained_head_needs_no_training_clips_unless_it_centres() -> None:
    valid = summarized(voices(seed=2, first=20))

    def choose(center: bool) -> Fitted:
        build = lambda: HEADS["cosine"](3, 12, [], center=center)  # noqa: E731
        return fit_heads(build, SWEEP[:1], Clips([], []), valid, trials(valid), "eer", RECIPE)[0]

    assert choose(center=False).head.layer_sum.weights.tolist() == [0, 1, 0]
    with pytest.raises(HeadError, match="centring needs training clips"):
        choose(center=True)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"patience": 0}, {"clip": 0.0}, {"optimizer": "sgd"}])
def test_recipes_that_cannot_be_followed_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HeadError, match=next(iter(wrong))):
        TrainingOptions(**wrong)


def test_drawing_under_a_seed_leaves_the_callers_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with fixed_seed(1, 2):
        one = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with fixed_seed(1, 2):
        assert torch.equal(torch.rand(3), one)
    with fixed_seed(1, 3):
        assert not torch.equal(torch.rand(3), one)
