"""What every head promises, by walking the registry."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from downstreams import HEADS
from downstreams.base import Head, LayerSum, Trial, lengths_of, masked_mean
from downstreams.classification import Classification
from downstreams.errors import HeadError
from downstreams.tagging import Tagging

LAYERS, DIM = 3, 10
TARGETS = ["aa b", "b|c", "c", "aa b|c", "b", "aa b"]
OPTIONS: dict[str, dict[str, Any]] = {
    "classification": {"hidden": 7},
    "tagging": {"hidden": 7},
    "transcription": {"projection": 6, "hidden": 5, "recurrent_layers": 2, "stride": 2},
    "cosine": {"center": True},
    "xvector": {"channels": 6, "pooled": 8, "embedding": 5},
}
LENGTHS = torch.tensor([37, 4, 20, 1, 36, 15])


def build(name: str) -> Head:
    torch.manual_seed(0)
    head = HEADS[name](LAYERS, DIM, TARGETS, **OPTIONS.get(name, {})).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.5)
    return head


def padded(seed: int = 0, size: int = 37) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    frames = torch.randn(len(LENGTHS), size, LAYERS, DIM, dtype=torch.double, generator=random)
    return frames * (torch.arange(size) < LENGTHS[:, None])[:, :, None, None]


def outcome(head: Head, frames: Tensor, lengths: Tensor | None) -> list[Any]:
    with torch.no_grad():
        return head.decode(head(frames, lengths), lengths)


def same(left: list[Any], right: list[Any]) -> bool:
    if isinstance(left[0], Tensor):
        return torch.allclose(torch.stack(left), torch.stack(right), rtol=1e-9, atol=1e-11)
    return left == right


@pytest.mark.parametrize("name", HEADS)
def test_padding_and_company_change_nothing(name: str) -> None:
    head, frames = build(name), padded()
    longer = nn.functional.pad(frames, (0, 0, 0, 0, 0, 23))
    for row, size in enumerate(LENGTHS):
        own = head(frames[row : row + 1, :size], LENGTHS[row : row + 1])[0]
        for outputs in (head(frames, LENGTHS)[row], head(longer, LENGTHS)[row]):
            steps = outputs[: len(own)] if name == "transcription" else outputs
            torch.testing.assert_close(steps, own, rtol=1e-9, atol=1e-10)
    assert same(outcome(head, frames, LENGTHS), outcome(head, longer, LENGTHS))


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].trained])
def test_padding_does_not_change_the_loss_or_its_gradients(name: str) -> None:
    head, frames, found = build(name), padded(), []
    for inputs in (frames, nn.functional.pad(frames, (0, 0, 0, 0, 0, 11))):
        loss = head.loss(head(inputs, LENGTHS), head.encode(TARGETS), LENGTHS)
        found.append([loss, *torch.autograd.grad(loss, list(head.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].view == "summary"])
def test_the_time_mean_of_a_clip_says_as_much_as_its_frames(name: str) -> None:
    head, frames = build(name), padded()
    means = torch.stack([clip[:size].mean(0) for clip, size in zip(frames, LENGTHS, strict=True)])
    torch.testing.assert_close(head(means), head(frames, LENGTHS), rtol=1e-10, atol=1e-10)
    head, frames, means = head.float(), frames.float(), means.float()
    torch.testing.assert_close(head(means), head(frames, LENGTHS), rtol=1e-4, atol=1e-5)
    # Few clips take another order of the same products.
    torch.testing.assert_close(head(means[:1]), head(means)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].trained])
def test_one_batch_can_be_learnt_by_heart(name: str) -> None:
    torch.manual_seed(0)
    head, frames = HEADS[name](LAYERS, DIM, TARGETS, **OPTIONS.get(name, {})), padded().float() + 0.1
    lengths = torch.full_like(LENGTHS, 37)
    frames = frames + torch.randn(len(LENGTHS), 1, 1, DIM)
    optimizer, encoded = torch.optim.Adam(head.parameters(), lr=3e-2), head.encode(TARGETS)
    losses = []
    for _ in range(60):
        loss = head.loss(head(frames, lengths), encoded, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", HEADS)
def test_layer_weights_start_uniform_and_sum_to_one(name: str) -> None:
    head = HEADS[name](LAYERS, DIM, TARGETS, **OPTIONS.get(name, {}))
    torch.testing.assert_close(head.layer_sum.weights, torch.full((LAYERS,), 1 / LAYERS))


@pytest.mark.parametrize("name", HEADS)
def test_options_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="unheard_of"):
        HEADS[name](LAYERS, DIM, TARGETS, unheard_of=1)


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].judged_on == "labels"])
def test_scores_need_a_prediction_and_a_reference_for_every_clip(name: str) -> None:
    predictions = dict(zip("uvwxyz", outcome(build(name), padded(), LENGTHS), strict=True))
    references = dict(zip("uvwxyz", TARGETS, strict=True))
    scores, rows = HEADS[name].score(predictions, references)
    assert set(HEADS[name].metrics) <= set(scores)
    assert [row["id"] for row in rows] == list("uvwxyz")
    with pytest.raises(HeadError, match="no prediction for 1 of 6 clips, such as 'w'"):
        HEADS[name].score({key: value for key, value in predictions.items() if key != "w"}, references)
    with pytest.raises(HeadError, match="no reference for 1 of 6 clips, such as 'x'"):
        HEADS[name].score(predictions, {key: value for key, value in references.items() if key != "x"})


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].judged_on == "labels"])
def test_a_prediction_that_is_not_a_number_is_refused_by_id(name: str) -> None:
    predictions = dict(zip("uvwxyz", outcome(build(name), padded(), LENGTHS), strict=True))
    references = dict(zip("uvwxyz", TARGETS, strict=True))
    with pytest.raises(HeadError, match="the predictions for 1 clips are NaN, such as that for 'w'"):
        HEADS[name].score(predictions | {"w": float("nan")}, references)


@pytest.mark.parametrize("wrong", [{"a": float("nan")}, {"b": float("-inf")}, {"c": 0.0}])
def test_tags_need_one_finite_score_for_each_class_of_each_clip(wrong: dict[str, float]) -> None:
    scores = {key: {"a": 0.5, "b": -0.5} for key in "xyz"}
    references = {"x": "a", "y": "b", "z": "a|b"}
    assert HEADS["tagging"].score(scores, references)[0]["map"] == pytest.approx(100 * 2 / 3)
    with pytest.raises(HeadError, match=r"the scores of 'y' are not one finite number for each of \['a', 'b'\]"):
        HEADS["tagging"].score(scores | {"y": scores["y"] | wrong}, references)
    with pytest.raises(HeadError, match="the scores of 'z' are not one"):
        HEADS["tagging"].score(scores | {"z": {"a": 0.1}}, references)


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].judged_on == "trials"])
def test_scores_of_trials_need_both_embeddings(name: str) -> None:
    predictions = dict(zip("uvwxyz", outcome(build(name), padded(), LENGTHS), strict=True))
    trials = [Trial("u", "z", True), Trial("v", "w", False), Trial("x", "y", False)]
    scores, rows = HEADS[name].score(predictions, trials)
    assert set(scores) == set(HEADS[name].metrics)
    assert [(row["enroll"], row["test"], row["target"]) for row in rows] == trials
    with pytest.raises(HeadError, match="no embedding for 1 of 7 clips in trials, such as 'q'"):
        HEADS[name].score(predictions, [*trials, Trial("u", "q", False)])
    with pytest.raises(HeadError, match="2 of 6 embeddings are of clips in no trial, such as 'x'"):
        HEADS[name].score(predictions, trials[:2])


@pytest.mark.parametrize("shape", [(5, LAYERS, DIM), (5, 7, LAYERS, DIM), (LAYERS, DIM)])
def test_layer_sum_weighs_layers_by_the_softmax_of_its_logits(shape: tuple[int, ...]) -> None:
    layer_sum, features = LayerSum(LAYERS).double(), torch.randn(shape, dtype=torch.double)
    nn.init.normal_(layer_sum.logits)
    weights = layer_sum.logits.detach().exp() / layer_sum.logits.detach().exp().sum()
    expected = sum(weights[layer] * features[..., layer, :] for layer in range(LAYERS))
    torch.testing.assert_close(layer_sum(features), expected)


def test_masked_mean_counts_valid_frames_only() -> None:
    frames, lengths = torch.randn(3, 6, 2, 4), torch.tensor([6, 1, 3])
    for values in (frames, frames[:, :, 0]):
        expected = torch.stack([clip[:size].mean(0) for clip, size in zip(values, lengths, strict=True)])
        torch.testing.assert_close(masked_mean(values, lengths), expected)
    assert lengths_of(frames, None).tolist() == [6, 6, 6]


def test_classification_reports_every_metric_in_percent() -> None:
    predictions, references = {"u": "a", "v": "a", "w": "b"}, {"w": "b", "u": "a", "v": "c"}
    scores, rows = Classification.score(predictions, references)
    assert scores == pytest.approx({"accuracy": 200 / 3, "micro_f1": 200 / 3, "macro_f1": 500 / 9, "uar": 200 / 3})
    assert rows[2] == {"id": "v", "reference": "c", "prediction": "a", "correct": False}


def test_classification_learns_its_classes_from_training_clips_alone() -> None:
    head = Classification(LAYERS, DIM, ["b", "a", "b"])
    assert head.classes == ["a", "b"]
    assert head.encode(["b", "a"]).tolist() == [1, 0]
    assert head.decode(torch.tensor([[0.1, 0.2], [3.0, 0.2]])) == ["b", "a"]
    with pytest.raises(HeadError, match="label 'c' is in no training clip"):
        head.encode(["a", "c"])
    with pytest.raises(HeadError, match="at least two labels"):
        Classification(LAYERS, DIM, ["a", "a"])
    with pytest.raises(HeadError, match="hidden must be at least 1"):
        Classification(LAYERS, DIM, ["a", "b"], hidden=0)


def test_tagging_reads_several_labels_and_none() -> None:
    head = Tagging(LAYERS, DIM, ["dog|rain", "", "cat"])
    assert head.classes == ["cat", "dog", "rain"]
    assert head.encode(["rain|dog", "", "cat"]).tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert head.decode(torch.tensor([[-1.25, 40.0, 50.0]])) == [{"cat": -1.25, "dog": 40.0, "rain": 50.0}]
    with pytest.raises(HeadError, match="label 'owl' is in no training clip"):
        head.encode(["owl"])
    with pytest.raises(HeadError, match="none in any"):
        Tagging(LAYERS, DIM, ["", " | "])


def test_tagging_reports_mean_average_precision_and_what_it_left_out() -> None:
    def scores(cat: float, dog: float) -> dict[str, float]:
        return {"cat": cat, "dog": dog, "owl": 0.0}

    predictions = {"u": scores(2.0, -1.0), "v": scores(1.0, 3.0), "w": scores(-1.0, -2.0)}
    found, rows = Tagging.score(predictions, {"u": "", "v": "cat|dog", "w": ""})
    assert found == {"map": pytest.approx(75.0), "classes_without_positives": 1.0}
    assert rows[1]["prediction"] == "cat|dog"
    assert rows[2]["prediction"] == ""
    with pytest.raises(HeadError, match="label 'fox' is in no training clip"):
        Tagging.score(predictions, {"u": "fox", "v": "cat", "w": ""})


def test_listing_the_heads_does_not_import_torch() -> None:
    program = "import sys, downstreams; assert 'cosine' in list(downstreams.HEADS); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
