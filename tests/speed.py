"""What a pooled task costs beside the bare forward pass it cannot do without; run by `make speed`.

Prints the wall time of (a) the plain transformers model over the clips, the best of three hand-written loops, and (b)
the whole task with 5 learning rates x 3 seeds: preparing, extracting, training, testing and writing records.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmark.encoding import keep_memory
from benchmark.engine import in_process
from benchmark.plan import Setup
from benchmark.run import run
from benchmark.tasks import Task
from upstreams import create


def write_corpus(root: Path, clips: int, seconds: float) -> float:
    """Noise of lengths between a quarter and the whole of `seconds`, twelve labels; gives the total length."""
    dice = np.random.default_rng(0)
    lines, total = ["file_name,split,label"], 0.0
    for number in range(clips):
        length = dice.uniform(seconds / 4, seconds)
        total += length
        soundfile.write(root / f"{number}.wav", dice.normal(0, 0.1, int(length * 16_000)), 16_000)
        split = "test" if number % 6 == 0 else "valid" if number % 6 == 1 else "train"
        lines.append(f"{number}.wav,{split},{number // 6 % 12}")
    (root / "metadata.csv").write_text("\n".join(lines))
    return total


def bare_pass(model: torch.nn.Module, root: Path, batch: int) -> float:
    """Seconds that the model takes for clips read beforehand, sorted by length, padded, `batch` at a time."""
    clips = sorted((soundfile.read(path, dtype="float32")[0] for path in root.glob("*.wav")), key=len)
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(clips), batch):
            group = clips[start : start + batch]
            padded = torch.zeros(len(group), max(map(len, group)))
            mask = torch.zeros(padded.shape, dtype=torch.long)
            for row, valid, clip in zip(padded, mask, group, strict=True):
                row[: len(clip)], valid[: len(clip)] = torch.from_numpy(clip), 1
            model(padded, attention_mask=mask, output_hidden_states=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", default="hubert_base@random")
    parser.add_argument("--clips", type=int, default=144)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    keep_memory()  # for both sides alike
    upstream = create(options.upstream)
    plain = next(module for module in upstream.modules() if hasattr(module, "config"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        root.mkdir()
        total = write_corpus(root, options.clips, options.seconds)
        bare = min(bare_pass(plain, root, batch) for batch in (1, 4, 8))
        task = Task(
            name="pooled", corpus="noise", target="label", head="classification", lr=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
            epochs=options.epochs,
        )  # fmt: skip
        setup = Setup(Path(folder) / "home", Path(folder) / "results", (("noise", str(root)),))
        began = time.perf_counter()
        outcome = run([task], [options.upstream], setup, in_process)
        whole = time.perf_counter() - began
    if len(outcome.records) != 15:
        sys.exit(f"expected 15 records, got {len(outcome.records)}: {outcome.failures}")
    print(f"{options.upstream}: {options.clips} clips, {total:.0f} s of audio, {torch.get_num_threads()} threads")
    print(f"bare forward pass {bare:.1f} s; whole task, 15 jobs {whole:.1f} s; ratio {whole / bare:.2f}")


if __name__ == "__main__":
    main()
