"""Read anybody's weights without running anybody's code: safetensors, or pickles of plain tensors only."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upstreams.base import UpstreamError

State = dict[str, Tensor]
REFUSED = re.compile(r"(?:GLOBAL|Unsupported class|unrecognized function) ([\w.]+)")  # as torch words it
ADVICE = "save its state dict with safetensors.torch.save_file where you trust it, and give that file"


def read(path: str | Path) -> State:
    """Tensors by name from a .safetensors file, a torch checkpoint, or the .index.json of one in several files.

    Raises UpstreamError for what is missing, empty, broken or no checkpoint, and for pickles that want to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UpstreamError(f"no file '{path}'; give the path of a checkpoint")
    if path.name.endswith(".index.json"):
        return read_parts(path)
    with path.open("rb") as file:
        start = file.read(512)
    refuse_other_files(path, start)
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    return tensors_only(state, path)


def read_parts(index: Path) -> State:
    """All tensors of the files that an index names, which lie beside it."""
    state: State = {}
    for name in parts(index):
        state.update(read(index.parent / name))
    return state


def parts(index: Path) -> list[str]:
    """Names of the files that an index file lists; raises UpstreamError where it is none, or names other folders."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UpstreamError(f"'{index}' is not an index of checkpoint files; download it again") from error
    for name in names:
        if Path(name).name != name or name.endswith(".index.json"):
            raise UpstreamError(f"'{index}' names the file '{name}', which is not beside it; put them in one folder")
    return names


def refuse_other_files(path: Path, start: bytes) -> None:
    """Raise UpstreamError for files that are something else, known by their first bytes."""
    head = start.lstrip().lower()
    if not start:
        raise UpstreamError(f"checkpoint '{path}' is empty; download it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UpstreamError(f"checkpoint '{path}' is a web page, not weights; download the file behind it")
    if head.startswith(b"version https://git-lfs"):
        raise UpstreamError(f"checkpoint '{path}' is a git-lfs pointer, not weights; run git lfs pull")
    if zipfile.is_zipfile(path) and is_torchscript(path):
        raise UpstreamError(f"checkpoint '{path}' is TorchScript, which is a program, not weights; {ADVICE}")


def is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())


def read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise UpstreamError(f"checkpoint '{path}' is broken or no safetensors file ({one_line(error)})") from error


def read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UpstreamError(explanation(path, str(error))) from error
    except Exception as error:  # a stranger's bytes can make it raise anything
        raise UpstreamError(f"checkpoint '{path}' is truncated or no checkpoint ({one_line(error)})") from error


def explanation(path: Path, message: str) -> str:
    """What to tell about a pickle that torch's restricted unpickler refused."""
    wanted = REFUSED.search(message)
    if wanted:
        return f"checkpoint '{path}' wants to run {wanted.group(1)}, and weights need nothing run; {ADVICE}"
    return f"checkpoint '{path}' is truncated, or holds more than weights; download it again, or {ADVICE}"


def tensors_only(state: Any, path: Path) -> State:
    """The tensors of a state dict, itself or under its usual keys; raises UpstreamError where there are none."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise UpstreamError(f"checkpoint '{path}' holds no weights by name; save a model's state_dict()")
    return tensors


def not_finite(state: State) -> list[str]:
    """Names of the tensors with NaN or infinity in them."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else text[:117] + "..."
