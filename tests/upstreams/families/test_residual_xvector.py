"""Compares the residual x-vector network with hyperion's outputs, and a clip alone with the same clip in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.upstreams.dino_drawn import CLIPS, drawn_clip, drawn_state, stored
from upstreams.base import valid
from upstreams.families.hyperion_features import HyperionMel, speech_frames, without_mean
from upstreams.families.residual_xvector import LEAST, ResidualXVector, Shape, flattened, statistics_pooling

AUTHORS = Shape(16, (3, 4, 6, 3), 256, 80)


def pseudo_random_network(shape: Shape) -> ResidualXVector:
    network = ResidualXVector(shape)
    network.load_state_dict(drawn_state(network.state_dict()))
    return network.eval()


@pytest.fixture(scope="module", params=["relu6", "relu"])
def hyperions(request: pytest.FixtureRequest) -> tuple[str, ResidualXVector]:
    return request.param, pseudo_random_network(AUTHORS._replace(capped=request.param == "relu6"))


def features(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    clip = drawn_clip(seconds)
    mel, frames = HyperionMel(dither=0.0)(clip[None], torch.tensor([len(clip)]))
    return without_mean(mel, frames), speech_frames(clip[None], torch.tensor([len(clip)]))


@pytest.mark.parametrize("seconds", CLIPS)
@torch.inference_mode()
def test_embeddings_are_hyperions(hyperions: tuple[str, ResidualXVector], seconds: float):
    name, network = hyperions
    mel, speech = features(seconds)
    embedding = network.embedding(mel[:, speech[0]], speech.sum(1))[0].numpy()
    expected = stored[f"embedding {name} {seconds}"]
    assert np.abs(embedding - expected).max() <= 1e-4 * np.abs(expected).max()


@torch.inference_mode()
def test_every_stage_is_hyperions():
    network = pseudo_random_network(AUTHORS)
    mel, _ = features(1.7)
    for stage, (maps, counts) in enumerate(network.encoder_net(mel, torch.tensor([mel.shape[1]]))):
        size = maps.shape[3]
        values, expected = flattened(maps)[0, ::37, :: max(1, size // 11)].numpy(), stored[f"stage {stage}"]
        assert counts.tolist() == [size]
        assert values.shape == expected.shape
        assert np.abs(values - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_a_clip_has_the_same_maps_and_embedding_alone_and_in_a_batch(stride: int):
    network = pseudo_random_network(Shape(4, (1, 2, 1, 1), 12, 80, stride))
    frames = torch.tensor([93, 41, 8, 3, 1])
    mel = torch.from_numpy(np.random.RandomState(3).standard_normal((5, 93, 80))).float()
    mel = mel.masked_fill(~valid(frames, 93)[:, :, None], 0.0)
    together, vectors = network.encoder_net(mel, frames), network.embedding(mel, frames)
    for row, count in enumerate(frames.tolist()):
        clip, length = mel[row : row + 1, :count], frames[row : row + 1]
        for (maps, counts), (alone, (size,)) in zip(together, network.encoder_net(clip, length), strict=True):
            assert counts[row] == size == alone.shape[3]
            torch.testing.assert_close(maps[row, :, :, :size], alone[0], atol=1e-4, rtol=1e-4)
            assert not maps[row, :, :, size:].any()
        torch.testing.assert_close(vectors[row], network.embedding(clip, length)[0], atol=1e-4, rtol=1e-4)


def test_statistics_are_mean_and_deviation_of_the_valid_frames():
    frames = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 9))).float()
    pooled = statistics_pooling(frames, torch.tensor([9, 4]))
    for row, count in enumerate((9, 4)):
        valid_frames = frames[row, :, :count].numpy()
        np.testing.assert_allclose(pooled[row], np.concatenate([valid_frames.mean(1), valid_frames.std(1)]), rtol=1e-5)
    constant = statistics_pooling(torch.ones(1, 3, 5), torch.tensor([5]))
    np.testing.assert_allclose(constant[0, 3:], LEAST**0.5, rtol=1e-5)


def test_the_authors_network_has_their_number_of_weights():
    assert sum(weight.numel() for weight in ResidualXVector(AUTHORS).parameters()) == 1_988_912
    assert AUTHORS.width == 1280
    assert AUTHORS.hops == (1, 1, 2, 4, 8)


def test_every_weight_takes_part_in_the_embedding():
    network = ResidualXVector(Shape(4, (2, 1, 1, 1), 6, 80, 2)).train()
    network.embedding(torch.randn(3, 40, 80), torch.tensor([40, 40, 40])).pow(3).sum().backward()
    unreached = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not unreached


def test_norms_start_with_initial_running_statistics():
    modules = ResidualXVector(AUTHORS).modules()
    norms = [module for module in modules if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(norms) == 1 + 2 * 16 + 3 + 1
    assert all(bool((norm.running_var == 1).all()) and not norm.running_mean.any() for norm in norms)
