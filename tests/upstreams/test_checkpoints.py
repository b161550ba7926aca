from __future__ import annotations

import collections
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from upstreams.base import UpstreamError
from upstreams.checkpoints import not_finite, read

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def told(path: Path) -> str:
    with pytest.raises(UpstreamError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_safetensors_and_plain_state_dicts_come_back_as_they_were(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "a.pt")
    torch.save(collections.OrderedDict(STATE), tmp_path / "b.bin")
    torch.save(STATE, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt", "b.bin", "legacy.pt"):
        assert equal(read(tmp_path / name), STATE), name


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dicts_under_their_usual_keys_are_found(key: str, tmp_path: Path) -> None:
    torch.save({key: STATE, "epoch": 3, "args": {"lr": 0.1}}, tmp_path / "a.pt")
    assert equal(read(tmp_path / "a.pt"), STATE)


def test_a_checkpoint_in_several_files_is_read_through_its_index(tmp_path: Path) -> None:
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "one.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.safetensors", "b": "two.safetensors"}}))
    assert equal(read(index), STATE)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../one.safetensors"}}))
    assert "not beside it" in told(index)
    for broken in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(broken)
        assert "not an index" in told(index)


class Commands:
    """Pickles that would leave a folder behind if they were run."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"state_dict": {"w": x}}, lambda x: [torch.ones(1), x]])
def test_pickles_that_would_run_something_are_refused_by_name_and_run_nothing(zipped, nest, tmp_path: Path) -> None:
    harm, path = tmp_path / "harm", tmp_path / "a.pt"
    for function, argument, told_name in (
        (os.mkdir, str(harm), "mkdir"),
        (os.system, f"mkdir {harm}", "system"),
        (eval, f"__import__('os').mkdir({str(harm)!r})", "eval"),
    ):
        torch.save(nest(Commands(function, argument)), path, _use_new_zipfile_serialization=zipped)
        message = told(path)
        assert "wants to run" in message
        assert told_name in message
        assert not harm.exists()


def test_bare_pickles_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(Commands(os.mkdir, str(tmp_path / "harm"))))
    assert "a.pt" in told(path)
    assert not (tmp_path / "harm").exists()


def test_whole_pickled_models_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    message = told(tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in message
    assert "safetensors" in message


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    assert "is TorchScript" in told(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_checkpoint_is_told_apart(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    assert told(path).startswith("no file")
    path.write_bytes(b"")
    assert "is empty" in told(path)
    path.write_text("\n <!DOCTYPE html><html>404</html>")
    assert "is a web page" in told(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc")
    assert "git-lfs pointer" in told(path)
    path.write_bytes(bytes(range(256)) * 40)
    assert "checkpoint" in told(path)
    path.write_bytes(b"\xff" * 8 + b"{")  # a header of 2^64 bytes, if one believes it
    assert "checkpoint" in told(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".old.pt", ".safetensors"])
def test_truncated_files_are_told(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    state = {"w": torch.randn(50, 50), "v": torch.randn(9)}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "checkpoint" in told(path)


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, {}, "text", {"model": {}}])
def test_files_without_weights_are_told(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "holds no weights by name" in told(tmp_path / "a.pt")


def test_weights_that_are_not_finite_are_named() -> None:
    state = {"good": torch.ones(2), "bad": torch.tensor([1.0, float("nan")]), "worse": torch.tensor([float("-inf")])}
    assert not_finite(state | {"whole": torch.ones(2, dtype=torch.int64)}) == ["bad", "worse"]
