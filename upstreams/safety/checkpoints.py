"""Read weights from untrusted files without executing code: safetensors, or pickles of plain tensors only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import printable, short_list
from upstreams.safety.foreign_code import safe_loading as safe_loading
from upstreams.safety.literal_expressions import literal_value as literal_value
from upstreams.safety.loading import expanded_path as expanded_path
from upstreams.safety.loading import load_checkpoint as load_checkpoint
from upstreams.safety.loading import one_line as one_line
from upstreams.safety.loading import read_json as read_json

StateDict = dict[str, Tensor]
LONGEST = 255  # characters of a file name
MOST_FILES = 10_000  # files of one checkpoint
COUNTERS = ("num_batches_tracked", "position_ids")  # integer buffers that checkpoints may hold beside their weights


def read_weights(path: str | Path) -> StateDict:
    """Return the tensors, by name, of a .safetensors file, a torch checkpoint, or the .index.json of a sharded one.

    Raises UpstreamError for a file that is missing, empty, broken or no checkpoint, and for a pickle that calls code.
    """
    path = Path(path)
    return read_parts(path) if path.name.endswith(".index.json") else tensors_only(load_checkpoint(path), path)


def read_parts(index: Path) -> StateDict:
    """Return the tensors that an index lists, each from the file beside the index to which it is assigned.

    Raises UpstreamError for a tensor that its file lacks, or that another file holds.
    """
    state: StateDict = {}
    for name, assigned in parts(index).items():
        tensors = read_weights(index.parent / name)
        fault = f"'{index}' and {printable(name)} beside it contradict each other"
        if assigned - tensors.keys():
            raise UpstreamError(f"{fault}, which lacks {short_list(assigned - tensors.keys())}; download both again")
        if tensors.keys() - assigned:
            surplus = short_list(tensors.keys() - assigned)
            raise UpstreamError(f"{fault}, which holds {surplus} though not assigned to it; download both again")
        state.update(tensors)
    return state


def parts(index: Path) -> dict[str, set[str]]:
    """Return the file names that an index lists, in sorted order, with the tensors assigned to each.

    Raises UpstreamError for a file that is no index, or that names other folders or more than 10000 files.
    """
    assigned: dict[str, set[str]] = {}
    try:
        for tensor, name in read_json(index)["weight_map"].items():
            assigned.setdefault(str(name), set()).add(tensor)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, UpstreamError):
            raise
        raise UpstreamError(f"'{index}' is not an index of checkpoint files; download it again") from error
    if len(assigned) > MOST_FILES:
        raise UpstreamError(f"'{index}' names {len(assigned)} files; a checkpoint may be in {MOST_FILES}")
    names = sorted(assigned)
    for name in names:
        if Path(name).name != name or name.endswith(".index.json") or not name.isprintable() or len(name) > LONGEST:
            raise UpstreamError(
                f"'{index}' names the file '{printable(name)}', which is not beside it; put them in one folder"
            )
    return {name: assigned[name] for name in names}


def tensors_only(state: Any, path: Path) -> StateDict:
    """Return the tensors of a state dict, itself or under its usual keys; raises UpstreamError if it has none."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise UpstreamError(f"checkpoint '{path}' holds no weights by name; save a model's state_dict()")
    return tensors


def renamed(state: StateDict, name: Callable[[str], str], reference: str) -> StateDict:
    """Return the weights under new names; raises UpstreamError if two would get the same name."""
    keys: dict[str, list[str]] = {}
    for key in state:
        keys.setdefault(name(key), []).append(key)
    twice = [" and ".join(same) for same in keys.values() if len(same) > 1]
    if twice:
        raise UpstreamError(f"'{reference}' holds the same weights twice: {short_list(twice)}; save them once")
    return {new: state[old] for new, (old,) in keys.items()}


def refuse_unusable(state: StateDict, reference: str) -> None:
    """Raise UpstreamError that names the weights that are not floating-point numbers or not finite."""
    strange = not_floats(state)
    if strange:
        fault = f"'{reference}' holds no floating-point numbers at {short_list(strange)}"
        raise UpstreamError(f"{fault}; save the state_dict() of the model alone, as it was trained")
    broken = not_finite(state)
    if broken:
        raise UpstreamError(f"weights of '{reference}' are not finite: {short_list(broken)}; download them again")


def not_floats(state: dict[str, Any]) -> list[str]:
    """Return the names of values that are neither floating-point tensors nor counters."""

    def good(name: str, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and (tensor.is_floating_point() or name.endswith(COUNTERS))

    return [name for name, tensor in state.items() if not good(name, tensor)]


def not_finite(state: StateDict) -> list[str]:
    """Return the names of the tensors that contain NaN or infinity."""
    return [name for name, tensor in state.items() if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.itemsize == 1:  # isfinite is not implemented for 8-bit floats
        tensor = tensor.float()
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def digests(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return the SHA-256 (64 hexadecimal digits) of each file by file name, for `Upstream.origin`."""
    return {path.name: file_digest(path) for path in map(Path, paths)}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
