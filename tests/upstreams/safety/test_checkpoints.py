from __future__ import annotations

import argparse
import collections
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tests.upstreams import hostile
from upstreams.base import UpstreamError
from upstreams.safety.allow_list import StandIn
from upstreams.safety.checkpoints import digests, not_finite, not_floats, read_weights
from upstreams.safety.loading import load_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def error_of(path: Path) -> str:
    with pytest.raises(UpstreamError) as caught:
        read_weights(path)
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
        assert equal(read_weights(tmp_path / name), STATE), name


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dicts_under_their_usual_keys_are_found(key: str, tmp_path: Path) -> None:
    torch.save({key: STATE, "epoch": 3, "args": {"lr": 0.1}}, tmp_path / "a.pt")
    assert equal(read_weights(tmp_path / "a.pt"), STATE)


def test_a_checkpoint_in_several_files_is_read_through_its_index(tmp_path: Path) -> None:
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "one.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.safetensors", "b": "two.safetensors"}}))
    assert equal(read_weights(index), STATE)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../one.safetensors"}}))
    assert "not beside it" in error_of(index)
    index.write_text("{}")
    assert "not an index" in error_of(index)


@pytest.mark.parametrize(
    ("homes", "complaint"),
    [
        ({"a.weight": "two.safetensors", "b": "one.safetensors"}, "one.safetensors beside it contradict each other"),
        ({"a.weight": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}, "which lacks c;"),
        ({"a.weight": "one.safetensors", "b": "two.safetensors"}, "which holds a.weight though not assigned to it"),
    ],
)
def test_every_tensor_comes_from_the_file_that_the_index_assigns(
    homes: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    twice = {"a.weight": 2 * STATE["a.weight"]} if len(homes) == 2 else {}
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "one.safetensors")
    save_file({"b": STATE["b"], **twice}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": homes}))
    assert complaint in error_of(index)


def test_an_index_of_endless_files_or_size_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"k{i}": f"f{i}" for i in range(10_001)}}))
    assert "names 10001 files" in error_of(index)
    with index.open("r+b") as file:
        file.truncate(1 << 40)
    assert "has more than 20 MB" in error_of(index)


@pytest.mark.parametrize("text", ["import os\nos.system('x')\n", "see the repository\n", "# ümlaut\n" * 20_000])
def test_text_is_told_as_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text(text, encoding="utf-8")
    assert "is text, not weights" in error_of(tmp_path / "a.pt")


def test_pickles_that_are_text_are_told_as_pickles(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "wants to run os.system" in error_of(tmp_path / "evil.pt")
    torch.save(STATE, tmp_path / "a.pt", _use_new_zipfile_serialization=False, pickle_protocol=0)
    assert "is pickled in a way" in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".old.pt", ".safetensors"])
def test_truncated_files_are_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    state = {"w": torch.randn(50, 50), "v": torch.randn(9)}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "checkpoint" in error_of(path)


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, {}, "text", {"model": {}}])
def test_files_without_weights_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "holds no weights by name" in error_of(tmp_path / "a.pt")


def test_weights_that_are_not_finite_are_named() -> None:
    nan, infinity = float("nan"), float("inf")
    state = {
        "good": torch.ones(2),
        "whole": torch.ones(2, dtype=torch.int64),
        "eight bits": torch.ones(2).to(torch.float8_e4m3fn),
        "bad": torch.tensor([1.0, nan]),
        "worse": torch.tensor([-infinity]),
        "half": torch.tensor([infinity]).half(),
        "few bits": torch.tensor([nan]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([complex(0, nan)]),
    }
    assert not_finite(state) == ["bad", "worse", "half", "few bits", "complex"]


def test_what_is_no_weight_is_named_counters_aside() -> None:
    whole, real = torch.ones(2, dtype=torch.int64), torch.ones(2)
    good = {"single": real, "half": real.half(), "eight bits": real.to(torch.float8_e4m3fn)}
    counters = {"norm.num_batches_tracked": whole, "position_ids": whole}
    bad = {"whole": whole, "flag": real > 0, "complex": real + 0j, "list": [1.0], "b.num_batches_tracked": [1]}
    assert not_floats(good | counters | bad) == list(bad)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=60)
@given(value=VALUES, zipped=st.booleans())
def test_plain_values_come_back_as_they_were(
    value: Any, zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.pt"
    torch.save({"config": value}, path, _use_new_zipfile_serialization=zipped)
    assert load_checkpoint(path) == {"config": value}


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_come_back_bit_for_bit(zipped: bool, tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8]
    kinds += [torch.bool, torch.complex64] + ([torch.uint16, torch.float8_e4m3fn] if zipped else [])
    base = torch.arange(24.0).reshape(4, 6)
    state = {str(kind): base.to(kind) for kind in kinds}
    state |= {"turned": base.T, "part": base[1:3, ::2], "one": torch.tensor(3.0), "none": torch.zeros(0, 3)}
    state |= {"repeated": torch.ones(1).expand(7), "parameter": nn.Parameter(torch.ones(2)), "tied": base}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert equal(read_weights(tmp_path / "a.pt"), state)
    assert all(
        type(tensor) is torch.Tensor and not tensor.requires_grad
        for tensor in load_checkpoint(tmp_path / "a.pt").values()
    )


def test_attributes_and_hooks_of_tensors_stay_behind(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    tensor.numel = 7  # type: ignore[assignment, method-assign]
    state = collections.OrderedDict(w=tensor)
    state.__dict__["keys"] = "shadow"
    torch.save({"model": state}, tmp_path / "a.pt")
    content = read_weights(tmp_path / "a.pt")
    assert content["w"].numel() == 2
    assert list(content) == ["w"]


def stranger(monkeypatch: pytest.MonkeyPatch, name: str, *bases: type, **members: Any) -> Any:
    """A class in a package that is not installed, importable until the test ends."""
    module, _, name = name.rpartition(".")
    kind = type(name, bases, {"__module__": module, **members})
    place = types.ModuleType(module)
    setattr(place, name, kind)
    for part in itertools.accumulate(module.split("."), "{}.{}".format):
        monkeypatch.setitem(sys.modules, part, place)
    return kind


def test_configurations_beside_the_weights_become_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        dictionary = stranger(patch, "fairseq.data.dictionary.Dictionary")()
        dictionary.symbols = ["<s>", "a"]
        choice = stranger(patch, "fairseq.dataclass.constants.Choice", init=lambda self, text: None)
        choice.__reduce__ = lambda self: (choice, ("layer_norm",))
        callback = stranger(patch, "pytorch_lightning.callbacks.ModelCheckpoint")
        attributes = stranger(patch, "pytorch_lightning.utilities.parsing.AttributeDict", dict)
        counts = collections.defaultdict(list, {"k": [1]})
        content = {
            "args": argparse.Namespace(lr=0.1, mode=choice.__new__(choice), inner=argparse.Namespace(x=(1, 2))),
            "task_state": {"dictionary": dictionary},
            "callbacks": {callback: {"best": Path("/a/b.ckpt")}},
            "hyper": attributes(lr=3),
            "counts": counts,
            "queue": collections.deque([1, 2]),
            "seen": {1, 2},
            "size": torch.Size([1, 2]),
            "dtype": torch.float16,
        }
        torch.save({"model": STATE} | content, tmp_path / "a.pt")
    content = load_checkpoint(tmp_path / "a.pt")
    assert content["args"] == argparse.Namespace(lr=0.1, mode="layer_norm", inner=argparse.Namespace(x=(1, 2)))
    kept = content["task_state"]["dictionary"]
    assert isinstance(kept, StandIn)
    assert (kept.name, kept.state) == ("fairseq.data.dictionary.Dictionary", {"symbols": ["<s>", "a"]})
    assert content["callbacks"] == {"pytorch_lightning.callbacks.ModelCheckpoint": {"best": "/a/b.ckpt"}}
    assert (content["hyper"], content["counts"], content["queue"]) == ({"lr": 3}, {"k": [1]}, [1, 2])
    assert type(content["hyper"]) is type(content["counts"]) is dict
    assert (content["seen"], content["size"], content["dtype"]) == ({1, 2}, (1, 2), torch.float16)
    assert equal(read_weights(tmp_path / "a.pt"), STATE)
    assert "fairseq.data.dictionary" not in sys.modules


def test_numbers_and_arrays_of_numpy_come_back_without_asking_numpy(tmp_path: Path) -> None:
    arrays = {"rows": np.arange(6.0).reshape(2, 3), "columns": np.asfortranarray(np.arange(6).reshape(2, 3))}
    arrays |= {"swapped": np.arange(3, dtype=">i4"), "flags": np.array([True, False])}
    scalars = {"loss": np.float64(2.5), "step": np.int64(3), "done": np.bool_(True), "kind": np.dtype("f4")}
    torch.save(arrays | scalars, tmp_path / "a.pt")
    content = load_checkpoint(tmp_path / "a.pt")
    assert (content["loss"], content["step"], content["done"], content["kind"]) == (2.5, 3, True, "<f4")
    for name, array in arrays.items():
        assert content[name].numpy().tolist() == array.tolist(), name
    torch.save({"text": np.array(["a"], dtype=object)}, tmp_path / "a.pt")
    assert "array of objects" in error_of(tmp_path / "a.pt")


def test_omegaconf_becomes_dicts_and_lists(tmp_path: Path) -> None:
    OmegaConf = pytest.importorskip("omegaconf").OmegaConf  # noqa: N806
    content = {"model": {"layers": 12, "convolutions": "[(512,10,5)]", "rates": [1, {"x": None}]}, "name": "${seed}"}
    torch.save({"model": STATE, "cfg": OmegaConf.create(content)}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["cfg"] == content


def test_shared_parts_are_given_to_each_and_cycles_of_strangers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        trainer = stranger(patch, "fairseq.trainer.Trainer")()
        trainer.itself, trainer.epoch = trainer, 3
        shared = {"lr": 1}
        torch.save({"w": torch.ones(1), "one": shared, "other": shared, "trainer": trainer}, tmp_path / "a.pt")
    content = load_checkpoint(tmp_path / "a.pt")
    assert content["one"] == content["other"] == {"lr": 1}
    assert content["one"] is not content["other"]
    assert content["trainer"].state == {"itself": "fairseq.trainer.Trainer", "epoch": 3}


def test_functions_of_known_packages_are_refused_as_others_are(tmp_path: Path) -> None:
    for module, name in (("fairseq.utils", "get_activation_fn"), ("numpy.f2py", "run_main"), ("typing", "cast")):
        (tmp_path / "a.pt").write_bytes(hostile.zipped({"w": hostile.named(module, name)}))
        assert f"wants to run {module}.{name}" in error_of(tmp_path / "a.pt")


def test_what_a_stranger_wrote_cannot_move_the_terminal(tmp_path: Path) -> None:
    name = "o\x1b[2Js system"
    content = b"\x80\x04\x8c\x04evil\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    (tmp_path / "a.pt").write_bytes(hostile.zipped(content[2:-1]))
    assert "\x1b" not in error_of(tmp_path / "a.pt")


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.bin").write_bytes(b"")
    expected = {
        "a.bin": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "b.bin": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert digests([tmp_path / "a.bin", str(tmp_path / "b.bin")]) == expected
