"""The metadata triplet loss, compared with literal loops over anchors, positives and negatives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.upstreams.training import CLIPS, PLAN, STEPS, Toy, batches, same, toy
from upstreams.base import UpstreamError
from upstreams.pretraining.loop import fit
from upstreams.pretraining.metadata_triplet import WithMetadata, similarity, standardized, triplet_loss
from upstreams.pretraining.methods import UNKNOWN, AudioBatch

WEIGHTS = {"language": 1.0, "speaker": 0.5}


def drawn(number: int = 24, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Vectors (number, 6) in double precision, and labels, some of which are unknown."""
    dice = torch.Generator().manual_seed(seed)
    labels = {
        "language": torch.randint(UNKNOWN, 4, (number,), generator=dice),
        "speaker": torch.randint(UNKNOWN, 6, (number,), generator=dice),
    }
    return torch.randn(number, 6, generator=dice, dtype=torch.float64), labels


def literal_similarity(labels: dict[str, Tensor], weights: dict[str, float], one: int, other: int) -> float | None:
    total = known = 0.0
    for kind, weight in weights.items():
        first, second = int(labels[kind][one]), int(labels[kind][other])
        if first != UNKNOWN and second != UNKNOWN:
            known += weight
            total += weight * (first == second)
    return total / known if known and one != other else None


def literal_triplet(vectors: Tensor, alike: list[list[float | None]], margin: float) -> tuple[float, float]:
    mean, deviation = vectors.mean(0), (vectors.var(0, unbiased=False) + 1e-5).sqrt()
    scaled = (vectors - mean) / deviation
    number, losses = len(vectors), []
    for anchor in range(number):
        violations = []
        for near in range(number):
            hardest = []
            for far in range(number):
                more, less = alike[anchor][near], alike[anchor][far]
                if more is not None and less is not None and more > less:
                    apart = [1 - F.cosine_similarity(scaled[anchor], scaled[each], dim=0) for each in (near, far)]
                    hardest.append(float(margin * (more - less) + apart[0] - apart[1]))
            violations += [max(0.0, *hardest)] if hardest else []
        if violations:
            losses.append(sum(violations) / len(violations))
    return (sum(losses) / len(losses) if losses else 0.0), len(losses) / number


@pytest.mark.parametrize("seed", range(3))
def test_the_term_is_that_of_a_literal_loop_over_all_triplets(seed: int) -> None:
    vectors, labels = drawn(16, seed)
    labels["language"][:2] = labels["speaker"][:2] = UNKNOWN
    alike = [[literal_similarity(labels, WEIGHTS, one, other) for other in range(16)] for one in range(16)]
    found = similarity(labels, WEIGHTS)
    expected = torch.tensor([[math.nan if value is None else value for value in row] for row in alike])
    torch.testing.assert_close(found.float(), expected, equal_nan=True)
    loss, paired = triplet_loss(vectors, found, 0.4)
    assert (loss.item(), paired.item()) == pytest.approx(literal_triplet(vectors, alike, 0.4))
    assert 0 < paired.item() < 1


def test_one_source_gives_the_triplet_loss_with_the_hardest_negative_of_each_positive() -> None:
    vectors, speaker = drawn()[0], torch.arange(24) % 5
    directions = F.normalize(standardized(vectors), dim=1)
    apart = 1 - directions @ directions.T
    equal = speaker[:, None] == speaker
    negative = apart.masked_fill(equal, math.inf).amin(1, keepdim=True)
    positive = equal & ~torch.eye(24, dtype=torch.bool)
    each = (0.3 + apart - negative).relu().masked_fill(~positive, 0.0).sum(1) / positive.sum(1)
    found = similarity({"speaker": speaker}, {"speaker": 7.0})
    torch.testing.assert_close(triplet_loss(vectors, found, 0.3)[0], each.mean())


def test_pairs_of_one_source_give_the_batch_hard_triplet_loss() -> None:
    vectors, speaker = drawn()[0], torch.arange(24) % 12
    directions = F.normalize(standardized(vectors), dim=1)
    apart = 1 - directions @ directions.T
    equal = speaker[:, None] == speaker
    farthest = apart.masked_fill(~equal, -math.inf).amax(1)
    nearest = apart.masked_fill(equal, math.inf).amin(1)
    found = similarity({"speaker": speaker}, {"speaker": 1.0})
    torch.testing.assert_close(triplet_loss(vectors, found, 0.3)[0], (0.3 + farthest - nearest).relu().mean())


def test_sources_count_by_their_weights_where_both_clips_have_them() -> None:
    labels = {"language": torch.tensor([0, 0, 1, UNKNOWN]), "speaker": torch.tensor([5, 6, 5, 6])}
    found = similarity(labels, {"language": 3.0, "speaker": 1.0})
    nan = math.nan
    expected = [[nan, 0.75, 0.25, 0.0], [0.75, nan, 0.0, 1.0], [0.25, 0.0, nan, 0.0], [0.0, 1.0, 0.0, nan]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_clips_without_labels_are_in_no_pair() -> None:
    vectors, labels = drawn()
    labels["language"][5] = labels["speaker"][5] = UNKNOWN
    alike = similarity(labels, WEIGHTS)
    assert alike[5].isnan().all()
    assert alike[:, 5].isnan().all()
    paired = triplet_loss(vectors, alike, 0.3)[1]
    labels["language"][:] = labels["speaker"][:] = UNKNOWN
    labels["language"][:3] = torch.tensor([1, 1, 2])
    assert float(triplet_loss(vectors, similarity(labels, WEIGHTS), 0.3)[1]) == pytest.approx(
        2 / 24
    )  # clip 2 has no pair
    assert paired < 1


def test_the_order_of_clips_changes_nothing() -> None:
    vectors, labels = drawn()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(4))
    shuffled = {kind: numbers[order] for kind, numbers in labels.items()}
    torch.testing.assert_close(
        triplet_loss(vectors[order], similarity(shuffled, WEIGHTS), 0.3),
        triplet_loss(vectors, similarity(labels, WEIGHTS), 0.3),
    )


def test_gradients_are_those_of_finite_differences() -> None:
    vectors, labels = drawn(12)
    alike = similarity(labels, WEIGHTS)
    assert torch.autograd.gradcheck(lambda each: triplet_loss(each, alike, 0.5)[0], vectors.requires_grad_())


@pytest.mark.parametrize("label", [UNKNOWN, 3])
def test_without_any_pair_there_is_neither_loss_nor_gradient(label: int) -> None:
    for number in (1, 2, 9):
        vectors = torch.zeros(number, 4, requires_grad=True)
        alike = similarity({"speaker": torch.full((number,), label)}, {"speaker": 1.0})
        loss, paired = triplet_loss(vectors, alike, 0.3)
        loss.backward()
        assert (loss.item(), paired.item()) == (0.0, 0.0)
        assert vectors.grad is not None
        assert not vectors.grad.any()


def test_vectors_that_have_become_one_have_finite_gradients() -> None:
    vectors = torch.ones(8, 4, requires_grad=True)
    loss, _ = triplet_loss(vectors, similarity({"speaker": torch.arange(8) % 2}, {"speaker": 1.0}), 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_a_step_along_the_gradient_brings_clips_of_a_speaker_together() -> None:
    vectors, speaker = drawn()[0], torch.arange(24) % 4
    alike = similarity({"speaker": speaker}, {"speaker": 1.0})
    losses = []
    for _ in range(60):
        loss, _ = triplet_loss(vectors.requires_grad_(), alike, 0.3)
        losses.append(loss.item())
        vectors = (vectors - 2.0 * torch.autograd.grad(loss, vectors)[0]).detach()
    assert losses[0] > 0.3
    assert losses[-1] < 0.1


class Views(Toy):
    """A method with two views of each clip, and attributes that must be passed on."""

    version = 3
    origin = {"file": "digest"}  # noqa: RUF012
    prepared = 0

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        self.prepared = len(next(batches).lengths)

    def forward(self, batch: AudioBatch, done: float):
        step = super().forward(batch, done)
        return step._replace(vectors=torch.cat([step.vectors, 2 * step.vectors]))


def labelled(first: int, parts: int = 1) -> Iterator[AudioBatch]:
    for batch in batches(first, parts):
        speaker = torch.arange(len(batch.lengths)) % 3
        yield batch._replace(labels={"speaker": speaker, "language": torch.full_like(speaker, UNKNOWN)})


def views(**options) -> WithMetadata:
    return WithMetadata(toy(kind=Views), {"speaker": 1.0}, **options)


def test_everything_but_the_loss_is_the_methods() -> None:
    plain, method = toy(kind=Views), views()
    inner: Any = method.method
    assert (method.recipe, method.sample_rate, method.origin) == (plain.recipe, plain.sample_rate, plain.origin)
    assert method.version > plain.version
    assert method.metadata == {"speaker": 1.0}
    assert same(method.exported(), plain.exported())
    method.prepare(labelled(0))
    assert inner.prepared == CLIPS
    before = plain.slow.weight.clone()
    method.stepped(0.5)
    assert inner.stepped_at == [0.5]
    assert not torch.equal(inner.slow.weight, before)


@pytest.mark.parametrize(("done", "share"), [(0.0, 0.0), (0.075, 0.5), (0.15, 1.0), (0.9, 1.0)])
def test_the_term_is_brought_in_over_the_beginning(done: float, share: float) -> None:
    batch = next(labelled(0))
    torch.manual_seed(0)
    own = toy(kind=Views)(batch, done)
    torch.manual_seed(0)
    terms, vectors = views(strength=3.0)(batch, done)
    assert torch.equal(vectors, own.vectors)
    assert terms["own"] == own.terms["loss"]
    torch.testing.assert_close(terms["loss"], terms["own"] + 3.0 * share * terms["triplet"])
    assert terms.keys() == own.terms.keys() | {"own", "triplet", "paired"}
    assert terms["paired"] == 1


def test_views_of_a_clip_share_its_labels() -> None:
    batch = next(labelled(0))
    terms, vectors = views()(batch, 0.5)
    twice = {"speaker": torch.cat([batch.labels["speaker"]] * 2)}
    torch.testing.assert_close(terms["triplet"], triplet_loss(vectors, similarity(twice, {"speaker": 1.0}), 0.3)[0])


def test_half_precision_does_not_reach_the_term() -> None:
    vectors, labels = drawn()
    batch = AudioBatch(torch.randn(24, 6), torch.full((24,), 6), labels)

    class Given(Toy):
        def forward(self, batch, done):
            return super().forward(batch, done)._replace(vectors=vectors.bfloat16())

    with torch.autocast("cpu", torch.bfloat16):
        terms, _ = WithMetadata(Given(), WEIGHTS)(batch, 0.5)
    expected, _ = triplet_loss(vectors.bfloat16().float(), similarity(labels, WEIGHTS), 0.3)
    assert terms["triplet"].dtype == torch.float32
    torch.testing.assert_close(terms["triplet"], expected)


def trained(strength: float, **options) -> tuple[WithMetadata, list]:
    method = views(strength=strength)
    return method, fit(method, lambda first: labelled(first, PLAN.accumulate), PLAN, **options)


def test_training_lowers_the_term_and_resumes_bit_for_bit() -> None:
    plan = replace(PLAN, save_every=0.0)
    states: list = []
    method = views(strength=1.0)
    fit(method, lambda first: labelled(first, 2), plan, save=states.append)
    again = views(strength=1.0)
    fit(again, lambda first: labelled(first, 2), plan, state=states[STEPS // 2])
    assert same(method.state_dict(), again.state_dict())
    last = [history[-1].terms["triplet"] for _, history in (trained(3.0), trained(0.0))]
    assert last[0] < last[1] - 0.01


def test_clips_without_labels_of_a_kind_are_told() -> None:
    with pytest.raises(UpstreamError, match="no labels 'speaker'; leave it out"):
        views()(next(iter(batches(0))), 0.5)


@pytest.mark.parametrize(
    ("weights", "options", "told"),
    [
        ({}, {}, "no metadata to learn from; name kinds of labels"),
        ({"speaker": 0.0}, {}, "the weight of 'speaker' is 0.0; it must be above 0"),
        ({"speaker": math.nan}, {}, "the weight of 'speaker' is nan"),
        ({"speaker": 1e308, "language": 1e308}, {}, "the weights of speaker and language are too large to be added up"),
        (WEIGHTS, {"margin": 3.0}, "margin and strength of metadata are 3.0 and 0.3"),
        (WEIGHTS, {"strength": -1.0}, "margin and strength of metadata are 0.3 and -1.0"),
    ],
)
def test_impossible_weights_are_told(weights: dict[str, float], options: dict[str, float], told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        WithMetadata(toy(), weights, **options)


def test_weights_that_add_up_to_the_same_make_clips_alike_in_the_same_measure() -> None:
    labels = {"a": torch.tensor([0, 0, 1]), "b": torch.tensor([0, 0, 1]), "c": torch.tensor([0, 1, 0])}
    alike = similarity(labels, {"a": 0.1, "b": 0.2, "c": 0.3})
    assert alike[0].tolist()[1:] == [0.5, 0.5]
