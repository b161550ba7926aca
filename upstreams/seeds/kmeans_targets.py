"""Units to predict, found on the fly: the nearest of k centres of frozen features (Hsu et al., 2021).

Nothing is labelled ahead of time: frozen features and centres are buffers of whoever trains with them.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError, valid
from upstreams.spectral import DELTA_SCALES, Mfcc
from upstreams.threads import one_thread

BATCH, PASSES, PATIENCE = 10_000, 100, 100  # of k-means: frames, and HuBERT's own limits
EVERY = 2  # cepstral frames of 10 ms from one frame to the next


class Cepstra(nn.Module):
    """13 cepstral coefficients with deltas and delta-deltas, a frame every 20 ms, as HuBERT's first units are of.

    centered: whether each clip's mean is taken out, which tells of speaker and channel.
    """

    dim, hop, window = 39, 320, 400

    def __init__(self, centered: bool = False) -> None:
        super().__init__()
        self.centered, self.mfcc = centered, Mfcc()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) to (B, T, 39), zero beyond each clip's end."""
        frames, counts = self.mfcc(waveforms, lengths)
        statics = self.mfcc.scale
        raw = frames[:, ::EVERY, 0] * torch.cat([statics / by for by in DELTA_SCALES])
        raw = raw + nn.functional.pad(self.mfcc.center, (0, 2 * len(statics)))
        counts = -(-counts // EVERY)
        mask = valid(counts, raw.shape[1])[:, :, None]
        if self.centered:
            raw = raw - (raw * mask).sum(1, keepdim=True) / counts[:, None, None]
        return raw * mask


class Codebook(nn.Module):
    """Centres (number, dim) of frames; zero until they are found."""

    def __init__(self, number: int, dim: int) -> None:
        super().__init__()
        self.centers: Tensor
        self.register_buffer("centers", torch.zeros(number, dim))

    def find(self, frames: Tensor, trials: int) -> None:
        """Centres of frames (N, dim) by scikit-learn's k-means, its seed drawn from torch's generator.

        trials: starts, the best of which is gone on from. Raises UpstreamError for fewer frames than centres, and for
        frames that are not finite.
        """
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning

        number, seed = len(self.centers), int(torch.randint(2**31, ()))
        if len(frames) < number:
            raise UpstreamError(f"{len(frames)} frames are too few for {number} units; give more or longer clips")
        if not bool(frames.isfinite().all()):
            raise UpstreamError("no units can be found, as the first batches give frames that are not finite")
        clusters = MiniBatchKMeans(
            number, random_state=seed, batch_size=BATCH, max_iter=PASSES, max_no_improvement=PATIENCE, tol=0.0,
            n_init=trials, reassignment_ratio=0.0,
        )  # fmt: skip
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore", ConvergenceWarning)  # silence has few frames that differ
            clusters.fit(frames.double().cpu().numpy())
        self.centers.copy_(torch.from_numpy(clusters.cluster_centers_))

    def forward(self, frames: Tensor) -> Tensor:
        """The number (...) of the centre nearest to each of the frames (..., dim)."""
        with torch.autocast(frames.device.type, enabled=False):
            centers = self.centers.float()
            return (centers.square().sum(1) - 2 * frames.float() @ centers.T).argmin(-1)
