from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from downstreams.base import Trial
from downstreams.errors import HeadError
from downstreams.verification import (
    Cosine,
    TimeDelay,
    XVector,
    cosine_scores,
    mean_and_standard_deviation,
    random_frame_segments,
)
from tests.downstreams.memory import Clips, summarized, trials, voices


def unseen() -> Clips:
    return summarized(voices(seed=2, first=20))


def selected(head: Cosine, valid: Clips) -> Cosine:
    train = summarized(voices(seed=1))
    batches = (torch.stack(train.clips[start : start + 7]) for start in range(0, len(train), 7))
    head.select(batches, dict(zip(valid.ids, valid.clips, strict=True)), trials(valid))
    return head


def test_the_layer_is_that_with_the_lowest_validation_error() -> None:
    head, valid = selected(Cosine(3, 12, [], center=True), unseen()), unseen()
    assert head.layer_sum.weights.tolist() == [0, 1, 0]
    errors = []
    for layer in range(3):
        fixed = selected(Cosine(3, 12, [], center=True, layer=layer), valid)
        predictions = dict(zip(valid.ids, fixed.decode(fixed(torch.stack(valid.clips))), strict=True))
        errors.append(Cosine.score(predictions, trials(valid))[0]["eer"])
    assert int(np.argmin(errors)) == 1
    assert errors[1] < min(errors[0], errors[2]) - 5


def test_equal_layers_go_to_the_lower_one() -> None:
    valid = unseen()
    twice = Clips(valid.targets, [clip[[0, 1, 1]] for clip in valid.clips])
    assert selected(Cosine(3, 12, []), twice).layer_sum.weights.tolist() == [0, 1, 0]


def test_a_given_layer_is_not_chosen_but_used() -> None:
    head, valid = selected(Cosine(3, 12, [], layer=2), unseen()), unseen()
    assert head.layer_sum.weights.tolist() == [0, 0, 1]
    torch.testing.assert_close(head(torch.stack(valid.clips)), torch.stack(valid.clips)[:, 2])


def test_centring_subtracts_the_training_mean_whatever_the_batches() -> None:
    train, valid = summarized(voices(seed=1)), unseen()
    head = selected(Cosine(3, 12, [], center=True, layer=1), valid)
    expected = torch.stack(valid.clips)[:, 1] - torch.stack(train.clips).mean(0)[1]
    torch.testing.assert_close(head(torch.stack(valid.clips)), expected)
    others = [trial for trial in trials(valid) if not trial.target]
    plain = selected(Cosine(3, 12, [], layer=1), valid)
    means = [
        cosine_scores(dict(zip(valid.ids, each(torch.stack(valid.clips)), strict=True)), others)
        for each in (head, plain)
    ]
    assert means[0].mean() < 0.2 < 0.6 < means[1].mean()


def test_the_layer_is_chosen_on_centred_summaries() -> None:
    """Loudness hides the speaker from the angle to the origin in layer 1, but not from that to the mean."""
    random = torch.Generator().manual_seed(0)
    voice, offset = torch.randn(8, 12, generator=random), 20 * torch.randn(12, generator=random)

    def clips(speakers: list[int]) -> Clips:
        rows = []
        for number in [number for number in speakers for _ in range(6)]:
            noisy = voice[number] + 2 * torch.randn(12, generator=random)
            rows.append(torch.stack([noisy, offset + 20 ** torch.randn((), generator=random) * voice[number]]))
        return Clips([f"{number}" for number in speakers for _ in range(6)], rows)

    train, valid, layers = clips([0, 1, 2, 3]), clips([4, 5, 6, 7]), []
    train.clips += [torch.stack([-row[0], 2 * offset - row[1]]) for row in train.clips]
    for center in (True, False):
        head = Cosine(2, 12, [], center=center)
        head.select([torch.stack(train.clips)], dict(zip(valid.ids, valid.clips, strict=True)), trials(valid))
        layers.append(head.layer_sum.weights.argmax().item())
    assert layers == [1, 0]


def test_a_chosen_layer_survives_saving() -> None:
    head, copy = selected(Cosine(3, 12, [], center=True), unseen()), Cosine(3, 12, [], center=True)
    copy.load_state_dict(head.state_dict())
    clips = torch.stack(unseen().clips)
    torch.testing.assert_close(copy(clips), head(clips), rtol=0, atol=0)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(HeadError, match="layer must be between 0 and 2, not 3"):
        Cosine(3, 12, [], layer=3)


def test_cosines_are_those_of_numpy_for_any_kind_of_embedding() -> None:
    random = np.random.default_rng(0)
    a, b, c = random.normal(size=(3, 8))
    found = cosine_scores(
        {"a": a, "b": torch.tensor(b), "c": c.tolist()}, [Trial("a", "b", True), Trial("c", "a", False)]
    )
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in ((a, b), (c, a))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(HeadError, match="needs trials"):
        cosine_scores({}, [])


def test_an_embedding_that_no_trial_asks_for_is_named() -> None:
    embeddings = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 1.0], "stray": [1.0, 2.0]}
    asked = [Trial("a", "b", True), Trial("a", "c", False)]
    for refused in (cosine_scores, XVector.score, Cosine.score):
        with pytest.raises(HeadError, match="1 of 4 embeddings are of clips in no trial, such as 'stray'"):
            refused(embeddings, asked)
    with pytest.raises(HeadError, match="no embedding for 1 of 4 clips in trials, such as 'gone'"):
        cosine_scores(embeddings, [*asked, Trial("gone", "a", False)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_named(value: float) -> None:
    embeddings = {"a": [1.0, 0.0], "b": [1.0, value], "c": [0.0, 1.0]}
    with pytest.raises(HeadError, match="1 of 3 embeddings are not finite, such as that of 'b'"):
        XVector.score(embeddings, [Trial("a", "b", True), Trial("a", "c", False)])


def test_outcomes_hold_the_score_of_each_trial() -> None:
    embeddings = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 1.0]}
    scores, rows = XVector.score(embeddings, [Trial("a", "b", True), Trial("a", "c", False)])
    assert scores == {"eer": 0.0, "min_dcf": 0.0}
    assert rows[0] == {"enroll": "a", "test": "b", "target": True, "score": pytest.approx(0.5**0.5)}


def test_the_x_vector_is_that_of_s3prl() -> None:
    program = """
from upstreams.torchaudio_guard import guard
guard()
import torch
from s3prl.downstream.sv_voxceleb1.model import AMSoftmaxLoss, Model
from downstreams.verification import XVector
torch.manual_seed(0)
ours = XVector(1, 4, ["x", "y", "z"], channels=6, pooled=10, embedding=6).double()
theirs = Model(6, 10, "SP", "XVector", "UtteranceExtractor", dict(agg_dim=10, dropout_p=0.0, batch_norm=False)).double()
for layer, tdnn in zip(ours.frames, theirs.framelevel_feature_extractor.module, strict=True):
    tdnn.kernel.load_state_dict(layer.linear.state_dict())
theirs.utterancelevel_feature_extractor.linear1.load_state_dict(ours.embedding.state_dict())
theirs.utterancelevel_feature_extractor.linear2.load_state_dict(ours.second.state_dict())
am = AMSoftmaxLoss(6, 3, s=30.0, m=0.4).double()
am.W.data = ours.prototypes.data.T
frames, targets = torch.randn(5, 40, 1, 4, dtype=torch.double), ["z", "x", "y", "y", "x"]
hidden, mask = ours.projection(frames[:, :, 0]), torch.zeros(5, 40, dtype=torch.double)
torch.testing.assert_close(ours(frames), theirs.inference(hidden, mask), rtol=1e-5, atol=1e-6)
loss = ours.loss(ours(frames), ours.encode(targets))
torch.testing.assert_close(loss, am(theirs(hidden, mask), ours.encode(targets)), rtol=1e-5, atol=1e-6)
assert loss > 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_published_size_is_the_default() -> None:
    head = XVector(1, 240, ["x", "y"])
    shapes = {name: tuple(weight.shape) for name, weight in head.named_parameters()}
    assert [shapes[f"frames.{layer}.linear.weight"] for layer in range(5)] == [
        (512, 5 * 512),
        (512, 3 * 512),
        (512, 3 * 512),
        (512, 512),
        (1500, 512),
    ]
    assert head.context == 15
    assert (head.scale, head.margin) == (30.0, 0.4)
    assert head.embedding.weight.shape == (512, 3000)


def test_a_time_delay_layer_is_a_dilated_convolution() -> None:
    layer = TimeDelay(4, 6, taps=3, dilation=2).double()
    frames = torch.randn(2, 11, 4, dtype=torch.double)
    kernel = layer.linear.weight.view(6, 3, 4).transpose(1, 2)
    expected = nn.functional.conv1d(frames.transpose(1, 2), kernel, layer.linear.bias, dilation=2).relu()
    torch.testing.assert_close(layer(frames), expected.transpose(1, 2))


def test_statistics_count_valid_frames_only_and_bear_one_frame() -> None:
    frames, lengths = torch.randn(3, 9, 4, dtype=torch.double), torch.tensor([9, 1, 5])
    pooled = mean_and_standard_deviation(frames, lengths)
    for row, size in enumerate(lengths):
        deviation = frames[row, :size].std(0) if size > 1 else torch.zeros(4, dtype=torch.double)
        expected = torch.cat([frames[row, :size].mean(0), deviation])
        torch.testing.assert_close(pooled[row], expected, atol=2e-6, rtol=1e-6)
    constant = torch.ones(2, 5, 3, requires_grad=True)
    mean_and_standard_deviation(constant, torch.tensor([5, 1])).sum().backward()
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


def test_embeddings_have_length_one() -> None:
    head = XVector(1, 4, ["x", "y"], channels=6, pooled=10, embedding=6)
    rows = torch.stack(head.decode(head(torch.randn(3, 20, 1, 4))))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert (rows >= 0).all()


def test_crops_are_stretches_of_valid_frames_and_only_in_training() -> None:
    lengths = torch.tensor([30, 4, 9])
    frames = (torch.arange(30.0)[None, :] + 100 * torch.arange(3)[:, None])[:, :, None, None]
    starts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        cut, sizes = random_frame_segments(frames, lengths, 8)
        assert sizes.tolist() == [8, 4, 8]
        for row, size in enumerate(sizes):
            values = cut[row, :size, 0, 0] - 100 * row
            assert (values.diff() == 1).all()
            assert values[-1] < lengths[row]
        starts.add(int(cut[0, 0, 0, 0]))
    assert min(starts) == 0 or len(starts) > 10
    assert max(starts) <= 22
    head, many = XVector(1, 4, ["x", "y"], channels=6, pooled=10, embedding=6, crop=16), torch.randn(2, 50, 1, 4)
    head.eval()
    torch.testing.assert_close(head(many), head(many), rtol=0, atol=0)
    head.train()
    assert not torch.equal(head(many), head(many))


def test_one_speaker_is_not_enough() -> None:
    with pytest.raises(HeadError, match="at least two training speakers"):
        XVector(1, 4, ["x", "x"])
    with pytest.raises(HeadError, match="speaker 'z' is in no training clip"):
        XVector(1, 4, ["x", "y"]).encode(["z"])
