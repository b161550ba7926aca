from __future__ import annotations

import collections
import copy
import io
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import load as imported_earlier
from torch import nn

from upstreams.base import UpstreamError
from upstreams.safety.foreign_code import safe_loading

REPLACED = (
    (torch, "load"),
    (torch.serialization, "load"),
    (torch.jit, "load"),
    *((yaml, f"{name}{many}") for name in ("load", "full_load", "unsafe_load") for many in ("", "_all")),
)


class Harm:
    """Creates a folder if it is unpickled without restrictions."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.save({"w": torch.arange(3.0), "loss": np.float64(2)}, tmp_path / "good.pt")
    return tmp_path / "good.pt"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    torch.save({"w": Harm(tmp_path / "harm")}, tmp_path / "bad.pt")
    return tmp_path / "bad.pt"


WAYS: list[Callable[[Path], Any]] = [
    lambda path: torch.load(path),
    lambda path: torch.load(str(path), "cpu", pickle, weights_only=False),
    lambda path: torch.load(f=path, map_location=lambda storage, _: storage, weights_only=False),
    lambda path: torch.load(path, map_location="meta", mmap=True, encoding="latin1"),
    lambda path: torch.load(io.BytesIO(path.read_bytes()), weights_only=False),
    lambda path: torch.serialization.load(path.open("rb"), weights_only=False),
]


@pytest.mark.parametrize("way", WAYS)
def test_every_form_of_torch_load_is_safe_within(way: Callable[[Path], Any], good: Path, bad: Path) -> None:
    with safe_loading():
        assert torch.equal(way(good)["w"], torch.arange(3.0))
        with pytest.raises(UpstreamError, match=r"wants to run (posix|nt)\.mkdir"):
            way(bad)
    assert not (bad.parent / "harm").exists()


def test_pickles_that_name_anything_are_refused_however_they_are_read(bad: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    np.save(tmp_path / "a.npy", np.array([Harm(harm)], dtype=object), allow_pickle=True)
    joblib = pytest.importorskip("joblib")
    joblib.dump({"w": Harm(harm)}, tmp_path / "a.joblib")
    text = pickle.dumps(Harm(harm))
    ways: list[Callable[[], Any]] = [
        lambda: pickle.loads(text),
        lambda: pickle.load(io.BytesIO(text)),
        lambda: pickle.Unpickler(io.BytesIO(text)).load(),
        lambda: pickle._Unpickler(io.BytesIO(text)).load(),  # type: ignore[attr-defined]
        lambda: np.load(tmp_path / "a.npy", allow_pickle=True),
        lambda: joblib.load(tmp_path / "a.joblib"),
        lambda: imported_earlier(bad, weights_only=False),
    ]
    with safe_loading():
        for way in ways:
            with pytest.raises(UpstreamError, match="wants to run"):
                way()
        assert pickle.loads(pickle.dumps({"a": [1, (2.5, None)]})) == {"a": [1, (2.5, None)]}
    assert not harm.exists()
    ways[0]()
    assert harm.exists()  # without the block, the folder is created


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with safe_loading():
        for way in (torch.load, torch.jit.load):
            with pytest.raises(UpstreamError, match="TorchScript"):
                way(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["load", "full_load", "unsafe_load"])
def test_yaml_is_data_whatever_loader_is_named(name: str, tmp_path: Path) -> None:
    loader = {"Loader": yaml.UnsafeLoader} if name == "load" else {}
    with safe_loading():
        assert getattr(yaml, name)("a: [1, 2.5]", **loader) == {"a": [1, 2.5]}
        assert list(getattr(yaml, f"{name}_all")("a: 1\n---\nb: 2", **loader)) == [{"a": 1}, {"b": 2}]
        with pytest.raises(UpstreamError, match="YAML asks for more than data"):
            getattr(yaml, name)(f"!!python/object/apply:os.mkdir ['{tmp_path / 'harm'}']", **loader)
        assert yaml.safe_load("a: 1") == {"a": 1}
    assert not (tmp_path / "harm").exists()


def test_everything_is_as_before_afterwards(bad: Path) -> None:
    before = [getattr(module, name) for module, name in REPLACED]
    kept = []
    with suppress(ZeroDivisionError), safe_loading(), safe_loading():
        kept.append(torch.load)
        raise ZeroDivisionError
    assert [getattr(module, name) for module, name in REPLACED] == before
    kept[0](bad, weights_only=False)  # a reference that was kept calls torch's own function again
    assert (bad.parent / "harm").exists()


def test_blocks_may_be_nested(bad: Path) -> None:
    with safe_loading():
        with safe_loading():
            pass
        with pytest.raises(UpstreamError):
            torch.load(bad, weights_only=False)


def test_other_threads_are_held_to_it_too(bad: Path) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            torch.load(bad, weights_only=False)
        except UpstreamError as error:
            caught.append(error)

    with safe_loading():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert caught


def test_what_builds_models_still_works_within(good: Path) -> None:
    with safe_loading():
        model = copy.deepcopy(nn.LSTM(3, 2))
        model.load_state_dict(collections.OrderedDict(model.state_dict()))
        torch.save(model.state_dict(), good)
        assert torch.load(good).keys() == model.state_dict().keys()
