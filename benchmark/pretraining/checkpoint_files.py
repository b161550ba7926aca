"""Files of a pre-training: weights that are whole or absent, the state it resumes from, and where they may lie."""

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
from benchmark.files import aside, remove_partial_files

if TYPE_CHECKING:
    from torch import Tensor

KEY = "bench"  # the only key of the metadata: safetensors writes several in an order of chance
LARGEST_HEADER = 100 << 20  # bytes, which safetensors sets
COMMANDS = ("bench pretrain ", "bench pseudo-label ")  # one of them, as it was given, ends every model card


def state_of(out: Path) -> Path:
    """Where the training of `out` keeps what it resumes from."""
    return out.with_name(f"{out.name}.state")


def usable(out: Path) -> Path:
    """The path of weights to be, made whole; raises UserError where it cannot be one."""
    path = Path(os.path.abspath(os.path.expanduser(out)))
    if path.suffix != ".safetensors" or "?" in str(path):
        raise UserError(f"cannot write {out}: the output is one .safetensors file without '?' in its path; name it so")
    if path.is_dir():
        raise UserError(f"cannot write {out}: it is a folder; name a file in it")
    return path


def make_room(out: Path, needed: int) -> None:
    """See that so many bytes can be written beside `out`, and delete what killed processes left there half written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(out.parent)
        with tempfile.TemporaryFile(dir=out.parent) as file:
            file.write(bytes(4096))
            file.flush()
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}); mend that, or give another --out") from error
    if free < needed:
        raise UserError(
            f"cannot write {out}: weights and training state need up to {_size(needed)}, and {_size(free)} are free"
            " there; free some space, or give another --out"
        )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Write safetensors with a JSON value in the header, the same bytes for the same values."""
    from safetensors.torch import save

    content = save(dict(tensors), {KEY: json.dumps(facts, sort_keys=True)})
    try:
        with path.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())  # a name may outlive a power cut that its content does not
    except OSError as error:
        error.filename = error.filename or str(path)
        if error.errno in (errno.EFBIG, errno.EIO):
            raise UserError(
                f"cannot write {path} ({error.strerror}); mend that, then run the same command again"
            ) from error
        raise


def write_state(out: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the state that the training of `out` resumes from."""
    with aside(state_of(out)) as partial:
        write_tensors(partial, tensors, {**facts, "sum": checksum(tensors, facts)})


def read_state(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts as `write_state` was given them, or None; raises UserError where they are no longer those."""
    from upstreams.base import UpstreamError
    from upstreams.safety.loading import load

    path = state_of(out)
    facts = facts_in(path)
    if facts is None:
        return None
    broken = UserError(f"{path} is broken; delete it, and the same command starts anew")
    try:
        tensors = load(path)
    except UpstreamError as error:
        raise broken from error
    if facts.pop("sum", None) != checksum(tensors, facts):
        raise broken
    return tensors, facts


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """That changes with any bit of them, as a disk or a copy may change it."""
    import torch

    total = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), total))
    return total


def facts_in(path: Path) -> dict[str, Any] | None:
    """The JSON value that `write_tensors` put into the header, or None where there is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            facts = dict(json.loads(json.loads(file.read(min(length, LARGEST_HEADER)))["__metadata__"][KEY]))
            facts["identity"] = dict(facts["identity"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError):
        raise UserError(
            f"{path} is there already, and not by bench pretrain or pseudo-label; delete it, or give another --out"
        ) from None
    return facts


def refuse_foreign_cards(out: Path) -> None:
    """Raise UserError where something that is no model card is in the place of one."""
    for path in (out.with_suffix(".md"), out.with_suffix(".json")):
        if path.exists() and not _is_card(path):
            raise UserError(f"{path} is there, where the model card goes, and is none; give another --out")


def _is_card(path: Path) -> bool:
    """Whether a file tells the command that it came of, where model cards do."""
    try:
        text = path.read_text(encoding="utf-8")
        told = json.loads(text)["command"] if path.suffix == ".json" else text.rstrip("`\n").splitlines()[-1]
        return str(told).startswith(COMMANDS)
    except (ValueError, LookupError, TypeError, RecursionError, IsADirectoryError):
        return False


def refuse_another(path: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise UserError where what is at `path` came of something else than what is asked for, and say what differs."""
    names = [name for name in {**asked, **there} if asked.get(name) != there.get(name)]
    if names:
        told = [_difference(name, there.get(name), asked.get(name)) for name in names]
        raise UserError(f"{path} is of {' and '.join(told[:4])}; delete it, or give another --out")


def _difference(name: str, there: Any, asked: Any) -> str:
    if name in ("data", "labels"):
        return f"other {name}"
    return f"{name.replace('_', ' ')} {_value(there)}, not {_value(asked)}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
