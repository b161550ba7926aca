"""Read anybody's weights without running anybody's code: safetensors, or pickles of plain tensors only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import listed, printable
from upstreams.safety.foreign_code import only_safe as only_safe
from upstreams.safety.literal_expressions import literal as literal
from upstreams.safety.loading import expanded as expanded
from upstreams.safety.loading import load as load
from upstreams.safety.loading import one_line as one_line
from upstreams.safety.loading import read_json as read_json

StateDict = dict[str, Tensor]
LONGEST = 255  # letters of a file's name
MOST_FILES = 10_000  # of one checkpoint
COUNTERS = ("num_batches_tracked", "position_ids")  # the whole numbers among weights


def read(path: str | Path) -> StateDict:
    """Tensors by name from a .safetensors file, a torch checkpoint, or the .index.json of one in several files.

    Raises UpstreamError for what is missing, empty, broken or no checkpoint, and for pickles that want to run code.
    """
    path = Path(path)
    return read_parts(path) if path.name.endswith(".index.json") else tensors_only(load(path), path)


def read_parts(index: Path) -> StateDict:
    """The tensors that an index names, each from the file beside it that it is assigned to, and no others.

    Raises UpstreamError for one that is absent from its file, or in a file that it is not assigned to.
    """
    state: StateDict = {}
    for name, assigned in parts(index).items():
        held = read(index.parent / name)
        told = f"'{index}' and {printable(name)} beside it contradict each other"
        if assigned - held.keys():
            raise UpstreamError(f"{told}, which lacks {listed(assigned - held.keys())}; download both again")
        if held.keys() - assigned:
            raise UpstreamError(
                f"{told}, which holds {listed(held.keys() - assigned)} though not assigned to it; download both again"
            )
        state.update(held)
    return state


def parts(index: Path) -> dict[str, set[str]]:
    """Files that an index file lists, in order, and the tensors assigned to each.

    Raises UpstreamError where it is no index, or names other folders or more than 10000 files.
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
    """The tensors of a state dict, itself or under its usual keys; raises UpstreamError where there are none."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise UpstreamError(f"checkpoint '{path}' holds no weights by name; save a model's state_dict()")
    return tensors


def renamed(state: StateDict, name: Callable[[str], str], reference: str) -> StateDict:
    """The same weights by other names; raises UpstreamError where two would have the same one."""
    keys: dict[str, list[str]] = {}
    for key in state:
        keys.setdefault(name(key), []).append(key)
    twice = [" and ".join(same) for same in keys.values() if len(same) > 1]
    if twice:
        raise UpstreamError(f"'{reference}' holds the same weights twice: {listed(twice)}; save them once")
    return {new: state[old] for new, (old,) in keys.items()}


def refuse_unusable(state: StateDict, reference: str) -> None:
    """Raise UpstreamError for weights that are no floating-point numbers, or not finite, by their names."""
    strange = not_floats(state)
    if strange:
        told = f"'{reference}' holds no floating-point numbers at {listed(strange)}"
        raise UpstreamError(f"{told}; save the state_dict() of the model alone, as it was trained")
    broken = not_finite(state)
    if broken:
        raise UpstreamError(f"weights of '{reference}' are not finite: {listed(broken)}; download them again")


def not_floats(state: dict[str, Any]) -> list[str]:
    """Names of what is no tensor, or none of floating-point numbers though it is no counter."""

    def good(name: str, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and (tensor.is_floating_point() or name.endswith(COUNTERS))

    return [name for name, tensor in state.items() if not good(name, tensor)]


def not_finite(state: StateDict) -> list[str]:
    """Names of the tensors with NaN or infinity in them."""
    return [name for name, tensor in state.items() if not finite(tensor)]


def finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.itemsize == 1:  # no such question is answered for 8 bits
        tensor = tensor.float()
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def digests(paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 (64 hexadecimal digits) of each file by name, for `Upstream.origin`."""
    return {path.name: digest(path) for path in map(Path, paths)}


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
