"""Export the features of any audio files as arrays in one .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmark.data.audio import inspect_audio, samples_at
from benchmark.data.folder import audio_under
from benchmark.engines.local import progress_bar
from benchmark.errors import UserError
from benchmark.features.encoding import encode_clips, load_upstream, read_ahead
from benchmark.features.extraction import batch_seconds, length_batches
from benchmark.files import atomic_path
from benchmark.values import Clip, Setup, Stretch


def export(
    name: str, audio: Sequence[Path], output: Path, device: str, precision: str, skip_bad: bool
) -> tuple[int, int]:
    """Write one float32 array (T, L, D) per audio file to an .npz file, whole or not at all.

    Returns the number of audio files that were written and that were skipped.
    """
    if output.suffix != ".npz":
        raise UserError(f"cannot write {output}: the output is one .npz file; name it so, such as -o features.npz")
    clips, skipped = _clips(audio, skip_bad)
    setup = Setup(Path(), Path(), device=device, precision=precision)
    upstream = load_upstream(name, device, precision)
    rate = upstream.sample_rate
    clips.sort(key=lambda clip: (samples_at(clip.stretch, rate), clip.id))
    groups = list(length_batches(clips, batch_seconds(sum(weight.numel() for weight in upstream.parameters()))))
    total = sum(clip.seconds for clip in clips)
    done = 0.0
    with (
        atomic_path(output) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
        progress_bar(f"extract {name}", total) as show,
        ThreadPoolExecutor(1) as writer,
    ):
        written: Future[None] | None = None
        for batch, waveforms in read_ahead(groups, rate):
            arrays = encode_clips(upstream, waveforms, "live", setup)
            if written:
                written.result()  # one batch at most waits in memory
            written = writer.submit(_write, archive, batch, arrays, name)
            done += sum(clip.seconds for clip in batch)
            show(done)
        if written:
            written.result()
    return len(clips), skipped


def _write(archive: zipfile.ZipFile, batch: Sequence[Clip], arrays: Sequence[np.ndarray], name: str) -> None:
    for clip, frames in zip(batch, arrays, strict=True):
        if not np.isfinite(frames).all():
            raise UserError(
                f"upstream {name!r} gives features of {clip.stretch.audio} that are not finite numbers; see:"
                f" bench check {name}"
            )
        with archive.open(f"{clip.id}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(frames), allow_pickle=False)


def _clips(audio: Sequence[Path], skip_bad: bool) -> tuple[list[Clip], int]:
    clips: dict[str, Clip] = {}
    skipped = 0
    for key, path in _files(audio):
        inspection = inspect_audio(str(path))
        if inspection.problem and not skip_bad:
            raise UserError(f"{path} {inspection.problem}; repair or remove it, or leave it out with --skip-bad")
        if key in clips:
            raise UserError(
                f"{path} and {clips[key].stretch.audio} would both be called {key!r} in the output; rename one"
            )
        if inspection.problem:
            skipped += 1
        else:
            clips[key] = Clip(
                key, "", {}, Stretch(str(path), 0, inspection.samples, inspection.rate), inspection.digest, ""
            )
    if not clips:
        raise UserError(f"no usable audio in {', '.join(map(str, audio))}; give files, or folders that hold some")
    return list(clips.values()), skipped


def _files(audio: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return (name in the output, path): the file's name, or its path within the folder given, without suffix."""
    files = []
    for path in audio:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}; correct the path")
        matches = audio_under(path) if path.is_dir() else [path]
        root = path if path.is_dir() else path.parent
        files += [(match.relative_to(root).with_suffix("").as_posix(), match) for match in matches]
    return files
