"""Units of frames, beside scikit-learn's own and torchaudio's cepstra."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from tests.upstreams.models import padded
from upstreams.base import UpstreamError
from upstreams.seeds.kmeans_targets import BATCH, PASSES, PATIENCE, Cepstra, Codebook
from upstreams.threads import one_thread
from upstreams.torchaudio_guard import guard

guard()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3_000, 5) + 4.0 * torch.randn(12, 5)[torch.randint(12, (3_000,))]


def test_units_are_those_of_scikit_learn(frames: Tensor) -> None:
    from sklearn.cluster import MiniBatchKMeans

    codebook = Codebook(12, 5)
    torch.manual_seed(3)
    codebook.find(frames, 2)
    torch.manual_seed(3)
    options = {"max_iter": PASSES, "max_no_improvement": PATIENCE, "reassignment_ratio": 0.0, "tol": 0.0}
    seed = int(torch.randint(2**31, ()))
    wanted = MiniBatchKMeans(12, random_state=seed, batch_size=BATCH, n_init=2, **options).fit(frames.double().numpy())
    others = torch.randn(2, 300, 5) * 4.0
    told = wanted.predict(others.flatten(0, 1).double().numpy())
    assert codebook(others).flatten().tolist() == told.tolist()
    assert len(set(told.tolist())) == 12


def test_units_are_the_same_with_any_number_of_threads(frames: Tensor) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            codebook = Codebook(40, 5)
            torch.manual_seed(1)
            with threadpool_limits(threads):  # those of scikit-learn, which are not torch's
                codebook.find(frames, 1)
            assert torch.get_num_threads() == threads
            found.append(codebook.centers)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_units_follow_torchs_generator(frames: Tensor) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        codebook = Codebook(40, 5)
        codebook.find(frames, 1)
        found.append(codebook.centers)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_half_precision_around_it_changes_no_unit(frames: Tensor) -> None:
    codebook = Codebook(40, 5)
    codebook.find(frames, 1)
    with torch.autocast("cpu", torch.bfloat16):
        halved = codebook(frames)
    assert torch.equal(halved, codebook(frames))


def test_silence_has_units_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    codebook = Codebook(4, 3)
    codebook.find(torch.zeros(50, 3), 1)
    assert codebook(torch.zeros(2, 3)).unique().numel() == 1
    assert not recwarn.list


def test_fewer_frames_than_units_are_refused() -> None:
    with pytest.raises(UpstreamError, match="3 frames are too few for 4 units; give more or longer clips"):
        Codebook(4, 2).find(torch.randn(3, 2), 1)


def test_frames_that_are_not_finite_are_refused() -> None:
    frames = torch.randn(9, 2)
    frames[4, 1] = float("nan")
    with pytest.raises(UpstreamError, match="no units can be found, as the first batches give frames that are not"):
        Codebook(4, 2).find(frames, 1)


def failing() -> None:
    assert torch.get_num_threads() == 1
    raise UpstreamError


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(UpstreamError), one_thread():
            failing()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("centered", [False, True])
def test_cepstra_are_every_second_of_torchaudios(centered: bool) -> None:
    import torchaudio
    from torchaudio.compliance import kaldi

    torch.manual_seed(0)
    clips = [torch.randn(size) * torch.linspace(0.01, 0.3, size) for size in (8_000, 3_333, 400)]
    given = Cepstra(centered)(*padded(clips, 700))
    for row, clip in zip(given, clips, strict=True):
        statics = kaldi.mfcc(clip[None], sample_frequency=16_000, use_energy=False).T
        first = torchaudio.functional.compute_deltas(statics)
        second = torchaudio.functional.compute_deltas(first)
        wanted = torch.cat([statics, first, second]).T[::2]
        wanted = wanted - wanted.mean(0) if centered else wanted
        assert len(wanted) == (len(clip) - 400) // 320 + 1
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-3, atol=2e-3)
        assert not row[len(wanted) :].any()
