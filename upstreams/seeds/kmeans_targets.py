"""K-means targets for masked prediction, assigned during training (Hsu et al., 2021).

The target of a frame is the index of the cluster centre nearest to its frozen features. No labels are written to files
beforehand: the feature extractor and the centres are part of the model that is trained.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError, valid
from upstreams.spectral import DELTA_SCALES, Mfcc
from upstreams.threads import one_thread

BATCH, PASSES, PATIENCE = 10_000, 100, 100  # of k-means, as HuBERT: frames of a mini-batch, epochs, patience
EVERY = 2  # cepstral frames of 10 ms from one frame to the next


class Cepstra(nn.Module):
    """13 cepstral coefficients with deltas and delta-deltas, one frame per 20 ms: the features of HuBERT's first units.

    centered: whether each clip's mean, which carries information on speaker and channel, is subtracted.
    """

    dim, hop, window = 39, 320, 400

    def __init__(self, centered: bool = False) -> None:
        super().__init__()
        self.centered, self.mfcc = centered, Mfcc()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Map waveforms (B, S) to frames (B, T, 39), zero beyond each clip's end."""
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
    """Cluster centres (number, dim) of frames; zero until `find` has computed them."""

    def __init__(self, number: int, dim: int) -> None:
        super().__init__()
        self.centers: Tensor
        self.register_buffer("centers", torch.zeros(number, dim))

    def find(self, frames: Tensor, trials: int) -> None:
        """Compute the centres of frames (N, dim) by scikit-learn's k-means, with a seed from torch's generator.

        trials: number of initialisations; the best one is used. Raises UpstreamError if there are fewer frames than
        centres, or if frames are not finite.
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
            warnings.simplefilter("ignore", ConvergenceWarning)  # silence has few distinct frames
            clusters.fit(frames.double().cpu().numpy())
        self.centers.copy_(torch.from_numpy(clusters.cluster_centers_))

    def forward(self, frames: Tensor) -> Tensor:
        """Return the index (...) of the centre nearest to each of the frames (..., dim)."""
        with torch.autocast(frames.device.type, enabled=False):
            centers = self.centers.float()
            return (centers.square().sum(1) - 2 * frames.float() @ centers.T).argmin(-1)
