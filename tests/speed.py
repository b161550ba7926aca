"""What `bench` costs beside the bare forward pass it cannot do without; run by `make speed`.

One upstream, clips of mixed lengths, everything in one process on the same machine, in ratios:
(a) the best of three hand-written loops over the plain model, in batches of 1, 4 and 8 clips sorted by length;
(b) `bench extract` over the same folder, in fp32 and in bf16;
(c) a whole pooled task with 5 learning rates x 3 seeds: preparing, extracting, training, testing, writing records.
For an s3prl upstream the loop is s3prl's own: its S3PRLUpstream over padded batches.
Before that, what intervals of error rates cost: draws of a bootstrap over speakers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmark.engines.local import in_process
from benchmark.features.encoding import keep_freed_memory, load_upstream
from benchmark.features.export import export
from benchmark.run import run
from benchmark.statistics.intervals import score_distribution
from benchmark.tasks import Task
from benchmark.values import Setup
from downstreams.metrics import eer
from tests.benchmark import worlds
from upstreams import create

Forward = Callable[[Tensor, Tensor], Any]


def write_corpus(root: Path, clips: int, seconds: float) -> float:
    """Noise of lengths between a sixteenth and the whole of `seconds`, twelve labels; gives the total length."""
    dice = np.random.default_rng(0)
    lines, total = ["file_name,split,label"], 0.0
    for number in range(clips):
        length = dice.uniform(seconds / 16, seconds)
        total += length
        soundfile.write(root / f"{number}.wav", dice.normal(0, 0.1, int(length * 16_000)), 16_000)
        split = "test" if number % 6 == 0 else "valid" if number % 6 == 1 else "train"
        lines.append(f"{number}.wav,{split},{number // 6 % 12}")
    (root / "metadata.csv").write_text("\n".join(lines))
    return total


def padded(clips: list[np.ndarray], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips in order of length, zero-padded (B, S), and their lengths (B,)."""
    for start in range(0, len(clips), batch):
        group = clips[start : start + batch]
        waveforms = torch.zeros(len(group), max(map(len, group)))
        for row, clip in zip(waveforms, group, strict=True):
            row[: len(clip)] = torch.from_numpy(clip)
        yield waveforms, torch.tensor([len(clip) for clip in group])


def bare_pass(forward: Forward, root: Path, batch: int) -> float:
    """Seconds that the plain model takes for clips read beforehand, sorted by length, `batch` at a time."""
    clips = sorted((soundfile.read(path, dtype="float32")[0] for path in root.glob("*.wav")), key=len)
    began = time.perf_counter()
    with torch.inference_mode():
        for waveforms, lengths in padded(clips, batch):
            forward(waveforms, lengths)
    return time.perf_counter() - began


def plain(name: str) -> Forward:
    """The model behind an upstream, called as one does by hand."""
    if name.startswith("s3prl:"):
        return of_s3prl(*name.removeprefix("s3prl:").split("@", 1))
    model: Any = next(module for module in create(name).modules() if hasattr(module, "config"))

    def forward(waveforms: Tensor, lengths: Tensor) -> Any:
        mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
        return model(waveforms, attention_mask=mask, output_hidden_states=True)

    return forward


def of_s3prl(entry: str, checkpoint: str | None = None) -> Forward:
    from upstreams.families.s3prl_bridge import import_hub, s3prl_build

    import_hub()
    from s3prl.nn import S3PRLUpstream

    with s3prl_build(Path(checkpoint) if checkpoint else None):
        return S3PRLUpstream(entry, checkpoint).eval()


def timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def pooled(name: str, root: Path, folder: Path, epochs: int) -> None:
    """A pooled task of 15 jobs from nothing; exits where it does not give 15 records."""
    task = Task(
        name="pooled", corpus="noise", target="label", head="classification", lr=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        epochs=epochs,
    )  # fmt: skip
    setup = Setup(folder / "home", folder / "results", (("noise", str(root)),))
    outcome = run([task], [name], setup, in_process)
    if len(outcome.records) != 15:
        sys.exit(f"expected 15 records, got {len(outcome.records)}: {outcome.failures}")


def resampling() -> str:
    """What 10 000 draws of 40 000 trials cost, beside single error rates."""
    sample = worlds.trials(np.random.default_rng(0), targets=500, others=20_000)
    took = timed(partial(score_distribution, sample, 10_000))
    one = timed(partial(eer, sample.scores[0], sample.truth))
    return f"10 000 draws of 40 000 trials {took:.1f} s, as long as {took / one:.0f} single error rates"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", default="hubert_base@random")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    print(resampling(), flush=True)
    name = options.upstream
    keep_freed_memory()  # for all sides alike
    forward = plain(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        root = folder / "corpus"
        root.mkdir()
        total = write_corpus(root, options.clips, options.seconds)
        print(f"{name}: {options.clips} clips, {total:.0f} s of audio, {torch.get_num_threads()} threads", flush=True)
        bare = {batch: bare_pass(forward, root, batch) for batch in (1, 4, 8)}
        best = min(bare.values())
        print("bare forward pass " + ", ".join(f"{took:.1f} s in batches of {size}" for size, took in bare.items()))
        for precision in ("fp32", "bf16"):
            load_upstream(name, "cpu", precision)  # loaded beforehand, as the plain model is
            took = timed(partial(export, name, [root], folder / f"{precision}.npz", "cpu", precision, False))
            print(f"extract at {precision} {took:.1f} s, throughput {best / took:.2f} of the best loop's", flush=True)
        took = timed(partial(pooled, name, root, folder, options.epochs))
        print(f"whole pooled task, 15 jobs, {took:.1f} s, {took / best:.2f} of the best loop's time")


if __name__ == "__main__":
    main()
