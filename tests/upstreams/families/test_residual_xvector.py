"""The residual x-vector beside hyperion's own, and alone beside in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.upstreams.dino_drawn import CLIPS, drawn_clip, drawn_state, stored
from upstreams.base import valid
from upstreams.families.hyperion_features import HyperionMel, speech, without_mean
from upstreams.families.residual_xvector import LEAST, ResidualXVector, Shape, flattened, statistics

AUTHORS = Shape(16, (3, 4, 6, 3), 256, 80)


def network(shape: Shape) -> ResidualXVector:
    built = ResidualXVector(shape)
    built.load_state_dict(drawn_state(built.state_dict()))
    return built.eval()


@pytest.fixture(scope="module", params=["relu6", "relu"])
def hyperions(request: pytest.FixtureRequest) -> tuple[str, ResidualXVector]:
    return request.param, network(AUTHORS._replace(capped=request.param == "relu6"))


def features(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    clip = drawn_clip(seconds)
    mel, frames = HyperionMel(dither=0.0)(clip[None], torch.tensor([len(clip)]))
    return without_mean(mel, frames), speech(clip[None], torch.tensor([len(clip)]))


@pytest.mark.parametrize("seconds", CLIPS)
@torch.inference_mode()
def test_embeddings_are_hyperions(hyperions: tuple[str, ResidualXVector], seconds: float):
    name, built = hyperions
    mel, kept = features(seconds)
    found = built.embedding(mel[:, kept[0]], kept.sum(1))[0].numpy()
    expected = stored[f"embedding {name} {seconds}"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@torch.inference_mode()
def test_every_stage_is_hyperions():
    built = network(AUTHORS)
    mel, _ = features(1.7)
    for stage, (maps, counts) in enumerate(built.encoder_net(mel, torch.tensor([mel.shape[1]]))):
        size = maps.shape[3]
        found, expected = flattened(maps)[0, ::37, :: max(1, size // 11)].numpy(), stored[f"stage {stage}"]
        assert counts.tolist() == [size]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_a_batch_changes_nothing_of_a_clip(stride: int):
    built = network(Shape(4, (1, 2, 1, 1), 12, 80, stride))
    frames = torch.tensor([93, 41, 8, 3, 1])
    mel = torch.from_numpy(np.random.RandomState(3).standard_normal((5, 93, 80))).float()
    mel = mel.masked_fill(~valid(frames, 93)[:, :, None], 0.0)
    together, vectors = built.encoder_net(mel, frames), built.embedding(mel, frames)
    for row, count in enumerate(frames.tolist()):
        one, length = mel[row : row + 1, :count], frames[row : row + 1]
        for (maps, counts), (alone, (size,)) in zip(together, built.encoder_net(one, length), strict=True):
            assert counts[row] == size == alone.shape[3]
            torch.testing.assert_close(maps[row, :, :, :size], alone[0], atol=1e-4, rtol=1e-4)
            assert not maps[row, :, :, size:].any()
        torch.testing.assert_close(vectors[row], built.embedding(one, length)[0], atol=1e-4, rtol=1e-4)


def test_statistics_are_mean_and_deviation_of_the_valid_frames():
    frames = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 9))).float()
    found = statistics(frames, torch.tensor([9, 4]))
    for row, count in enumerate((9, 4)):
        kept = frames[row, :, :count].numpy()
        np.testing.assert_allclose(found[row], np.concatenate([kept.mean(1), kept.std(1)]), rtol=1e-5)
    still = statistics(torch.ones(1, 3, 5), torch.tensor([5]))
    np.testing.assert_allclose(still[0, 3:], LEAST**0.5, rtol=1e-5)


def test_the_authors_network_has_their_number_of_weights():
    assert sum(each.numel() for each in ResidualXVector(AUTHORS).parameters()) == 1_988_912
    assert AUTHORS.width == 1280
    assert AUTHORS.hops == (1, 1, 2, 4, 8)


def test_every_weight_takes_part_in_the_embedding():
    built = ResidualXVector(Shape(4, (2, 1, 1, 1), 6, 80, 2)).train()
    built.embedding(torch.randn(3, 40, 80), torch.tensor([40, 40, 40])).pow(3).sum().backward()
    still = [name for name, each in built.named_parameters() if each.grad is None or not each.grad.any()]
    assert not still


def test_norms_start_as_if_they_had_seen_nothing():
    norms = [each for each in ResidualXVector(AUTHORS).modules() if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(norms) == 1 + 2 * 16 + 3 + 1
    assert all(bool((each.running_var == 1).all()) and not each.running_mean.any() for each in norms)
