"""Files of a pre-training: the weights, which are written whole or not at all, and the state to resume from."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import UserError
from benchmark.files import atomic_path, remove_partial_files

if TYPE_CHECKING:
    from torch import Tensor

KEY = "bench"  # the only key of the metadata: safetensors writes several keys in no fixed order
MAX_HEADER_BYTES = 100 << 20  # bytes: the limit of safetensors
COMMANDS = ("bench pretrain ", "bench pseudo-label ")  # every model card ends with one of these command lines


def state_path(out: Path) -> Path:
    """The file that holds the state to resume from while the weights `out` are being trained."""
    return out.with_name(f"{out.name}.state")


def checked_output(out: Path) -> Path:
    """Return the absolute path of the weights to write; raise UserError where no weights can be written there."""
    path = Path(os.path.abspath(os.path.expanduser(out)))
    if path.suffix != ".safetensors" or "?" in str(path):
        raise UserError(f"cannot write {out}: the output is one .safetensors file without '?' in its path; name it so")
    if path.is_dir():
        raise UserError(f"cannot write {out}: it is a folder; name a file in it")
    return path


def ensure_space(out: Path, needed: int) -> None:
    """Check that `needed` bytes can be written beside `out`, and delete partial files that killed processes left there.

    Raises UserError where the folder cannot be written to, or has too little free space.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(out.parent)
        with tempfile.TemporaryFile(dir=out.parent) as file:
            file.write(bytes(4096))
            file.flush()
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}); correct that, or give another --out") from error
    if free < needed:
        raise UserError(
            f"cannot write {out}: weights and training state need up to {_size(needed)}, but only {_size(free)} are"
            " free there; free some space, or give another --out"
        )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Write a safetensors file with `facts` as JSON in its header; the same values give the same bytes."""
    from safetensors.torch import save

    content = save(dict(tensors), {KEY: json.dumps(facts, sort_keys=True)})
    try:
        with path.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())  # after a power cut a file may otherwise have its name but not its content
    except OSError as error:
        error.filename = error.filename or str(path)
        if error.errno in (errno.EFBIG, errno.EIO):
            raise UserError(
                f"cannot write {path} ({error.strerror}); correct that, then run the same command again"
            ) from error
        raise


def write_state(out: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the state that the training of `out` resumes from, atomically, with a checksum in its facts."""
    with atomic_path(state_path(out)) as partial:
        write_tensors(partial, tensors, {**facts, "sum": checksum(tensors, facts)})


def read_state(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and facts of `write_state`, None where there is no state; raise UserError if it is damaged."""
    from upstreams.base import UpstreamError
    from upstreams.safety.loading import load_checkpoint

    path = state_path(out)
    facts = read_header_facts(path)
    if facts is None:
        return None
    broken = UserError(f"{path} is broken; delete it, and the same command starts anew")
    try:
        tensors = load_checkpoint(path)
    except UpstreamError as error:
        raise broken from error
    if facts.pop("sum", None) != checksum(tensors, facts):
        raise broken
    return tensors, facts


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """The CRC-32 of the facts and of all tensors, which detects damage by a disk or a copy."""
    import torch

    total = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), total))
    return total


def read_header_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts that `write_tensors` put into the header, or None where there is no file.

    Raises UserError for a file that `write_tensors` did not write.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            facts = dict(json.loads(json.loads(file.read(min(length, MAX_HEADER_BYTES)))["__metadata__"][KEY]))
            facts["identity"] = dict(facts["identity"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError):
        raise UserError(
            f"{path} exists already, and bench pretrain or pseudo-label did not write it; delete it, or give another"
            " --out"
        ) from None
    return facts


def refuse_foreign_cards(out: Path) -> None:
    """Raise UserError where a file that is not a model card has the name that the model card of `out` needs."""
    for path in (out.with_suffix(".md"), out.with_suffix(".json")):
        if path.exists() and not _is_card(path):
            raise UserError(
                f"{path} exists and is not a model card, but the model card needs its name; give another --out"
            )


def _is_card(path: Path) -> bool:
    """Whether a file names the command that wrote it, in the place where model cards do."""
    try:
        text = path.read_text(encoding="utf-8")
        command = json.loads(text)["command"] if path.suffix == ".json" else text.rstrip("`\n").splitlines()[-1]
        return str(command).startswith(COMMANDS)
    except (ValueError, LookupError, TypeError, RecursionError, IsADirectoryError):
        return False


def refuse_other_identity(path: Path, existing: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    """Raise UserError, naming what differs, where the file at `path` has another identity than the requested one."""
    names = [name for name in {**requested, **existing} if requested.get(name) != existing.get(name)]
    if names:
        differences = [_difference(name, existing.get(name), requested.get(name)) for name in names]
        raise UserError(f"{path} was made with {' and '.join(differences[:4])}; delete it, or give another --out")


def _difference(name: str, existing: Any, requested: Any) -> str:
    if name in ("data", "labels"):
        return f"other {name}"
    return f"{name.replace('_', ' ')} {_value(existing)}, not {_value(requested)}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
